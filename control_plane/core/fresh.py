"""New events of each ledger between their arrival and detection's look at them: bounded, and only a shortcut.

Whoever takes records puts them here once they are durable; detection takes them from here instead of reading and
parsing what it would find in the store. What is not here (a restart, another control plane took it, too much waits) it
reads there.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.core.findings import Event
from trust import limits


@dataclass(frozen=True, slots=True)
class Part:
    """The events of the records `first` to `end` - 1 of one ledger, in their order; not every record is an event."""

    first: int
    end: int
    events: Sequence[Event]


class FreshEvents:
    """Parts that wait, the oldest dropped first when there are too many. Not thread-safe."""

    def __init__(self, most: int = limits.MAX_FRESH_RECORDS) -> None:
        """Hold parts of at most `most` records."""
        self._most, self._held = most, 0
        self._parts: dict[int, deque[Part]] = {}  # by ledger; the one put to longest ago first
        self.wanted = False  # whether detection runs here: otherwise nothing is kept

    def put(self, ledger_id: int, first: int, end: int, events: Sequence[Event]) -> None:
        """Keep the events of the records `first` to `end` - 1, which are durable."""
        if not self.wanted:
            self.clear()
            return
        parts = self._parts.pop(ledger_id, None) or deque()
        if parts and parts[-1].end != first:
            self._held -= sum(part.end - part.first for part in parts)
            parts.clear()
        parts.append(Part(first, end, events))
        self._parts[ledger_id] = parts
        self._held += end - first
        while self._held > self._most:
            self._drop(next(iter(self._parts)))

    def take(self, ledger_id: int, at: int, *, most: int, end: int) -> Part | None:
        """Return events from record `at` on, and forget them and all before; None when they are not here.

        Args:
            ledger_id: of the ledger.
            at: the first record that was not looked at.
            most: records at most.
            end: where the ledger ends by what is read of the store now.
        """
        parts = self._parts.get(ledger_id)
        while parts and parts[0].end <= at:
            self._held -= parts[0].end - parts[0].first
            parts.popleft()
        if not parts:
            self._parts.pop(ledger_id, None)
            return None
        part = parts[0]
        if part.first > at or at >= end:
            return None
        upto = min(part.end, at + most, end)
        if upto < part.end:
            some = [event for event in part.events if at <= event.evidence.index < upto]
            return Part(at, upto, some)
        self._held -= part.end - part.first
        parts.popleft()
        if not parts:
            del self._parts[ledger_id]
        if at == part.first:
            return part
        return Part(at, upto, [event for event in part.events if event.evidence.index >= at])

    def clear(self) -> None:
        """Forget everything."""
        self._parts.clear()
        self._held = 0

    def _drop(self, ledger_id: int) -> None:
        self._held -= sum(part.end - part.first for part in self._parts.pop(ledger_id))
