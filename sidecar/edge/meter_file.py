"""What was spent of budgets, on disk: it survives restarts and crashes, and is written before calls go on.

One file, lines of "CRC32 KEY WINDOW_MS WINDOW AMOUNT": the last line of a key counts. It grows by what changes, and is
written anew, without what is over, when it has grown by METER_FILE_GROWTH_BYTES. What a crash left unfinished at the
end was never acknowledged and is dropped; a damaged line before the end makes the whole file unusable.
"""

import asyncio
import contextlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from sidecar.core.bundle_state import BundleState
from sidecar.core.call import Decision
from sidecar.core.meters import Meters, Spent
from sidecar.core.obligations import noted
from sidecar.edge.case import Case
from trust import limits
from trust.edge.files import write_atomic
from trust.errors import Reason, StateError
from trust.levels import GOVERNED
from trust.policy.controls import BUDGET, control_of
from trust.ports import Clock

logger = logging.getLogger(__name__)

FILE: Final = "budgets"
TAKEN: Final = "taken"  # in records: never renamed
NOT_TAKEN: Final = "exceeded"  # at a level that blocks nothing
UNKEPT: Final = "taken-unkept"  # counted in memory alone: the disk does not take it
_LINE: Final = re.compile(rb"([0-9a-f]{8}) (([0-9a-f]{64}) ([1-9][0-9]{0,12}) ([0-9]{1,12}) ([0-9]{1,24}))\Z")


class MeterFile:
    """The budgets of one node. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        path: Path,
        meters: Meters,
        now_ms: Callable[[], int],
        *,
        timeout_s: float = limits.LEDGER_SYNC_TIMEOUT_S,
    ) -> None:
        """Take the parts; nothing is read yet.

        Args:
            path: the file.
            meters: whose budgets are kept.
            now_ms: trusted Unix time, ms.
            timeout_s: a disk that takes longer counts as failed.
        """
        self._path, self._meters, self._now_ms = path, meters, now_ms
        self._timeout_s = timeout_s
        self._descriptor: int | None = None
        self._grown = 0
        self._asked, self._done = 0, 0  # flushes
        self._flushing: asyncio.Task[OSError | None] | None = None
        self._whole = True  # the next flush writes the file anew
        self._damaged = False
        self._again_at_s = 0.0
        self.problem = ""  # why budgets are not kept now, for an alarm; empty while they are

    def load(self) -> None:
        """Take up what an earlier run wrote. Blocking, short; call it before the first call.

        Where budgets cannot be read, calls that need one are refused from level 4 on, until a person acts.
        """
        try:
            data = self._path.read_bytes() if self._path.exists() else b""
            self._meters.restore(parse(data), now_ms=self._now_ms())
        except (OSError, ValueError) as error:
            self._damaged = True
            self._failed(
                f"the file of budgets {self._path} cannot be read ({error}); mend the disk, or move the file away and "
                "restart: all budgets then begin anew"
            )

    async def durable(self) -> None:
        """Return when all that was taken so far survives a crash.

        Raises:
            StateError: OBLIGATION_UNMET: it does not.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                error = await self._flushed()
        except TimeoutError:
            error = OSError(f"the disk has not answered for {self._timeout_s:g} s")
        if error is not None:
            raise StateError(
                Reason.OBLIGATION_UNMET,
                "what this call spends of its budget cannot be written down on this node, whose status says why",
            ) from error

    def later(self) -> None:
        """Have all that was taken so far written soon; `problem` says when it cannot be."""
        if self._given_up():
            return
        self._asked += 1
        if self._flushing is None:
            self._begin()

    def notes(self) -> tuple[str, ...]:
        """Return what is wrong with keeping budgets, for the alarms of the status."""
        return (self.problem,) if self.problem else ()

    async def close(self) -> None:
        """Write what is left."""
        with contextlib.suppress(StateError):  # it is in the log; what was spent last may be forgotten
            await self.durable()
        if self._flushing is not None:  # what was taken while the disk was busy, or a disk that hangs
            await asyncio.wait({self._flushing}, timeout=self._timeout_s)
        if self._flushing is not None:
            return  # its thread has the file; both end with the process
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def _flushed(self) -> OSError | None:
        if self._given_up():
            return OSError(self.problem)
        self._asked += 1
        mine = self._asked
        while self._done < mine:
            task = self._flushing or self._begin()
            error = await asyncio.shield(task)
            if error is not None:
                return error
        return None

    def _given_up(self) -> bool:
        """Whether the disk is not asked now: its file is damaged, or it failed a moment ago."""
        return self._damaged or asyncio.get_running_loop().time() < self._again_at_s

    def _begin(self) -> "asyncio.Task[OSError | None]":
        self._flushing = asyncio.get_running_loop().create_task(self._flush(), name="budgets")
        return self._flushing

    async def _flush(self) -> OSError | None:
        upto, whole = self._asked, self._whole or self._grown > limits.METER_FILE_GROWTH_BYTES
        changed = self._meters.changed()
        written = self._meters.spent(self._now_ms()) if whole else changed
        try:
            await asyncio.to_thread(self._write, written, whole=whole)
        except OSError as error:
            self._again_at_s = asyncio.get_running_loop().time() + limits.METER_FILE_RETRY_S
            self._whole = True  # nobody knows what is in the file now
            self._failed(f"budgets cannot be written down: {error}")
            return error
        finally:
            self._flushing = None
        self._whole, self.problem = False, ""
        self._done = max(self._done, upto)
        if self._asked > upto:  # taken while the disk was busy; perhaps nobody waits for it
            self._begin()
        return None

    def _failed(self, problem: str) -> None:
        if not self.problem:
            logger.error("alarm: %s", problem)
        self.problem = problem

    def _write(self, spent: list[Spent], *, whole: bool) -> None:
        data = b"".join(map(_line, spent))
        if whole:
            write_atomic(self._path, data, mode=0o600)
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._grown = 0
            return
        if not data or self._descriptor is None:
            return
        append(self._descriptor, data)
        self._grown += len(data)


