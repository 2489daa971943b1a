"""Grows the tree behind the records, and writes tiles and checkpoints, in its own thread, in the order it is told.

It is only told of records that are durable, so no checkpoint covers another one. Full tiles become durable segment by
segment, in the background: until then the records can make them again.
"""

import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trust import limits
from trust.checkpoint import Checkpoint, sign_checkpoint
from trust.edge.files import write_atomic
from trust.edge.ledger import layout
from trust.edge.ledger.flush import Flush
from trust.note import Sign
from trust.tiles import TILE_WIDTH, Tile, TileBuilder

logger = logging.getLogger(__name__)

_MAX_BACKLOG_ENTRIES: Final = limits.MAX_LEDGER_TILE_BACKLOG * TILE_WIDTH // 2  # two tiles for 256 entries


@dataclass(frozen=True, slots=True)
class SignJob:
    """The tree as it stands is to be signed; `done` gets the note."""

    done: Callable[[bytes], None]


class Keeper:
    """The thread that grows the tree, and writes tiles and checkpoints."""

    def __init__(
        self,
        directory: Path,
        builder: TileBuilder,
        *,
        origin: str,
        sign: Sign,
        public_key: bytes,
        head_file: Path | None,
        sealed: int,
        unsynced: list[Tile],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Start the thread.

        Args:
            builder: the tree of the records that are durable.
            sealed: the tiles of all records below this index are durable.
            unsynced: tiles that were written before, and are perhaps not durable.
            failed: is told, once, why nothing more is written.
        """
        self._directory, self._builder, self._origin = directory, builder, origin
        self._sign, self._public_key, self._head_file = sign, public_key, head_file
        self._failed = failed
        self._flush = Flush(directory)
        self._jobs: deque[list[bytes] | SignJob | None] = deque()
        self._backlog = 0  # entries that are not in the tree yet
        self._sealed = sealed
        self._dead = False
        self._changed = threading.Condition()
        self._unsynced = [directory / tile.path for tile in unsynced]
        self._finished = max((tile.index + 1 for tile in unsynced if tile.level == 1), default=0)
        self._thread = threading.Thread(target=self._run, name="egm-ledger-tiles", daemon=True)
        self._thread.start()

    def put(self, job: list[bytes] | SignJob | None) -> None:
        """Hand over the next entries, all durable; or a wish to sign; or the end (None).

        Waits while the tree is too far behind.
        """
        with self._changed:
            while self._backlog > _MAX_BACKLOG_ENTRIES and not self._dead:
                self._changed.wait()
            self._jobs.append(job)
            self._backlog += len(job) if isinstance(job, list) else 0
            # Entries that fill no tile can wait: waking this thread for each small batch costs more than the hashing.
            if not isinstance(job, list) or self._backlog >= TILE_WIDTH:
                self._changed.notify_all()

    def wait_sealed(self, index: int) -> None:
        """Return when the tiles of all records below `index` are durable, or never will be."""
        with self._changed:
            self._changed.notify_all()
            while self._sealed < index and not self._dead:
                self._changed.wait()

    def join(self) -> None:
        """Return when the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            if self._finished:
                self._seal(self._finished * limits.LEDGER_SEGMENT_RECORDS)
            while True:
                with self._changed:
                    while not self._jobs:
                        self._changed.wait()
                    job = self._jobs.popleft()
                if job is None:
                    break
                if isinstance(job, SignJob):
                    job.done(self._publish())
                else:
                    self._write(self._builder.extend(job))
                    with self._changed:
                        self._backlog -= len(job)
                        self._changed.notify_all()
        except Exception as error:
            logger.exception("the ledger %s cannot be written", self._directory)
            self._failed(error)
        self._flush.close()
        with self._changed:
            self._dead = True
            self._changed.notify_all()

    def _write(self, tiles: list[tuple[Tile, bytes]]) -> None:
        for tile, data in tiles:
            path = self._directory / tile.path
            layout.make_directory(path.parent)
            layout.replace_file(path, data)
            self._unsynced.append(path)
            if tile.width == TILE_WIDTH:  # its partial forms are not needed any more
                shutil.rmtree(path.with_name(path.name + ".p"), ignore_errors=True)
            if tile.level == 1:
                self._seal((tile.index + 1) * limits.LEDGER_SEGMENT_RECORDS)

    def _seal(self, index: int) -> None:
        """Make every tile of a finished segment durable."""
        self._flush.files(self._unsynced)
        self._unsynced.clear()
        with self._changed:
            self._sealed = max(self._sealed, index)
            self._changed.notify_all()

    def _publish(self) -> bytes:
        head = Checkpoint(self._origin, self._builder.size, self._builder.root())
        note = sign_checkpoint(head, self._sign, public_key=self._public_key)
        for tile, data in self._builder.partial():
            path = self._directory / tile.path
            layout.make_directory(path.parent)
            layout.replace_file(path, data)
        write_atomic(self._directory / layout.CHECKPOINT, note, mode=layout.FILE_MODE)
        if self._head_file is not None:
            write_atomic(self._head_file, note, mode=layout.FILE_MODE)
        return note
