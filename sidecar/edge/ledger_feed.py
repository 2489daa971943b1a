"""Which records of the ledger go to the index next: only durable ones, many at a time, from memory while they are new.

What a record costs on its way to the index is paid per batch: a message, an acknowledgement, a transaction. So a
record waits a little for others. What has left memory is read from the disk, in a thread.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from itertools import islice
from typing import Final

from trust import limits
from trust.edge.ledger import Ledger
from trust.errors import Reason, StateError

PERIOD_S: Final = 0.25  # a durable record is on its way this much later at the latest
_READ_RECORDS: Final = 256  # from the disk at once


class RecentRecords:
    """The newest records of a ledger, bounded; older ones leave. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        *,
        max_records: int = limits.MAX_RECENT_RECORDS,
        max_bytes: int = limits.MAX_RECENT_RECORD_BYTES,
    ) -> None:
        """Start empty."""
        self._max_records, self._max_bytes = max_records, max_bytes
        self._held: deque[bytes] = deque()
        self._first = self._bytes = 0

    def note(self, index: int, record: bytes) -> None:
        """Take the record at `index`. One that does not follow the last drops all before it."""
        held = self._held
        if index != self._first + len(held):
            held.clear()
            self._first, self._bytes = index, 0
        held.append(record)
        self._bytes += len(record)
        while self._bytes > self._max_bytes or len(held) > self._max_records:
            self._bytes -= len(held.popleft())
            self._first += 1

    def take(self, start: int, end: int) -> list[bytes]:
        """Return the records from `start` to before `end`; empty unless the one at `start` is held."""
        skip = start - self._first
        if skip < 0:
            return []
        return list(islice(self._held, skip, max(skip, end - self._first)))


class LedgerFeed:
    """What shipping reads of one ledger (`sidecar.edge.shipping.Source`)."""

    def __init__(self, ledger: Ledger) -> None:
        """Read `ledger`; tell `recent` of every record that is appended."""
        self._ledger = ledger
        self.recent = RecentRecords()

    async def read(self, start: int) -> AsyncGenerator[tuple[int, list[bytes]]]:
        """Yield (first index, records that follow it) from `start` on, and wait for later ones.

        Raises:
            StateError: LEDGER_CONTRADICTED, if the ledger does not reach `start`.
            EvidenceError: DIGEST_MISMATCH, at a damaged record.
        """
        most = limits.MAX_SHIP_BATCH_RECORDS
        start = max(start, await asyncio.to_thread(lambda: self._ledger.first))  # earlier ones are archived
        while True:
            durable = self._ledger.durable_size
            if start > durable:
                raise StateError(
                    Reason.LEDGER_CONTRADICTED,
                    f"the control plane has {start} records of this ledger, which holds {durable}",
                )
            if durable - start < most:  # others may join them
                await asyncio.sleep(PERIOD_S)
                durable = self._ledger.durable_size
            if durable == start:
                continue
            first, records = start, self.recent.take(start, min(durable, start + most))
            if not records:
                first, records = await asyncio.to_thread(self._from_disk, start)
            yield first, records
            start = first + len(records)

    def _from_disk(self, start: int) -> tuple[int, list[bytes]]:
        frames = list(islice(self._ledger.scan(start), _READ_RECORDS))
        return frames[0].index, [frame.record for frame in frames]
