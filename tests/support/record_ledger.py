"""A second implementation of a ledger as shipping reads it: a list in memory that grows and can be waited for."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from trust.record import Intent, Outcome, build_record


class MemoryLedger:
    """Records in a list; `first` is the oldest index it still has."""

    def __init__(self, records: Sequence[bytes] = (), *, first: int = 0) -> None:
        """Start with some records."""
        self.records = list(records)
        self.first = first
        self._grown = asyncio.Event()
        self.reads: list[int] = []  # where readers started

    def append(self, *records: Intent | Outcome | bytes) -> None:
        """Add records, and wake the readers."""
        self.records += [r if isinstance(r, bytes) else build_record(r) for r in records]
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def size(self) -> int:
        """Return the index after the last record."""
        return self.first + len(self.records)

    async def read(self, start: int) -> AsyncGenerator[tuple[int, list[bytes]]]:
        """Yield all records from `start` on, or from the oldest there is; wait for more."""
        self.reads.append(start)
        index = max(start, self.first)
        while True:
            grown = self._grown
            if index < self.size():
                found = self.records[index - self.first :]
                yield index, found
                index += len(found)
            else:
                await grown.wait()
