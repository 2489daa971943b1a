"""Where each part of a ledger is below its directory.

checkpoint           the last signed checkpoint
key                  the C2SP verifier key that the ledger itself names (trust it only if you knew it)
lock                 held by the process that appends
records/N.seg        the records from index N (20 digits) on, at most LEDGER_SEGMENT_RECORDS
tile/…               C2SP tlog-tiles: hashes, and entry bundles with the SHA-256 of each record
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trust import limits
from trust.errors import Reason, StateError
from trust.merkle import HASH_BYTES
from trust.tiles import ENTRIES, TILE_WIDTH, Tile, decode_entries, encode_entries

CHECKPOINT: Final = "checkpoint"
KEY: Final = "key"
LOCK: Final = "lock"
RECORDS: Final = "records"
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
_SUFFIX: Final = ".seg"


def segment_path(directory: Path, first: int) -> Path:
    """Return the file of the segment that starts with record `first`."""
    return directory / RECORDS / f"{first:020d}{_SUFFIX}"


def segment_of(index: int) -> int:
    """Return the first index of the segment that holds record `index`."""
    return index - index % limits.LEDGER_SEGMENT_RECORDS


def list_segments(directory: Path) -> list[int]:
    """Return the first indices of the segments that are there, ascending, without a gap.

    Raises:
        StateError: LEDGER_CONTRADICTED, for a gap or a name that no segment has.
    """
    try:
        names = sorted(path.name for path in (directory / RECORDS).iterdir() if path.name[0] != ".")
    except FileNotFoundError:
        return []
    found = [int(name[: -len(_SUFFIX)]) for name in names if name[: -len(_SUFFIX)].isdecimal()]
    step = limits.LEDGER_SEGMENT_RECORDS
    expected = list(range(found[0], found[0] + step * len(names), step)) if found else []
    if found != expected or [segment_path(directory, first).name for first in found] != names:
        raise StateError(
            Reason.LEDGER_CONTRADICTED,
            f"{directory / RECORDS} has not the segments of one ledger: one is missing, or there is a foreign file",
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


def fetch_tile(roots: Sequence[Path], level: int, index: int, width: int) -> bytes:
    """Return a tile or entry bundle from the first directory that has it; a full one serves for a partial one.

    Raises:
        FileNotFoundError: no directory has it.
    """
    for root in roots:
        for held in {width: None, TILE_WIDTH: None}:
            try:
                data = (root / Tile(level, index, held).path).read_bytes()
            except FileNotFoundError:
                continue
            if held == width:
                return data
            if level == ENTRIES:
                return encode_entries(decode_entries(data, held)[:width])
            return data[: width * HASH_BYTES]
    raise FileNotFoundError(Tile(level, index, width).path)