def opened_budgets(data_dir: Path, meters: Meters, state: BundleState, clock: Clock) -> MeterFile:
    """Return what keeps the budgets of a node across restarts, as its earlier run left them. Blocking, short."""
    file = MeterFile(
        data_dir / FILE, meters, lambda: state.trusted_now_ms(clock.now_ms(), clock.monotonic_ms())
    )
    file.load()
    return file


class MeterDuty:
    """A `sidecar.edge.duties.Duty`: notes what was taken of rates and budgets, and has budgets written down first."""

    def __init__(self, file: MeterFile) -> None:
        """Keep budgets in `file`."""
        self._file = file

    async def meet(self, case: Case, decision: Decision, *, now_ms: int) -> None:
        """Note every control; from level 4 on, wait until what was spent survives a crash.

        Raises:
            StateError: OBLIGATION_UNMET: it cannot be written down.
        """
        counted = {control.obligation for control in decision.controls}
        budgets = any(name == BUDGET for name, _ in counted)
        if budgets and decision.level < GOVERNED:
            self._file.later()
        for asked in decision.obligations:
            if control_of(*asked) is None:
                continue
            unkept = asked[0] == BUDGET and bool(self._file.problem)
            what = NOT_TAKEN if asked not in counted else UNKEPT if unkept else TAKEN
            case.obligations = noted(case.obligations, asked, what)
        if budgets and decision.level >= GOVERNED:
            await self._file.durable()


def parse(data: bytes) -> Iterable[Spent]:
    """Return what a file says, in order; what a crash left at its end is dropped.

    Raises:
        ValueError: a line before the end is damaged.
    """
    found: list[Spent] = []
    bad = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        match = _LINE.match(line)
        if match is None or int(match[1], 16) != zlib.crc32(match[2]):
            bad = bad or number
            continue
        if bad:
            raise ValueError(f"line {bad} is damaged")
        found.append(Spent(match[3].decode(), int(match[4]), int(match[5]), int(match[6])))
    return found


def append(descriptor: int, data: bytes) -> None:
    """Write at the end of a file, durably.

    Raises:
        OSError: how much was written is not known.
    """
    if os.write(descriptor, data) != len(data):
        raise OSError("written in part")
    os.fdatasync(descriptor)


def _line(spent: Spent) -> bytes:
    body = f"{spent.key} {spent.window_ms} {spent.window} {spent.amount}".encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)
