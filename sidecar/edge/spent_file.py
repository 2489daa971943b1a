"""Remembers across restarts which approvals were used up: one line each, on disk before the call goes on.

    FILE    egm-spent/1
            floor UNIX-MS UNIX-MS    no clock counts as earlier; what was signed until then serves no call
            SIDE:TICKET UNIX-MS      used up, and until when that is remembered

A last line without its end was never waited for, so nothing went on under it: it is dropped. Any other damage means
that it is not known what was used up: then approvals that were signed before this start serve no call.
"""

import asyncio
import logging
import os
import re
from pathlib import Path
from typing import Final

from sidecar.core.approvals import SpentApprovals
from trust import limits
from trust.edge.files import write_atomic
from trust.errors import Reason, StateError

logger = logging.getLogger(__name__)

SPENT_FILE: Final = "approvals-spent"
_FORMAT: Final = "egm-spent/1"
_FLOOR: Final = re.compile(r"floor ([0-9]{1,15}) ([0-9]{1,15})\Z", re.ASCII)
_LINE: Final = re.compile(r"((?:inbound|outbound):[0-9a-f]{64}) ([0-9]{1,15})\Z", re.ASCII)
_MAX_FILE_BYTES: Final = 256 * limits.MAX_SPENT_APPROVALS
_MIN_REWRITE_LINES: Final = 1_024


class SpentFile:
    """The memory of one node, with its file. One event loop."""

    def __init__(self, path: Path, now_ms: int) -> None:
        """Read what an earlier run wrote. `now_ms`: Unix time, when this run starts."""
        self._path, self._lock = path, asyncio.Lock()
        self._appended = 0
        self._whole = False  # whether the file is one that lines may be appended to
        self._writing: set[asyncio.Task[OSError | None]] = set()
        self.memory = _read(path, now_ms)

    async def spend(self, key: str, *, signed_ms: int, now_ms: int) -> None:
        """Use up `key` and return once that survives a crash.

        Raises:
            MeshError: of `SpentApprovals.spend`; StateError: APPROVAL_UNAVAILABLE, if the disk does not take it.
        """
        until_ms = self.memory.spend(key, signed_ms=signed_ms, now_ms=now_ms)
        # A caller that goes away must not end this half-way: the thread would write on while another begins, and what
        # one of them wrote could be gone. The task is kept, or it could be collected while it waits.
        writing = asyncio.get_running_loop().create_task(self._written(f"{key} {until_ms}\n"))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        error: OSError | None
        try:
            async with asyncio.timeout(limits.LEDGER_SYNC_TIMEOUT_S):
                error = await asyncio.shield(writing)
        except TimeoutError:
            error = OSError(f"the disk has not answered for {limits.LEDGER_SYNC_TIMEOUT_S:g} s")
        if error is not None:
            raise StateError(
                Reason.APPROVAL_UNAVAILABLE,
                f"this node cannot write down that the approval is used up: {error.strerror or error}",
            ) from error

    async def _written(self, line: str) -> OSError | None:
        async with self._lock:
            whole = None if self._appendable() else self._content()
            try:
                await asyncio.to_thread(self._write, line, whole)
            except OSError as error:
                self._whole = False
                return error
            self._appended = 0 if whole is not None else self._appended + 1
            self._whole = True
        return None

    def _appendable(self) -> bool:
        return self._whole and self._appended <= max(_MIN_REWRITE_LINES, 2 * len(self.memory))

    def _content(self) -> bytes:
        """Return the whole file, with everything that is remembered now."""
        memory = self.memory
        lines = [_FORMAT, f"floor {memory.floor_ms} {memory.doubted_ms}"]
        lines += [f"{key} {until_ms}" for key, until_ms in memory.held.items()]
        return "".join(f"{line}\n" for line in lines).encode()

    def _write(self, line: str, whole: bytes | None) -> None:
        if whole is not None:
            write_atomic(self._path, whole, mode=0o600)
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            data = line.encode()
            if os.write(descriptor, data) != len(data):
                raise OSError(f"{self._path} took only a part of the line; is the disk full?")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path, now_ms: int) -> SpentApprovals:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return SpentApprovals()
    except OSError as error:
        return _doubtful(path, error.strerror or str(error), now_ms)
    found = parse_spent(data)
    if found is None:
        return _doubtful(path, "it is damaged", now_ms)
    floor_ms, doubted_ms, held = found
    return SpentApprovals(held, floor_ms=floor_ms, doubted_ms=doubted_ms)


def parse_spent(data: bytes) -> tuple[int, int, dict[str, int]] | None:
    """Return floor, doubt (Unix ms) and what was used up; None for what is no such file. Total over arbitrary bytes."""
    if len(data) > _MAX_FILE_BYTES:
        return None
    try:
        lines = data.decode("ascii").split("\n")[:-1]  # what follows the last line feed was never waited for
    except UnicodeDecodeError:
        return None
    floor = _FLOOR.match(lines[1]) if len(lines) > 1 else None
    if floor is None or lines[0] != _FORMAT:
        return None
    held: dict[str, int] = {}
    for line in lines[2:]:
        one = _LINE.match(line)
        if one is None:
            return None
        held[one[1]] = max(int(one[2]), held.get(one[1], 0))
    return int(floor[1]), int(floor[2]), held


def _doubtful(path: Path, why: str, now_ms: int) -> SpentApprovals:
    logger.error(
        "%s cannot be read (%s): approvals that were signed before now serve no call here", path, why
    )
    return SpentApprovals(doubted_ms=now_ms + limits.MAX_CLOCK_SKEW_MS)
