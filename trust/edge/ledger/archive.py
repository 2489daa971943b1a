"""Moves old parts of a ledger to another place, and only what was read back and checked there.

Moved are whole segments with their tiles of level 0 and their entry bundles. Higher tiles stay: appending needs them,
and they take a fraction. A running ledger may be archived: it does not touch these files any more.

A step may be cut off anywhere: what is already there is not sent again, nothing is removed here before all of it was
read back from there and leads to the tree of this ledger, and the records are removed last.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from trust import limits
from trust.edge.files import sync_directory
from trust.edge.ledger import layout, segments
from trust.edge.ledger.archived import note_archived
from trust.edge.ledger.place import Folder, Place
from trust.edge.ledger.reader import Reader
from trust.edge.ledger.segments import DamageError
from trust.errors import EvidenceError, Reason, StateError
from trust.tiles import ENTRIES, TILE_HEIGHT, TILE_WIDTH, Tile, TileBuilder

_KEPT_SEGMENTS: Final = 2  # opening reads them
_LOCK: Final = "archive.lock"


def archive(
    directory: Path,
    destination: Path | Place,
    *,
    before: int | None = None,
    moved: Callable[[int], None] = lambda first: None,
) -> list[int]:
    """Move every segment that ends below record `before` (default: all that may go) to `destination`.

    The last two segments and what no checkpoint covers always stay. Where each went is written down in the directory.

    Args:
        moved: told the first record of each segment that was moved.

    Returns:
        The first records of the segments that were moved.

    Raises:
        InputError: NOT_FOUND, if there is no ledger.
        StateError: LEDGER_CONTRADICTED, if a segment or its copy is damaged; CONFLICT, if another process archives
            this ledger, or the destination holds another one; SOURCE_UNAVAILABLE, if it does not answer. What was
            not checked at its destination is still where it was, and the next attempt goes on there.
        OSError: a disk fails; likewise.
    """
    place = Folder(destination) if isinstance(destination, Path) else destination
    signed = Reader(directory).size
    end = signed if before is None else min(before, signed)
    done: list[int] = []
    with _alone(directory):
        for first in layout.list_segments(directory)[:-_KEPT_SEGMENTS]:
            if first + limits.LEDGER_SEGMENT_RECORDS > end:
                break
            _Move(directory, place, first).run()
            done.append(first)
            moved(first)
    return done


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, layout.FILE_MODE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                Reason.CONFLICT, f"another process is archiving {directory}; let it finish"
            ) from None
        yield
    finally:
        os.close(descriptor)


class _Move:
    """One segment on its way."""

    def __init__(self, directory: Path, place: Place, first: int) -> None:
        self._directory, self._place, self._first = directory, place, first
        self._segment = layout.segment_name(first)
        self._names = [self._segment, *(tile.path for tile in _tiles(first))]

    def run(self) -> None:
        with ThreadPoolExecutor(self._place.parallel) as pool:
            self._refuse_another_ledger()
            # The records go first: where they are not, no earlier attempt left anything.
            begun = self._send(self._segment, again=False)
            skipped = begun + sum(pool.map(partial(self._send, again=not begun), self._names[1:]))
            try:
                self._check(pool)
            except StateError as error:
                if error.reason is not Reason.LEDGER_CONTRADICTED or not skipped:
                    raise
                # What an earlier attempt left there may be damaged; what is here may be sound.
                list(pool.map(partial(self._send, again=True), self._names))
                self._check(pool)
        note_archived(self._directory, self._first, self._place.url)
        for name in reversed(self._names):  # the records last: a segment that is still here is moved again
            (self._directory / name).unlink(missing_ok=True)
        sync_directory((self._directory / self._segment).parent)

    def _refuse_another_ledger(self) -> None:
        """The header of a segment has a salt: two ledgers never have the same."""
        with (self._directory / self._segment).open("rb") as file:
            here = file.read(segments.HEADER.size)
        try:
            with self._place.open(self._segment) as file:
                there = file.read(segments.HEADER.size)
        except FileNotFoundError:
            return
        if len(there) == len(here) and there != here:
            raise StateError(
                Reason.CONFLICT,
                f"{self._place.url} holds another ledger ({self._segment} is not of this one); nothing was changed, "
                "give each ledger a prefix of its own",
            )

    def _send(self, name: str, *, again: bool) -> bool:
        """Copy one file, unless it is there (`again`: in any case); return whether it was left as it is."""
        source = self._directory / name
        if not source.exists():
            return True  # an earlier attempt moved it, which is checked below
        if not again:
            try:
                if self._place.size(name) == source.stat().st_size:
                    return True
            except FileNotFoundError:
                pass
        self._place.put(name, source)
        return False

    def _check(self, pool: ThreadPoolExecutor) -> None:
        """Make the tree of the copied records again; hold it against the copied tiles and the tile that stays."""
        builder, where = TileBuilder.empty(), f"{self._place.url}/{self._segment}"
        tiles: list[tuple[Tile, bytes]] = []
        try:
            with self._place.open(self._segment) as file:
                for frame in segments.read_frames(file, self._first):
                    tiles += builder.append(frame.digest)
            list(pool.map(self._compare, tiles))
        except DamageError as damage:
            raise _damaged(f"{where}: {damage}") from None
        except FileNotFoundError as error:
            raise _damaged(f"{self._place.url}: {error.filename} is missing") from None
        except EvidenceError as error:
            raise _damaged(error.detail) from None
        if builder.size != limits.LEDGER_SEGMENT_RECORDS:
            raise _damaged(f"{where} has {builder.size} records")

    def _compare(self, made: tuple[Tile, bytes]) -> None:
        tile, data = made
        shift = self._first // TILE_WIDTH >> (TILE_HEIGHT * max(tile.level, 0))
        name = Tile(tile.level, tile.index + shift).path
        place = Folder(self._directory) if tile.level > 0 else self._place
        if place.read(name) != data:
            raise _damaged(f"{place.url}/{name} is not the tile of these records")


def _tiles(first: int) -> list[Tile]:
    start = first // TILE_WIDTH
    places = range(start, start + limits.LEDGER_SEGMENT_RECORDS // TILE_WIDTH)
    return [Tile(level, index) for index in places for level in (0, ENTRIES)]


def _damaged(what: str) -> StateError:
    return StateError(
        Reason.LEDGER_CONTRADICTED, f"{what}; nothing was removed; 'egm ledger verify' names every place"
    )
