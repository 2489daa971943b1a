"""Moves old parts of a ledger to another folder, and only what was checked there; proofs stay servable from both.

Moved are whole segments with their tiles of level 0 and their entry bundles. Higher tiles stay: appending needs them,
and they take a fraction. A running ledger may be archived: it does not touch these files any more.
"""

import os
from pathlib import Path

from trust import limits
from trust.edge.files import sync_directory, write_atomic
from trust.edge.ledger import layout, segments
from trust.edge.ledger.reader import Reader
from trust.edge.ledger.segments import DamageError
from trust.errors import Reason, StateError
from trust.tiles import ENTRIES, TILE_HEIGHT, TILE_WIDTH, Tile, TileBuilder

_KEPT_SEGMENTS = 2  # opening reads them


def archive(directory: Path, destination: Path, *, before: int | None = None) -> list[int]:
    """Move every segment that ends below record `before` (default: all that may go) to `destination`.

    The last two segments and what no checkpoint covers always stay.

    Returns:
        The first indices of the segments that were moved.

    Raises:
        InputError: NOT_FOUND, if there is no ledger.
        StateError: LEDGER_CONTRADICTED, if a segment is damaged; it stays where it is.
        OSError: a disk fails; what was not checked at its destination is still where it was.
    """
    signed = Reader(directory).size
    end = signed if before is None else min(before, signed)
    moved = []
    for first in layout.list_segments(directory)[:-_KEPT_SEGMENTS]:
        if first + limits.LEDGER_SEGMENT_RECORDS > end:
            break
        _move(directory, destination, first)
        moved.append(first)
    return moved


def _move(directory: Path, destination: Path, first: int) -> None:
    record_file = layout.segment_path(Path(), first)
    names = [record_file, *(Path(tile.path) for tile in _tiles(first))]
    layout.make_directory(destination)
    folders: set[Path] = {destination}
    for name in names:
        layout.make_directory((destination / name).parent)
        folders.add((destination / name).parent)
        source = directory / name
        if source.exists():  # else an earlier attempt moved it, which is checked below
            _copy(source, destination / name)
    for folder in folders:
        sync_directory(folder)
    _check(directory, destination, first)
    # The records go last: a segment that is still here is moved again after a crash.
    for name in reversed(names):
        (directory / name).unlink(missing_ok=True)
    sync_directory((directory / record_file).parent)


def _copy(source: Path, target: Path) -> None:
    if source.suffix != ".seg":
        write_atomic(target, source.read_bytes(), mode=layout.FILE_MODE)
        return
    temporary = target.with_name(f".{target.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, layout.FILE_MODE)
    try:
        with source.open("rb") as file:
            while chunk := file.read(1024 * 1024):
                layout.write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(target)


def _tiles(first: int) -> list[Tile]:
    start = first // TILE_WIDTH
    places = range(start, start + limits.LEDGER_SEGMENT_RECORDS // TILE_WIDTH)
    return [Tile(level, index) for index in places for level in (0, ENTRIES)]


def _check(directory: Path, destination: Path, first: int) -> None:
    """Make the tree of the copied records again and hold it against the copied tiles and the tile that stays."""
    builder, name = TileBuilder.empty(), layout.segment_path(destination, first)
    try:
        with name.open("rb") as file:
            for frame in segments.read_frames(file, first):
                for tile, data in builder.append(frame.digest):
                    shift = first // TILE_WIDTH >> (TILE_HEIGHT * max(tile.level, 0))
                    moved = Tile(tile.level, tile.index + shift)
                    root = directory if tile.level > 0 else destination
                    if (root / moved.path).read_bytes() != data:
                        raise _damaged(f"{root / moved.path} is not the tile of these records")
    except DamageError as damage:
        raise _damaged(f"{name}: {damage}") from None
    except FileNotFoundError as error:
        raise _damaged(f"{error.filename} is missing") from None
    if builder.size != limits.LEDGER_SEGMENT_RECORDS:
        raise _damaged(f"{name} has {builder.size} records")


def _damaged(what: str) -> StateError:
    return StateError(
        Reason.LEDGER_CONTRADICTED, f"{what}; nothing was removed; 'egm ledger verify' names every place"
    )
