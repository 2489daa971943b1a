"""Real processes of a development mesh: started, watched for their ready line, stopped or killed."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from trust.errors import Reason, StateError

START_TIMEOUT_S: Final = 40.0
STOP_TIMEOUT_S: Final = 25.0
MAX_LINE_BYTES: Final = 1024 * 1024
_LOG_TAIL_LINES: Final = 8
_PR_SET_PDEATHSIG: Final = 1


EGM: Final = (sys.executable, "-m", "control_plane.cli.main")
_LIBC: Final = ctypes.CDLL(None)  # not between fork and exec, where another thread may hold the loader's lock


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to end this process when its parent ends, also by kill -9 (prctl, Linux)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, how)


class Process:
    """One `egm …` process: its standard error goes to `log`, its first line of output says it is ready."""

    tells = True  # whether it says on standard output when it is ready

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = EGM,
        forked: Callable[[], None] | None = die_with_parent,
    ) -> None:
        """Describe a process; nothing is started.

        Args:
            name: for messages.
            arguments: of `program`.
            log: gets what the process writes to standard error; appended to.
            environment: added to ours.
            program: what to run.
            forked: run in the child before `program`; None where `program` sees to its own end.
        """
        self.name = name
        self.log = log
        self.ready: dict[str, object] = {}
        self._arguments = [*program, *arguments]
        self._forked = forked
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> dict[str, object]:
        """Start the process and return its ready line.

        Raises:
            StateError: SOURCE_UNAVAILABLE with the end of its log, when it ends or stays silent.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if self.tells else log,
                stderr=log,
                env=self._environment,
                limit=MAX_LINE_BYTES,
                start_new_session=True,
                preexec_fn=self._forked,
            )
        try:
            # Not `wait_for`, which in Python 3.11 forgets a cancellation that comes together with the answer.
            async with asyncio.timeout(START_TIMEOUT_S):
                self.ready = await self.until_ready(self._process)
        except BaseException as error:
            await self.kill()
            if isinstance(error, TimeoutError):
                why = "did not get ready in time"
            elif isinstance(error, ValueError):
                why = "ended before it was ready"
            else:
                raise
            detail = f"{self.name} {why}; the end of {self.log}:\n{self.log_tail()}"
            raise StateError(Reason.SOURCE_UNAVAILABLE, detail) from None
        if "error" in self.ready:
            await self.kill()
            detail = f"{self.name} cannot run: {self.ready.get('detail')}; its log is {self.log}"
            raise StateError(Reason.SOURCE_UNAVAILABLE, detail)
        self._drain = asyncio.create_task(_discard(self._process))
        return self.ready

    async def until_ready(self, process: asyncio.subprocess.Process) -> dict[str, object]:
        """Wait until the process does its work. Raises ValueError if it ends instead."""
        return await _first_line(process)

    def log_tail(self) -> str:
        """Return the last lines of the log, for an error message."""
        if not self.log.is_file():
            return "(empty)"
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:]) or "(empty)"

    async def stop(self) -> int:
        """Ask the process to drain and end (SIGTERM); kill it if it does not. Return its exit code."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> int:
        """End the process at once (SIGKILL), as a crash would."""
        return await self._end(signal.SIGKILL)

    async def _end(self, how: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._process.returncode is None:
            # Not Process.send_signal: it reaps a child that has just ended, behind the back of asyncio's watcher.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, how)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGKILL)
                await self._process.wait()
        if self._drain is not None:
            await self._drain
            self._drain = None
        return self._process.returncode or 0

    async def wait(self) -> int:
        """Wait until the process ends by itself; return its exit code."""
        return 0 if self._process is None else await self._process.wait()


async def _first_line(process: asyncio.subprocess.Process) -> dict[str, object]:
    """Return the ready line; a process that ends instead gives an empty line, which is a ValueError too."""
    line = b"" if process.stdout is None else await process.stdout.readline()
    parsed = json.loads(line)
    if not isinstance(parsed, dict):
        raise ValueError("not a ready line")
    return parsed


async def _discard(process: asyncio.subprocess.Process) -> None:
    """Read what else the process prints, so that it never blocks on a full pipe."""
    while process.stdout is not None and await process.stdout.read(MAX_LINE_BYTES):
        pass
