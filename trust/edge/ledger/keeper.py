"""Writes tiles and checkpoints behind the records, in its own thread, in the order it is given them.

Full tiles become durable segment by segment, in the background: until then the records can make them again.
A checkpoint is signed only over records that are durable.
"""

import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trust import limits
from trust.checkpoint import Checkpoint, sign_checkpoint
from trust.edge.files import sync_directory, write_atomic
from trust.edge.ledger import layout
from trust.note import Sign
from trust.tiles import TILE_WIDTH, Tile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A durable tree head with its partial tiles, to be signed; `done` gets the note."""

    checkpoint: Checkpoint
    partial: list[tuple[Tile, bytes]]
    done: Callable[[bytes], None]


class Keeper:
    """The thread that writes tiles and checkpoints."""

    def __init__(
        self,
        directory: Path,
        *,
        sign: Sign,
        public_key: bytes,
        head_file: Path | None,
        sealed: int,
        unsynced: list[Tile],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Start the thread.

        Args:
            sealed: the tiles of all records below this index are durable.
            unsynced: tiles that were written before, and are perhaps not durable.
            failed: is told, once, why nothing more is written.
        """
        self._directory = directory
        self._sign, self._public_key, self._head_file = sign, public_key, head_file
        self._failed = failed
        self._jobs: deque[list[tuple[Tile, bytes]] | Snapshot | None] = deque()
        self._backlog = 0
        self._sealed = sealed
        self._dead = False
        self._changed = threading.Condition()
        self._unsynced = [directory / tile.path for tile in unsynced]
        self._finished = max((tile.index + 1 for tile in unsynced if tile.level == 1), default=0)
        self._thread = threading.Thread(target=self._run, name="egm-ledger-tiles", daemon=True)
        self._thread.start()

    def put(self, job: list[tuple[Tile, bytes]] | Snapshot | None) -> None:
        """Hand over full tiles, a snapshot, or the end (None). Waits while too many tiles are unwritten."""
        with self._changed:
            while self._backlog > limits.MAX_LEDGER_TILE_BACKLOG and not self._dead:
                self._changed.wait()
            self._jobs.append(job)
            self._backlog += len(job) if isinstance(job, list) else 0
            self._changed.notify_all()

    def wait_sealed(self, index: int) -> None:
        """Return when the tiles of all records below `index` are durable, or never will be."""
        with self._changed:
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
                if isinstance(job, Snapshot):
                    self._publish(job)
                else:
                    self._write(job)
        except Exception as error:
            logger.exception("the ledger %s cannot be written", self._directory)
            self._failed(error)
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
        with self._changed:
            self._backlog -= len(tiles)
            self._changed.notify_all()

    def _seal(self, index: int) -> None:
        """Make every tile of a finished segment durable."""
        folders: set[Path] = set()
        for path in self._unsynced:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            folders.update(parent for parent in path.parents if parent.is_relative_to(self._directory))
        for folder in sorted(folders, reverse=True):
            sync_directory(folder)
        self._unsynced.clear()
        with self._changed:
            self._sealed = max(self._sealed, index)
            self._changed.notify_all()

    def _publish(self, snapshot: Snapshot) -> None:
        note = sign_checkpoint(snapshot.checkpoint, self._sign, public_key=self._public_key)
        for tile, data in snapshot.partial:
            path = self._directory / tile.path
            layout.make_directory(path.parent)
            layout.replace_file(path, data)
        write_atomic(self._directory / layout.CHECKPOINT, note, mode=layout.FILE_MODE)
        if self._head_file is not None:
            write_atomic(self._head_file, note, mode=layout.FILE_MODE)
        snapshot.done(note)
