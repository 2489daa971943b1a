"""What a ledger's directory proves when it is opened: where to go on, or why not to.

Read again are the records of the last two segments: the tiles of all earlier ones were made durable before the last
was begun. A tail that nobody was promised is cut; anything else that does not fit the signed checkpoint is refused.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from trust import limits
from trust.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from trust.edge.files import sync_directory
from trust.edge.ledger import layout, segments
from trust.edge.ledger.place import Folder
from trust.edge.ledger.segments import DamageError, Segment
from trust.errors import EvidenceError, Reason, StateError
from trust.merkle import root_of
from trust.note import Verifier
from trust.tiles import TILE_WIDTH, Tile, TileBuilder, TileTree

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """Where a ledger goes on."""

    builder: TileBuilder
    segment: Segment | None
    checkpoint: SignedCheckpoint | None
    sealed: int  # the tiles of all records below this index are durable
    tiles: list[Tile] = field(default_factory=list)  # full ones that are there, perhaps not durably


def recover(
    directory: Path, log: Verifier, head_file: Path | None, earlier_keys: Sequence[bytes] = ()
) -> Recovered:
    """Return where to go on, after cutting a torn tail.

    Args:
        log: the key and origin that every checkpoint must carry (or one of `earlier_keys`, 32 bytes each).
        head_file: a copy of the last checkpoint on another disk, if one is kept; it notices that the whole
            directory is an older copy.

    Raises:
        StateError: LEDGER_CONTRADICTED, naming the place; no record was changed.
        OSError: the disk does not answer.
    """
    firsts = layout.list_segments(directory)
    logs = [log, *(Verifier(log.name, key) for key in earlier_keys)]
    checkpoint = _load(directory / layout.CHECKPOINT, logs)
    heads = [signed for signed in (checkpoint, _load(head_file, logs)) if signed is not None]
    if checkpoint is None and (firsts or heads):
        raise _contradicted(f"{directory} has lost its checkpoint; was the directory emptied or replaced?")
    _remove_leftovers(directory)
    scan = _Scan(directory, [signed.checkpoint for signed in heads])
    segment = scan.run(firsts)
    return Recovered(scan.builder, segment, checkpoint, scan.base, scan.tiles)


class _Scan:
    """Reads the last records and holds them against tiles and checkpoints."""

    def __init__(self, directory: Path, heads: list[Checkpoint]) -> None:
        self.directory = directory
        self.base = 0
        self.builder = TileBuilder.empty()
        self.tiles: list[Tile] = []
        self._heads = heads
        self._signed = max((head.size for head in heads), default=0)

    def run(self, firsts: list[int]) -> Segment | None:
        tail = firsts[-2:]
        if tail and tail[0]:
            self._start(tail[0])
        self._compare()
        segment = None
        for first in tail:
            segment = self._read(first, last=first == tail[-1])
        for head in self._heads:
            if head.size > self.builder.size:
                raise _contradicted(
                    f"{head.size} records were signed, but {self.directory} has only {self.builder.size}: an older "
                    "copy was restored, or records were removed"
                )
        return segment

    def _start(self, base: int) -> None:
        """Take up the tree at a segment's beginning, from its full tiles."""
        tree = TileTree(base, self._fetch)
        try:
            self.builder = TileBuilder(base, tree.read, ())
            roots = {head.size: root_of(head.size, tree.read) for head in self._heads if head.size <= base}
        except FileNotFoundError as error:
            raise _contradicted(f"{self.directory / str(error)} is missing") from None
        except EvidenceError as error:
            raise _contradicted(error.detail) from None
        self.base = base
        for head in self._heads:
            if head.size in roots and roots[head.size] != head.root:
                raise self._other_root(head)

    def _fetch(self, level: int, index: int, width: int) -> bytes:
        if width < TILE_WIDTH:  # only full tiles are ever made durable
            raise FileNotFoundError(Tile(level, index, width).path)
        return layout.fetch_tile([Folder(self.directory)], level, index, width)[0]

    def _compare(self) -> None:
        """Hold the tree at its size against a checkpoint of this size."""
        for head in self._heads:
            if head.size == self.builder.size:
                if self.builder.root() != head.root:
                    raise self._other_root(head)
                for tile, data in self.builder.partial():
                    self._hold(tile, data, keep=False)

    def _other_root(self, head: Checkpoint) -> StateError:
        return _contradicted(f"the first {head.size} records are not those that its checkpoint signed")

    def _read(self, first: int, *, last: bool) -> Segment | None:
        path = layout.segment_path(self.directory, first)
        with path.open("rb") as file:
            try:
                for frame in segments.read_frames(file, first):
                    for tile, data in self.builder.append(frame.digest):
                        self._hold(tile, data, keep=True)
                    if self.builder.size <= self._signed:
                        self._compare()
                size = first + limits.LEDGER_SEGMENT_RECORDS
                if not last and self.builder.size != size:
                    raise DamageError(
                        self.builder.size, file.tell(), "it is missing, but later ones are there"
                    )
                salt = _salt(file, first)
            except DamageError as damage:
                self._judge(damage, path, file, first, last=last)
                salt = _salt(file, first)
                _cut(path, damage)
        if not last:
            return None
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a killed process leaves records that only the page cache has
        finally:
            os.close(descriptor)
        return Segment(path, salt)

    def _judge(self, damage: DamageError, path: Path, file: BinaryIO, first: int, *, last: bool) -> None:
        """Refuse unless what is damaged is a tail that was never acknowledged."""
        where = f"{path}: {damage}"
        if damage.index < self._signed:
            raise _contradicted(f"{where}; it was signed")
        if not last or damage.offset == 0:
            raise _contradicted(where)
        if segments.acknowledged_later(file, _salt(file, first), damage.index, damage.offset):
            raise _contradicted(f"{where}; it was acknowledged before later records were written")

    def _hold(self, tile: Tile, data: bytes, *, keep: bool) -> None:
        """Hold a tile on disk against the one that follows from the records."""
        try:
            found = (self.directory / tile.path).read_bytes()
        except FileNotFoundError:
            found = b""
        if keep:
            self.tiles.append(tile)
        if found == data:
            return
        if len(found) == len(data) and any(found):
            raise _contradicted(f"{self.directory / tile.path} is not the tile of these records")
        if keep:  # a crash took it before it was durable
            path = self.directory / tile.path
            layout.make_directory(path.parent)
            layout.replace_file(path, data)


def _load(path: Path | None, logs: Sequence[Verifier]) -> SignedCheckpoint | None:
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    problem = ""
    for log in logs:
        try:
            return open_checkpoint(data, log)
        except EvidenceError as error:
            problem = problem or error.detail
    raise _contradicted(f"{path}: {problem}")


def _salt(file: BinaryIO, first: int) -> bytes:
    file.seek(0)
    return segments.read_header(file, first)


def _cut(path: Path, damage: DamageError) -> None:
    logger.warning("%s: cut a tail that was never acknowledged (%s)", path, damage)
    with path.open("r+b") as file:
        file.truncate(damage.offset)
        os.fsync(file.fileno())


def _remove_leftovers(directory: Path) -> None:
    """Remove temporary files of a process that died."""
    for folder in (directory, directory / layout.RECORDS):
        for path in folder.glob(".*.tmp"):
            path.unlink()
    sync_directory(directory)


def _contradicted(what: str) -> StateError:
    return StateError(
        Reason.LEDGER_CONTRADICTED,
        f"{what}; keep the directory as evidence ('egm ledger verify' names every place) and start a new one",
    )
