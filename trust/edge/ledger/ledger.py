"""One node's log, open for appending: many waiting callers share one write and one fdatasync.

Three threads take part: the callers' queues (`intake.py`), the writer's makes durable (`writer.py`), the keeper's
follows with tree, tiles and checkpoints (`keeper.py`).
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock, get_ident
from typing import Self

from trust import limits
from trust.edge.ledger import layout
from trust.edge.ledger.batch import Pending, unavailable
from trust.edge.ledger.intake import Intake, Pace
from trust.edge.ledger.keeper import Keeper
from trust.edge.ledger.opening import create, take_lock
from trust.edge.ledger.reader import Reader
from trust.edge.ledger.recovery import recover
from trust.edge.ledger.segments import Frame
from trust.edge.ledger.writer import Writer
from trust.note import Sign, Verifier
from trust.ports import Clock


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
        self._file_lock, self._joining = lock, Lock()
        self._reader = Reader(directory)
        self._last_note = found.checkpoint.data if found.checkpoint else b""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._intake = Intake(found.builder.size, clock.monotonic_ms)
        signed = found.checkpoint.checkpoint.size if found.checkpoint else 0
        self._keeper = Keeper(
            directory,
            found.builder,
            origin=log.name,
            sign=signer,
            public_key=log.public_key,
            head_file=head_file,
            sealed=found.sealed,
            unsynced=found.tiles,
            failed=self._intake.fail,
        )
        self._writer = Writer(
            directory,
            self._intake,
            self._keeper,
            Pace(checkpoint_records, checkpoint_period_ms, signed, clock.monotonic_ms()),
            segment=found.segment,
            note=self._signed,
        )

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
        return self._intake.size

    @property
    def durable_size(self) -> int:
        """Records that are on disk."""
        return self._intake.durable

    @property
    def first(self) -> int:
        """The first record that is still in the directory; earlier ones are archived."""
        return min(layout.list_segments(self.directory), default=0)

    @property
    def failure(self) -> str | None:
        """Why nothing can be appended any more; None while all is well."""
        return self._intake.failure

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
        return self._intake.put(record)

    async def enqueue(self, record: bytes) -> Pending:
        """As `append`, but waits for room instead of refusing: back-pressure, nothing is dropped.

        Raises:
            CapacityError: LIMIT_EXCEEDED, only for a record of a size that is never taken.
            StateError: LEDGER_UNAVAILABLE.
        """
        await self._room()
        return self._intake.put(record)

    async def durable(self, pending: Pending) -> int:
        """Return the record's index once it is on disk. Cancelling the wait does not take the record back.

        Raises:
            StateError: LEDGER_UNAVAILABLE; the record may or may not be there after a restart.
        """
        batch = pending.batch
        if not batch.done:
            waiter: asyncio.Future[None] = self._own_loop().create_future()
            if not self._intake.join(batch, waiter):
                return pending.index
            await waiter
        return pending.index

    async def write(self, record: bytes) -> int:
        """Append with back-pressure and return the index when the record is durable."""
        if self._intake.full():
            await self._room()
        waiter: asyncio.Future[None] = self._own_loop().create_future()
        index = self._intake.put_and_wait(record, waiter)
        await waiter
        return index

    async def checkpoint(self) -> bytes:
        """Make everything appended durable, sign its tree head and return the note, when it is published.

        Raises:
            StateError: LEDGER_UNAVAILABLE.
        """
        wanted: asyncio.Future[bytes] = self._own_loop().create_future()
        self._intake.ask(wanted)
        return await wanted

    async def close(self) -> None:
        """Make everything durable, sign a last checkpoint and let the directory go. Safe to call twice."""
        self._intake.close()
        await asyncio.to_thread(self._join)

    def scan(self, start: int = 0) -> Iterator[Frame]:
        """Yield the durable records from index `start` on, each checked against its checksum.

        Raises:
            EvidenceError: DIGEST_MISMATCH, at a damaged record.
        """
        return self._reader.scan(start, upto=self.durable_size)

    def tail(self, count: int) -> Iterator[Frame]:
        """Yield the last `count` durable records, oldest first."""
        return self.scan(max(0, self.durable_size - count))

    async def _room(self) -> None:
        while (room := self._intake.wait_for_room(self._own_loop())) is not None:
            await room

    def _signed(self, note: bytes) -> None:
        self._last_note = note

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None and self._loop_thread == get_ident():
            return self._loop  # asking asyncio costs a system call: a fifth of the time of an append
        loop = asyncio.get_running_loop()
        if self._loop is not None:
            raise RuntimeError("a ledger serves one event loop")
        self._loop, self._loop_thread = loop, get_ident()
        return loop

    def _join(self) -> None:
        with self._joining:  # a `close` that was cancelled goes on in its thread: no file is closed twice
            self._writer.join()
            self._keeper.join()
            if self._file_lock >= 0:
                os.close(self._file_lock)
                self._file_lock = -1
