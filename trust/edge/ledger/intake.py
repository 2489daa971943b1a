"""What waits for the disk: the callers' side of a ledger's queue, and the writer's. Bounded; nothing is dropped.

The caller's side only hashes and queues: constant work, no disk, no tree. The writer takes all that is queued at once.
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from trust import limits
from trust.edge.ledger.batch import Batch, Pending, settle, unavailable
from trust.edge.ledger.segments import CHECK_BYTES, FRAME
from trust.errors import CapacityError, Reason

_header = FRAME.pack
_sha256 = hashlib.sha256


@dataclass(slots=True)
class Pace:
    """When the next checkpoint is due; `signed` records are under the last one, or one that is on its way."""

    every_records: int
    every_ms: int
    signed: int
    signed_ms: int  # monotonic

    def due(self, size: int, now_ms: int, *, closing: bool) -> bool:
        """Whether a ledger of `size` records is to be signed now."""
        fresh = size - self.signed
        late = now_ms - self.signed_ms >= self.every_ms
        return fresh >= self.every_records or (fresh > 0 and (late or closing))


@dataclass(frozen=True, slots=True)
class Work:
    """What the writer does next: write `batch` if it has records, then sign if `sign` says so."""

    batch: Batch
    sign: bool
    wanted: list[asyncio.Future[bytes]]  # who asked for the checkpoint
    last: bool


class Intake:
    """The queue. Callers are on one event loop; the writer is one thread."""

    def __init__(self, size: int, now_ms: Callable[[], int]) -> None:
        """Begin after `size` durable records; `now_ms` reads the monotonic clock."""
        self.size = size  # records appended
        self.durable = size
        self.failure: str | None = None
        self._now_ms = now_ms
        self._open = self._writing = Batch(size)
        self._queued_records = self._queued_bytes = 0
        self._room: list[asyncio.Future[None]] = []
        self._wanted: list[asyncio.Future[bytes]] = []
        self._signing: list[asyncio.Future[bytes]] = []
        self._closing = self._idle = False
        self._asleep = False  # idle until something is appended
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)

    # the callers' loop

    def full(self) -> bool:
        """Whether a record would be refused now. Only the callers' thread makes it true."""
        return (
            self._queued_records >= limits.MAX_LEDGER_QUEUE_RECORDS
            or self._queued_bytes >= limits.MAX_LEDGER_QUEUE_BYTES
        )

    def put(self, record: bytes) -> Pending:
        """Queue a record. See `Ledger.append`."""
        with self._lock:
            batch = self._add(record, None)
            return Pending(self.size - 1, batch)

    def put_and_wait(self, record: bytes, waiter: asyncio.Future[None]) -> int:
        """Queue a record and return its index; `waiter` is told when it is durable."""
        with self._lock:
            self._add(record, waiter)
            return self.size - 1

    def _add(self, record: bytes, waiter: asyncio.Future[None] | None) -> Batch:
        """Queue a record, with the lock held. Every call at level 5 comes through here: it is written out."""
        length = len(record)
        if not 0 < length <= limits.MAX_LEDGER_RECORD_BYTES:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED,
                f"a ledger record has 1 to {limits.MAX_LEDGER_RECORD_BYTES} bytes, not {length}",
            )
        digest = _sha256(record).digest()
        if self.failure is not None or self._closing:
            self._check_open()
        if (
            self._queued_records >= limits.MAX_LEDGER_QUEUE_RECORDS
            or self._queued_bytes >= limits.MAX_LEDGER_QUEUE_BYTES
        ):
            raise CapacityError(
                Reason.LIMIT_EXCEEDED, "the ledger's disk is behind: its queue is full; try again"
            )
        batch = self._open
        if not batch.digests:
            batch.since_ms = self._now_ms()
        batch.frames += (_header(length, digest[:CHECK_BYTES]), record)
        batch.digests.append(digest)
        batch.size_bytes += length
        if waiter is not None:
            batch.waiters.append(waiter)
        self.size += 1
        self._queued_records += 1
        self._queued_bytes += length
        # The first record ends the writer's sleep; a nap it lets end by itself, unless there is something to do.
        if self._idle and (
            waiter is not None or self._asleep or len(batch.digests) == limits.LEDGER_LINGER_RECORDS
        ):
            self._wake()
        return batch

    def wait_for_room(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        """Return what to await before `put` may succeed; None when there is room, or no hope."""
        if not self.full():
            return None
        with self._lock:
            if self.failure is not None or not self.full():
                return None
            room: asyncio.Future[None] = loop.create_future()
            self._room.append(room)
            return room

    def join(self, batch: Batch, waiter: asyncio.Future[None]) -> bool:
        """Have `waiter` told when the batch is durable; False when it is already.

        Raises:
            StateError: LEDGER_UNAVAILABLE.
        """
        with self._lock:
            if batch.done:
                return False
            if self.failure is not None:
                raise unavailable(self.failure)
            batch.waiters.append(waiter)
            self._wake()
            return True

    def ask(self, wanted: asyncio.Future[bytes]) -> None:
        """Ask for a checkpoint over everything that is queued.

        Raises:
            StateError: LEDGER_UNAVAILABLE.
        """
        with self._lock:
            self._check_open()
            self._wanted.append(wanted)
            self._wake()

    def close(self) -> None:
        """Take nothing more; the writer ends when it has written what is here."""
        with self._lock:
            self._closing = True
            self._wake()

    def _check_open(self) -> None:
        if self.failure is not None:
            raise unavailable(self.failure)
        if self._closing:
            raise unavailable("it is closed")

    def _wake(self) -> None:
        if self._idle:
            self._idle = self._asleep = False
            self._work.notify()

    # the writer's thread

    def take(self, pace: Pace) -> Work | None:
        """Return what to do next, waiting for it; None after a failure. `pace` is then that of the next."""
        with self._lock:
            while not self._due(pace):
                nap_s = self._nap_s(pace)
                self._idle, self._asleep = True, nap_s is None
                self._work.wait(nap_s)
            self._idle = self._asleep = False
            if self.failure is not None:
                return None
            batch, closing, now_ms = self._open, self._closing, self._now_ms()
            wanted, self._wanted = self._wanted, []
            sign = bool(wanted) or pace.due(self.size, now_ms, closing=closing)
            if sign:
                self._signing += wanted
                pace.signed, pace.signed_ms = self.size, now_ms
            self._writing = batch
            self._open = Batch(self.size)
            return Work(batch, sign, wanted, closing)

    def written(self, batch: Batch) -> None:
        """Tell everybody that the batch is durable."""
        with self._lock:
            batch.done = True
            batch.frames.clear()
            self.durable = batch.first + batch.count
            self._queued_records -= batch.count
            self._queued_bytes -= batch.size_bytes
            waiters, batch.waiters = [*batch.waiters, *self._room], []
            self._room = []
        settle(waiters, None)

    def signed(self, wanted: list[asyncio.Future[bytes]], note: bytes) -> None:
        """Give the checkpoint to those who asked for it. From any thread."""
        with self._lock:
            self._signing = [future for future in self._signing if future not in wanted]
        settle(wanted, note)

    def fail(self, error: BaseException) -> None:
        """Fail everything pending, and everything after it. From any thread."""
        text = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        with self._lock:
            if self.failure is None:
                self.failure = text  # a caller may be told; where the disk is, only the log says
            failed = unavailable(self.failure)
            waiters = [*self._open.waiters, *self._writing.waiters]
            room, wanted = self._room, [*self._wanted, *self._signing]
            self._open.waiters, self._writing.waiters, self._room = [], [], []
            self._wanted, self._signing = [], []
            self._work.notify()
        settle(waiters, None, failed)
        settle(room, None)  # they find out by themselves
        settle(wanted, b"", failed)

    def _due(self, pace: Pace) -> bool:
        now_ms = self._now_ms()
        return (
            bool(self._wanted)
            or self._closing
            or self.failure is not None
            or self._open.due(now_ms)
            or pace.due(self.size, now_ms, closing=False)
        )

    def _nap_s(self, pace: Pace) -> float | None:
        """How long there is nothing to do, seconds; None: until something is appended."""
        if self.size == pace.signed:
            return None
        now_ms = self._now_ms()
        since_ms = self._open.since_ms if self._open.digests else now_ms
        due_ms = min(pace.signed_ms + pace.every_ms, since_ms + limits.LEDGER_LINGER_MS)
        return max(0.0, (due_ms - now_ms) / 1000) + 0.001
