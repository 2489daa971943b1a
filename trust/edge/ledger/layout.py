"""Where each part of a ledger is below its directory.

checkpoint           the last signed checkpoint
key                  the C2SP verifier key that the ledger itself names (trust it only if you knew it)
lock                 held by the process that appends
archived             where older parts were moved to, if any were (`archived.py`)
records/N.seg        the records from index N (20 digits) on, at most LEDGER_SEGMENT_RECORDS
tile/…               C2SP tlog-tiles: hashes, and entry bundles with the SHA-256 of each record
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trust import limits
from trust.errors import Reason, StateError
from trust.merkle import HASH_BYTES
from trust.tiles import ENTRIES, TILE_WIDTH, Tile, decode_entries, encode_entries

if TYPE_CHECKING:
    from trust.edge.ledger.place import Place

CHECKPOINT: Final = "checkpoint"
KEY: Final = "key"
LOCK: Final = "lock"
RECORDS: Final = "records"
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
ARCHIVED: Final = "archived"
SEGMENT_SUFFIX: Final = ".seg"
_COPY_BYTES: Final = 1024 * 1024


def segment_path(directory: Path, first: int) -> Path:
    """Return the file of the segment that starts with record `first`."""
    return directory / segment_name(first)


def segment_name(first: int) -> str:
    """Return the name, in any place, of the segment that starts with record `first`."""
    return f"{RECORDS}/{first:020d}{SEGMENT_SUFFIX}"


def segment_of(index: int) -> int:
    """Return the first index of the segment that holds record `index`."""
    return index - index % limits.LEDGER_SEGMENT_RECORDS


def list_segments(place: "Path | Place") -> list[int]:
    """Return the first indices of the segments that are there, ascending, without a gap.

    Raises:
        StateError: LEDGER_CONTRADICTED, for a gap or a name that no segment has; SOURCE_UNAVAILABLE, when a remote
            place does not answer.
    """
    if isinstance(place, Path):
        try:
            names = sorted(path.name for path in (place / RECORDS).iterdir() if path.name[0] != ".")
        except FileNotFoundError:
            return []
        where = str(place / RECORDS)
    else:
        names = sorted(name.removeprefix(f"{RECORDS}/") for name in place.names(RECORDS))
        where = f"{place.url}/{RECORDS}"
    suffix = len(SEGMENT_SUFFIX)
    found = [int(name[:-suffix]) for name in names if name[:-suffix].isdecimal()]
    step = limits.LEDGER_SEGMENT_RECORDS
    expected = list(range(found[0], found[0] + step * len(names), step)) if found else []
    if found != expected or [segment_name(first) for first in found] != [f"{RECORDS}/{n}" for n in names]:
        raise StateError(
            Reason.LEDGER_CONTRADICTED,
            f"{where} has not the segments of one ledger: one is missing, or there is a foreign file",
        )
    return found


def make_directory(path: Path) -> None:
    """Create a private directory and its parents."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a private file as a whole, but not yet durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; a disk may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def copy_file(source: Path, target: Path) -> None:
    """Copy a private file in pieces, as a whole and durably; sync the directory afterwards."""
    temporary = target.with_name(f".{target.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    try:
        with source.open("rb") as file:
            while chunk := file.read(_COPY_BYTES):
                write_all(descriptor, chunk)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(target)


def fetch_tile(places: "Sequence[Place]", level: int, index: int, width: int) -> tuple[bytes, "Place"]:
    """Return a tile or entry bundle, and the first place that has it; a full one serves for a partial one.

    Raises:
        FileNotFoundError: no place has it.
        StateError: SOURCE_UNAVAILABLE, when a remote place does not answer.
    """
    for place in places:
        for held in {width: None, TILE_WIDTH: None}:
            try:
                data = place.read(Tile(level, index, held).path)
            except FileNotFoundError:
                continue
            if held == width:
                return data, place
            if level == ENTRIES:
                return encode_entries(decode_entries(data, held)[:width]), place
            return data[: width * HASH_BYTES], place
    raise FileNotFoundError(Tile(level, index, width).path)
