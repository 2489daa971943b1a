"""How records lie in a segment file, and where a damaged or torn one stops being readable.

    header   "egmseg1\n", first index (8 bytes), salt (16), SHA-256 of these 32 bytes (first 8)
    frame    length (4), SHA-256 of the record (first 8), the record
    marker   ff ff ff ff, index (8), SHA-256 of salt and index (first 8)

All numbers are big-endian. A marker stands before each batch that is written. A batch is written only when all before
it is on disk, so a marker says: every record below my index was durable. It tells a torn tail, which nobody was
promised, from damage to what was acknowledged. The salt keeps a record from containing a marker.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from trust import limits
from trust.edge.files import sync_directory, write_atomic
from trust.edge.ledger.layout import FILE_MODE, make_directory, segment_path, write_all
from trust.errors import EvidenceError, Reason

MAGIC: Final = b"egmseg1\n"
HEADER: Final = struct.Struct(">8sQ16s8s")
FRAME: Final = struct.Struct(">I8s")
MARKER: Final = struct.Struct(">IQ8s")
CHECK_BYTES: Final = 8
_MARK: Final = 0xFFFFFFFF
_SALT_BYTES: Final = 16
_CHUNK_BYTES: Final = 1024 * 1024


class DamageError(Exception):
    """The bytes at `offset`, where record `index` begins, are not what was written there."""

    def __init__(self, index: int, offset: int, what: str) -> None:
        super().__init__(f"record {index}, at byte {offset}: {what}")
        self.index, self.offset, self.what = index, offset, what


@dataclass(frozen=True, slots=True)
class Frame:
    """A record with its index, its SHA-256 and the place of its frame."""

    index: int
    digest: bytes
    record: bytes
    offset: int


def _check(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:CHECK_BYTES]


def frame_header(length: int, digest: bytes) -> bytes:
    """Return what stands before a record."""
    return FRAME.pack(length, digest[:CHECK_BYTES])


def marker(salt: bytes, index: int) -> bytes:
    """Return the marker that stands before the batch that begins with record `index`."""
    return MARKER.pack(_MARK, index, _check(salt + index.to_bytes(8, "big")))


class Segment:
    """The segment that is being written. Used by one thread."""

    def __init__(self, path: Path, salt: bytes) -> None:
        """Append to the file at `path`."""
        self.salt = salt
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    @classmethod
    def create(cls, directory: Path, first: int) -> "Segment":
        """Create the segment whose first record is `first`, durably."""
        path = segment_path(directory, first)
        make_directory(path.parent)
        head = MAGIC + first.to_bytes(8, "big") + os.urandom(_SALT_BYTES)
        write_atomic(path, head + _check(head), mode=FILE_MODE)
        sync_directory(directory)
        return cls(path, head[-_SALT_BYTES:])

    def write(self, first: int, frames: bytes) -> None:
        """Append a batch that begins with record `first`; durable only after `sync`."""
        write_all(self._descriptor, marker(self.salt, first) + frames)

    def sync(self) -> None:
        """Return when everything written is on disk."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_header(file: BinaryIO, first: int) -> bytes:
    """Return the salt of the segment that should begin with record `first`.

    Raises:
        DamageError: it does not.
    """
    file.seek(0)
    data = file.read(HEADER.size)
    head, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if len(data) != HEADER.size or _check(head) != check or head[:16] != MAGIC + first.to_bytes(8, "big"):
        raise DamageError(first, 0, "the header of the segment is damaged")
    return head[16:]


def read_frames(file: BinaryIO, first: int, start: tuple[int, int] | None = None) -> Iterator[Frame]:
    """Yield the records of a segment that should begin with record `first`, each checked.

    Args:
        start: the index and the offset of the frame to begin with (default: the first).

    Raises:
        DamageError: at the first byte that is not as written; also when the file ends inside a record.
    """
    salt = read_header(file, first)
    index, offset = start or (first, HEADER.size)
    end = first + limits.LEDGER_SEGMENT_RECORDS
    file.seek(offset)
    while head := file.read(4):
        if len(head) < 4:
            raise DamageError(index, offset, "the file ends inside a record")
        length = int.from_bytes(head, "big")
        if length == _MARK:
            expected = marker(salt, index)
            if head + file.read(MARKER.size - 4) != expected:
                raise DamageError(index, offset, "the marker before it is damaged")
            offset += MARKER.size
            continue
        if not 0 < length <= limits.MAX_LEDGER_RECORD_BYTES or index >= end:
            raise DamageError(index, offset, "its length is damaged")
        check = file.read(CHECK_BYTES)
        record = file.read(length)
        if len(record) < length:
            raise DamageError(index, offset, "the file ends inside it")
        digest = hashlib.sha256(record).digest()
        if digest[:CHECK_BYTES] != check:
            raise DamageError(index, offset, "it does not match its checksum")
        yield Frame(index, digest, record, offset)
        index += 1
        offset += FRAME.size + length


def read_frame(file: BinaryIO, index: int, offset: int) -> Frame:
    """Return the record whose frame is at `offset`.

    Raises:
        EvidenceError: DIGEST_MISMATCH, when its bytes are damaged.
    """
    file.seek(offset)
    head = file.read(FRAME.size)
    if len(head) == FRAME.size:
        length, check = FRAME.unpack(head)
        record = file.read(length) if length <= limits.MAX_LEDGER_RECORD_BYTES else b""
        digest = hashlib.sha256(record).digest()
        if record and len(record) == length and digest[:CHECK_BYTES] == check:
            return Frame(index, digest, record, offset)
    raise EvidenceError(Reason.DIGEST_MISMATCH, f"record {index} is damaged; see 'egm ledger verify'")


def frame_places(file: BinaryIO, index: int, offset: int) -> Iterator[tuple[int, int]]:
    """Yield (index, offset) of the frames from record `index` at `offset` on, without reading records.

    Ends where the file does, or where a length makes no sense.
    """
    file.seek(offset)
    while len(head := file.read(4)) == 4:
        length = int.from_bytes(head, "big")
        if length == _MARK:
            offset += MARKER.size
        elif 0 < length <= limits.MAX_LEDGER_RECORD_BYTES:
            yield index, offset
            index += 1
            offset += FRAME.size + length
        else:
            return
        file.seek(offset)


def acknowledged_later(file: BinaryIO, salt: bytes, index: int, offset: int) -> bool:
    """Return whether something after `offset` shows that record `index` was durable once."""
    file.seek(offset)
    pattern, kept = MARKER.pack(_MARK, 0, b"")[:4], b""
    while chunk := file.read(_CHUNK_BYTES):
        data = kept + chunk
        at = data.find(pattern)
        while 0 <= at <= len(data) - MARKER.size:
            later = int.from_bytes(data[at + 4 : at + 12], "big")
            if later > index and data[at : at + MARKER.size] == marker(salt, later):
                return True
            at = data.find(pattern, at + 1)
        kept = data[-(MARKER.size - 1) :]
    return False
