"""Running `egm` as a person or a program does."""

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_S = 120.0  # to import everything, on a busy machine


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> Any:
        """The one JSON object on standard output."""
        lines = [line for line in self.stdout.splitlines() if line.strip()]
        assert len(lines) == 1, (self.stdout, self.stderr)
        return json.loads(lines[0])


class _Server:
    """The process of `tests.support.cli_server` that commands are forked from; started by the first command."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: str | None = None

    def path(self) -> str:
        """Where it listens."""
        with self._lock:
            if self._path is None:
                self._path = self._started()
            return self._path

    @staticmethod
    def _started() -> str:
        home = tempfile.mkdtemp(prefix="egm-cli-")  # a Unix socket's path is short
        path = str(Path(home) / "s")
        with Path(home, "log").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.cli_server", path],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
                cwd=Path(__file__).parents[2],
            )
        deadline = time.monotonic() + _START_S
        while not Path(f"{path}.ready").exists():
            assert process.poll() is None and time.monotonic() < deadline, Path(home, "log").read_text()
            time.sleep(0.02)

        def ended() -> None:
            process.terminate()
            process.wait()
            shutil.rmtree(home, ignore_errors=True)

        atexit.register(ended)
        return path


_server = _Server()


def _drained(ends: dict[int, bytearray], deadline: float) -> bool:
    """Read from every descriptor until its end; whether that was in time."""
    open_ends = set(ends)
    while open_ends:
        ready, _, _ = select.select(open_ends, (), (), max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        for end in ready:
            if read := os.read(end, 65536):
                ends[end] += read
            else:
                open_ends.remove(end)
    return True


def egm(*arguments: object, mesh: Path | None = None, timeout_s: float = 60.0) -> Outcome:
    """Run one command to its end, in a process of its own."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    environment.pop("EGM_MESH", None)
    if mesh is not None:
        environment["EGM_MESH"] = str(mesh)
    words = [str(word) for word in arguments]
    request = {"arguments": words, "environment": environment, "directory": str(Path.cwd())}
    out, out_child = os.pipe()
    err, err_child = os.pipe()
    with contextlib.ExitStack() as stack:
        for end in (out, err):
            stack.callback(os.close, end)
        try:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(_server.path())
            socket.send_fds(connection, [b" "], [out_child, err_child])
        finally:
            os.close(out_child)
            os.close(err_child)
        connection.sendall(json.dumps(request).encode() + b"\n")
        answers = stack.enter_context(connection.makefile("rb"))
        pid = int(answers.readline())
        said = {out: bytearray(), err: bytearray()}
        if not _drained(said, time.monotonic() + timeout_s):
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["egm", *words], timeout_s)
        return Outcome(int(answers.readline()), said[out].decode(), said[err].decode())
