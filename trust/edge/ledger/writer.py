"""Appends records and says when each is durable: many waiting callers, one write, one fdatasync.

Three threads take part. The caller's only hashes and queues: constant work, no disk. The writer's takes all that is
queued, writes it as one batch and syncs it. The keeper's (`keeper.py`) follows with tiles and checkpoints.
"""

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from trust import limits
from trust.checkpoint import Checkpoint
from trust.edge.ledger import layout
from trust.edge.ledger.batch import Batch, Pending, settle, unavailable
from trust.edge.ledger.keeper import Keeper, Snapshot
from trust.edge.ledger.opening import create, take_lock
from trust.edge.ledger.reader import Reader
from trust.edge.ledger.recovery import recover
from trust.edge.ledger.segments import CHECK_BYTES, FRAME, Frame, Segment
from trust.errors import CapacityError, Reason
from trust.note import Sign, Verifier
from trust.ports import Clock

logger = logging.getLogger(__name__)


class Ledger:
    """The log of one node, open for appending. One process at a time; callers on one event loop."""

    def __init__(
        self,
        directory: Path,
        log: Verifier,
        signer: Sign,
        clock: Clock,
        *,
        head_file: Path | None,
        earlier_keys: Sequence[bytes],
        checkpoint_records: int,
        checkpoint_period_ms: int,
        lock: int,
    ) -> None:
        """Use `open`."""
        found = recover(directory, log, head_file, earlier_keys)
        self.directory, self.origin = directory, log.name
        self._clock = clock
        self._reader = Reader(directory)
        self._file_lock = lock
        self._every_records, self._every_ms = checkpoint_records, checkpoint_period_ms
        self._builder, self._segment = found.builder, found.segment
        self._durable = self._builder.size
        self._signed = found.checkpoint.checkpoint.size if found.checkpoint else 0
        self._signed_ms = clock.monotonic_ms()
        self._last_note = found.checkpoint.data if found.checkpoint else b""
        self._open = self._writing = Batch(self._builder.size)
        self._queued_records = self._queued_bytes = 0
        self._room: list[asyncio.Future[None]] = []
        self._wanted: list[asyncio.Future[bytes]] = []
        self._signing: list[asyncio.Future[bytes]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: str | None = None
        self._closing = self._idle = False
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._keeper = Keeper(
            directory,
            sign=signer,
            public_key=log.public_key,
            head_file=head_file,
            sealed=found.sealed,
            unsynced=found.tiles,
            failed=self._fail,
        )
        self._thread = threading.Thread(target=self._run, name="egm-ledger", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        origin: str,
        signer: Sign,
        public_key: bytes,
        clock: Clock,
        head_file: Path | None = None,
        earlier_keys: Sequence[bytes] = (),
        checkpoint_records: int = limits.LEDGER_CHECKPOINT_RECORDS,
        checkpoint_period_s: float = limits.LEDGER_CHECKPOINT_PERIOD_S,
    ) -> Self:
        """Open or create the ledger in `directory`. Reads up to two segments: call it before serving, or in a thread.

        Args:
            origin: the log's name, such as "example.org/node/a"; also the name of its key.
            signer: signs checkpoints with the Ed25519 key of `public_key` (32 bytes); called in another thread.
            head_file: where to keep a copy of the last checkpoint, on another disk if possible. With it, a restored
                older copy of the directory is noticed here; without it, only by peers that remember a checkpoint.
            earlier_keys: keys of the same log before its key was changed; its last checkpoint may be theirs.
            checkpoint_records, checkpoint_period_s: sign after so many records, or so long after one.

        Raises:
            StateError: LEDGER_CONTRADICTED, if the directory is not what was signed; LEDGER_UNAVAILABLE, if the disk
                fails; CONFLICT, if another process has it open.
            EvidenceError: KEY_UNSAFE, for a bad origin or key; SIGNATURE_INVALID, if `signer` signs with another key.
        """
        log = Verifier(origin, public_key)
        lock = -1
        try:
            layout.make_directory(directory)
            lock = take_lock(directory)
            create(directory, log, signer, head_file)
            return cls(
                directory,
                log,
                signer,
                clock,
                head_file=head_file,
                earlier_keys=earlier_keys,
                checkpoint_records=checkpoint_records,
                checkpoint_period_ms=int(checkpoint_period_s * 1000),
                lock=lock,
            )
        except BaseException as error:
            if lock >= 0:
                os.close(lock)
            if isinstance(error, OSError):
                raise unavailable(f"{directory}: {error.strerror or error}") from error
            raise

    @property
    def size(self) -> int:
        """Records appended, durable or not."""
        return self._builder.size

    @property
    def durable_size(self) -> int:
        """Records that are on disk."""
        return self._durable

    @property
    def failure(self) -> str | None:
        """Why nothing can be appended any more; None while all is well."""
        return self._failure

    @property
    def last_checkpoint(self) -> bytes:
        """The last signed checkpoint, a C2SP note; empty before the first."""
        return self._last_note

    def append(self, record: bytes) -> Pending:
        """Queue a record and give it its index. Never waits; it is not durable yet.

        Raises:
            CapacityError: LIMIT_EXCEEDED, when MAX_LEDGER_QUEUE_RECORDS or MAX_LEDGER_QUEUE_BYTES wait for the disk,
                or the record is over MAX_LEDGER_RECORD_BYTES. Nothing was queued.
            StateError: LEDGER_UNAVAILABLE, after a failure of the disk or after `close`.
        """
        return self._append(record, None)

    def _append(self, record: bytes, waiter: asyncio.Future[None] | None) -> Pending:
        """As `append`; `waiter` is told when the record is durable."""
        length = len(record)
        if not 0 < length <= limits.MAX_LEDGER_RECORD_BYTES:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED,
                f"a ledger record has 1 to {limits.MAX_LEDGER_RECORD_BYTES} bytes, not {length}",
            )
        digest = hashlib.sha256(record).digest()
        header = FRAME.pack(length, digest[:CHECK_BYTES])
        with self._lock:
            self._check_open()
            if self._full():
                raise CapacityError(
                    Reason.LIMIT_EXCEEDED, "the ledger's disk is behind: its queue is full; try again"
                )
            batch, index = self._open, self._builder.size
            batch.frames += (header, record)
            tiles = self._builder.append(digest)
            if tiles:
                batch.tiles += tiles
                if not (index + 1) % limits.LEDGER_SEGMENT_RECORDS:
                    batch.cuts.append(len(batch.frames))
            if waiter is not None:
                batch.waiters.append(waiter)
            if not batch.count:
                batch.since_ms = self._clock.monotonic_ms()
            batch.count += 1
            batch.size_bytes += length
            self._queued_records += 1
            self._queued_bytes += length
            # The first record starts the writer's nap; after that it is woken only when there is something to do.
            if self._idle and (batch.count in {1, limits.LEDGER_LINGER_RECORDS} or waiter is not None):
                self._idle = False
                self._work.notify()
        return Pending(index, batch)

    async def enqueue(self, record: bytes) -> Pending:
        """As `append`, but waits for room instead of refusing: back-pressure, nothing is dropped.

        Raises:
            CapacityError: LIMIT_EXCEEDED, only for a record of a size that is never taken.
            StateError: LEDGER_UNAVAILABLE.
        """
        while (room := self._wait_for_room()) is not None:
            await room
        return self.append(record)

    async def durable(self, pending: Pending) -> int:
        """Return the record's index once it is on disk. Cancelling the wait does not take the record back.

        Raises:
            StateError: LEDGER_UNAVAILABLE; the record may or may not be there after a restart.
        """
        batch = pending.batch
        if not batch.done:
            waiter: asyncio.Future[None] = self._own_loop().create_future()
            if not self._join_batch(batch, waiter):
                return pending.index
            await waiter
        return pending.index

    async def write(self, record: bytes) -> int:
        """Append with back-pressure and return the index when the record is durable."""
        while (room := self._wait_for_room()) is not None:
            await room
        waiter: asyncio.Future[None] = self._own_loop().create_future()
        pending = self._append(record, waiter)
        await waiter
        return pending.index

    async def checkpoint(self) -> bytes:
        """Make everything appended durable, sign its tree head and return the note, when it is published.

        Raises:
            StateError: LEDGER_UNAVAILABLE.
        """
        wanted: asyncio.Future[bytes] = self._own_loop().create_future()
        with self._lock:
            self._check_open()
            self._wanted.append(wanted)
            self._idle = False
            self._work.notify()
        return await wanted

    async def close(self) -> None:
        """Make everything durable, sign a last checkpoint and let the directory go. Safe to call twice."""
        with self._lock:
            self._closing = True
            self._work.notify()
        await asyncio.to_thread(self._join)

    def scan(self, start: int = 0) -> Iterator[Frame]:
        """Yield the durable records from index `start` on, each checked against its checksum.

        Raises:
            EvidenceError: DIGEST_MISMATCH, at a damaged record.
        """
        return self._reader.scan(start, upto=self._durable)

    def tail(self, count: int) -> Iterator[Frame]:
        """Yield the last `count` durable records, oldest first."""
        return self.scan(max(0, self._durable - count))

    def _join_batch(self, batch: Batch, waiter: asyncio.Future[None]) -> bool:
        """Have `waiter` told when the batch is durable; False when it is already."""
        with self._lock:
            if batch.done:
                return False
            if self._failure is not None:
                raise unavailable(self._failure)
            batch.waiters.append(waiter)
            if self._idle:
                self._idle = False
                self._work.notify()
            return True

    def _wait_for_room(self) -> asyncio.Future[None] | None:
        if not self._full():  # only this thread adds to the queue
            return None
        with self._lock:
            if self._failure is not None or not self._full():
                return None
            room: asyncio.Future[None] = self._own_loop().create_future()
            self._room.append(room)
            return room

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("a ledger serves one event loop")
        return loop

    def _full(self) -> bool:
        return (
            self._queued_records >= limits.MAX_LEDGER_QUEUE_RECORDS
            or self._queued_bytes >= limits.MAX_LEDGER_QUEUE_BYTES
        )

    def _check_open(self) -> None:
        if self._failure is not None:
            raise unavailable(self._failure)
        if self._closing:
            raise unavailable("it is closed")

    # the writer's thread

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as error:
            logger.exception("the ledger %s cannot be written", self.directory)
            self._fail(error)
        self._keeper.put(None)

    def _step(self) -> bool:
        """Write what is queued, sign if it is time; return whether to go on."""
        with self._lock:
            while not self._has_work():
                self._idle = True
                self._work.wait(self._nap_s())
            self._idle = False
            if self._failure is not None:
                return False
            batch, closing = self._open, self._closing
            self._writing = batch
            self._open = Batch(self._builder.size)
            snapshot = self._snapshot() if self._sign_due() else None
        if batch.count:
            self._write(batch)
        if snapshot is not None:
            self._keeper.put(snapshot)
        return not closing

    def _has_work(self) -> bool:
        return (
            bool(self._wanted)
            or self._closing
            or self._failure is not None
            or self._open.due(self._clock.monotonic_ms())
            or self._sign_due()
        )

    def _sign_due(self) -> bool:
        fresh = self._builder.size - self._signed
        late = self._clock.monotonic_ms() - self._signed_ms >= self._every_ms
        return bool(self._wanted) or fresh >= self._every_records or (fresh > 0 and (late or self._closing))

    def _nap_s(self) -> float | None:
        """How long there is nothing to do, seconds; None: until something is appended."""
        if self._builder.size == self._signed:
            return None
        due_ms = self._signed_ms + self._every_ms
        if self._open.count:
            due_ms = min(due_ms, self._open.since_ms + limits.LEDGER_LINGER_MS)
        return max(0.0, (due_ms - self._clock.monotonic_ms()) / 1000) + 0.001

    def _snapshot(self) -> Snapshot:
        wanted, self._wanted = self._wanted, []
        self._signing += wanted
        self._signed, self._signed_ms = self._builder.size, self._clock.monotonic_ms()
        head = Checkpoint(self.origin, self._builder.size, self._builder.root())

        def done(note: bytes) -> None:
            with self._lock:
                self._last_note = note
                self._signing = [future for future in self._signing if future not in wanted]
            settle(wanted, note)

        return Snapshot(head, self._builder.partial(), done)

    def _write(self, batch: Batch) -> None:
        start, index = 0, batch.first
        for cut in [*batch.cuts, len(batch.frames)]:
            if cut == start:
                continue
            segment = self._segment_for(index)
            segment.write(index, b"".join(batch.frames[start:cut]))
            segment.sync()
            index += (cut - start) // 2
            start = cut
        with self._lock:
            batch.done = True
            batch.frames.clear()
            self._durable = index
            self._queued_records -= batch.count
            self._queued_bytes -= batch.size_bytes
            waiters, batch.waiters = [*batch.waiters, *self._room], []
            self._room = []
        settle(waiters, None)
        if batch.tiles:
            self._keeper.put(batch.tiles)

    def _segment_for(self, index: int) -> Segment:
        """The segment that record `index` goes to. All earlier ones are complete and durable."""
        if self._segment is not None and index % limits.LEDGER_SEGMENT_RECORDS:
            return self._segment
        if self._segment is not None:
            self._segment.close()
        self._keeper.wait_sealed(index - limits.LEDGER_SEGMENT_RECORDS)
        if self._failure is not None:
            raise unavailable(self._failure)
        self._segment = Segment.create(self.directory, index)
        return self._segment

    def _fail(self, error: BaseException) -> None:
        """Nothing more is acknowledged until the ledger is opened again. From any thread."""
        text = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        with self._lock:
            if self._failure is None:
                self._failure = text  # a caller may be told; where the disk is, only the log says
            failed = unavailable(self._failure)
            waiters = [*self._open.waiters, *self._writing.waiters]
            room, wanted = self._room, [*self._wanted, *self._signing]
            self._open.waiters, self._writing.waiters, self._room = [], [], []
            self._wanted, self._signing = [], []
            self._work.notify()
        settle(waiters, None, failed)
        settle(room, None)  # they find out by themselves
        settle(wanted, b"", failed)

    def _join(self) -> None:
        self._thread.join()
        self._keeper.join()
        if self._file_lock >= 0:
            if self._segment is not None:
                self._segment.close()
            os.close(self._file_lock)
            self._file_lock = -1
