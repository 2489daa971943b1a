"""The archive of a bundle: which files it may hold, and its one form as a gzip-compressed tar.

Every header must be exactly what `packed` would write for that name and size, and nothing follows the end, so there is
no header field left in which two readers could disagree. Total over arbitrary bytes, and bounded while unpacking.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from trust import limits
from trust.errors import EvidenceError, Reason

MANIFEST: Final = "manifest.json"
SCHEMA: Final = "schema.cedarschema"
ENTITIES: Final = "entities.json"
DESCRIPTORS: Final = "descriptors.binpb"
MESH: Final = "mesh.json"
REFERENCE_VALUES: Final = "reference_values.json"  # accepted measurements of nodes

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_PIECE: Final = 16 * 1024  # of the archive, handed to zlib at one time
_ONE_FILE: Final = frozenset({MANIFEST, SCHEMA, ENTITIES, DESCRIPTORS, MESH, REFERENCE_VALUES})
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SAFE_PATH = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*\Z")
_POLICY_PATH = re.compile(rf"policies/({_SEGMENT}/)*{_SEGMENT}\.cedar\Z")
_TEST_PATH = re.compile(rf"tests/({_SEGMENT}/)*{_SEGMENT}\.yaml\Z")


def check_path(path: str) -> str:
    """Return `path` if a bundle may hold a file of that name.

    Raises:
        EvidenceError: BUNDLE_UNSAFE_PATH (absolute, "..", backslash, other characters, too long)
            or BUNDLE_MALFORMED (safe, but not a file that bundles have).
    """
    if len(path.encode("utf-8", "surrogatepass")) > limits.MAX_BUNDLE_PATH_BYTES or not _SAFE_PATH.match(
        path
    ):
        raise EvidenceError(
            Reason.BUNDLE_UNSAFE_PATH,
            f"{path[:100]!r}: use a relative path of A-Z a-z 0-9 . _ -, no segment starting with a dot",
        )
    if path not in _ONE_FILE and not _POLICY_PATH.match(path) and not _TEST_PATH.match(path):
        raise malformed(
            f"{path}: not a file of a bundle (policies/*.cedar, tests/*.yaml, {sorted(_ONE_FILE)})"
        )
    return path


def malformed(detail: str) -> EvidenceError:
    """Return the refusal of content that no bundle has."""
    return EvidenceError(Reason.BUNDLE_MALFORMED, detail)


def too_large(detail: str) -> EvidenceError:
    """Return the refusal of what is above a cap."""
    return EvidenceError(Reason.BUNDLE_TOO_LARGE, detail)


class _Unpacker:
    """Decompresses on demand, so that a bomb costs what was asked for and never more."""

    def __init__(self, archive: bytes) -> None:
        self._zlib = zlib.decompressobj(31)
        self._archive = memoryview(archive)
        self._fed = 0  # bytes of the archive that zlib was given
        self._pending = b""  # given, and not consumed yet
        self._total = 0

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes, or raise BUNDLE_MALFORMED (short) or BUNDLE_TOO_LARGE."""
        self._total += count
        if self._total > limits.MAX_BUNDLE_UNPACKED_BYTES:
            raise too_large(f"unpacks to more than {limits.MAX_BUNDLE_UNPACKED_BYTES} bytes")
        parts: list[bytes] = []
        missing = count
        while missing:
            part = self._inflate(missing)
            if not part:
                raise malformed("the archive ends in the middle of a member")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Check that the stream ended exactly here, with a good checksum and nothing behind it."""
        left = self._fed < len(self._archive)
        if self._inflate(1) or not self._zlib.eof or self._zlib.unused_data or left:
            raise malformed("there is data after the end of the archive")

    def _inflate(self, at_most: int) -> bytes:
        # In small pieces: zlib copies what it does not consume, each time, so that many small members before a large
        # one would cost their product.
        part = b""
        while not part and not self._zlib.eof:
            if not self._pending:
                self._pending = bytes(self._archive[self._fed : self._fed + _PIECE])
                self._fed += len(self._pending)
            fed = bool(self._pending)
            try:
                part = self._zlib.decompress(self._pending, at_most)
            except zlib.error as error:
                raise malformed(f"not a gzip archive, or damaged ({error})") from None
            self._pending = self._zlib.unconsumed_tail
            if not fed:  # and nothing came: the archive ends too early
                break
        return part


def members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of every member, each checked before its content is unpacked."""
    unpacker = _Unpacker(archive)
    count = 0
    while True:
        header = unpacker.read(_BLOCK)
        if not any(header):
            break
        count += 1
        if count > limits.MAX_BUNDLE_ENTRIES:
            raise too_large(f"more than {limits.MAX_BUNDLE_ENTRIES} files")
        path, size = _parse_header(header)
        data = unpacker.read(size)
        if any(unpacker.read(-size % _BLOCK)):
            raise malformed(f"{path}: padding is not zero")
        yield path, data
    if any(unpacker.read(_BLOCK)):
        raise malformed("the end of the archive is not two zero blocks")
    unpacker.finish()


def _parse_header(header: bytes) -> tuple[str, int]:
    """Return the path and size of a regular file; refuse every other header."""
    prefix, name = header[345:500].rstrip(b"\0"), header[:100].rstrip(b"\0")
    raw = prefix + b"/" + name if prefix else name
    try:
        path = raw.decode("ascii")
    except UnicodeDecodeError:
        raise EvidenceError(Reason.BUNDLE_UNSAFE_PATH, f"{raw[:100]!r}: a file name must be ASCII") from None
    if header[156:157] != b"0":
        raise EvidenceError(
            Reason.BUNDLE_UNSAFE_PATH, f"{path[:100]!r}: only regular files are accepted, no links or devices"
        )
    check_path(path)
    digits = header[124:135]
    if not digits.isdigit() or digits.strip(b"01234567"):
        raise malformed(f"{path}: its size is not an octal number")
    size = int(digits, 8)
    if size > limits.MAX_BUNDLE_ENTRY_BYTES:
        raise too_large(f"{path}: has more than {limits.MAX_BUNDLE_ENTRY_BYTES} bytes")
    if header != _header(path, size):
        raise malformed(
            f"{path}: its tar header is not in canonical form; build archives with: egm policy build"
        )
    return path, size


def _header(path: str, size: int) -> bytes:
    """Return the one tar header for a file of this name and size: mode 0644, no owner, no time."""
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError:
        raise EvidenceError(Reason.BUNDLE_UNSAFE_PATH, f"{path[:100]!r}: the name is too long") from None


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def packed(content: Mapping[str, bytes]) -> bytes:
    """Return the archive of files, by path; the same input gives the same bytes.

    Raises:
        EvidenceError: BUNDLE_UNSAFE_PATH, BUNDLE_MALFORMED, for a name that no bundle has.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)  # gzip framing; zlib writes no time and no file name
    chunks: list[bytes] = []
    for path in sorted(content):
        check_path(path)
        data = content[path]
        chunks.append(packer.compress(_header(path, len(data)) + data + _padding(len(data))))
    chunks.append(packer.compress(_END))
    chunks.append(packer.flush())
    return b"".join(chunks)
