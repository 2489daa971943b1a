"""A policy bundle: one archive, read safely, written deterministically.

The archive is a gzip-compressed tar (ustar) with regular files only. Reading is total:
any bytes give a `Bundle` or an `EvidenceError`. It is also strict: every header must be
exactly what `write_bundle` would write for that name and size, members are in ascending
order, and nothing follows the end. So one content has one tar form, and there is no
header field left in which two readers could disagree.
"""

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.attestation.measurement import ReferenceValues, parse_reference_values
from trust.errors import EvidenceError, Reason
from trust.mesh import MeshSettings, parse_mesh
from trust.nesting import line_too_deep
from trust.spiffe import check_name
from trust.verified import BASE_ROLE

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
SCHEMA: Final = "schema.cedarschema"
ENTITIES: Final = "entities.json"
DESCRIPTORS: Final = "descriptors.binpb"
MESH: Final = "mesh.json"
REFERENCE_VALUES: Final = "reference_values.json"  # accepted measurements of nodes

# TUF role names; a namespace is a role, so it cannot have one of these names.
RESERVED_NAMESPACES: Final = frozenset({"root", "targets", "snapshot", "timestamp"})
MAX_NAME_CHARS: Final = 100
MAX_DESCRIPTION_CHARS: Final = 2000

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_PIECE: Final = 16 * 1024  # of the archive, handed to zlib at one time
_ONE_FILE: Final = frozenset({MANIFEST, SCHEMA, ENTITIES, DESCRIPTORS, MESH, REFERENCE_VALUES})
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SAFE_PATH = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*\Z")
_POLICY_PATH = re.compile(rf"policies/({_SEGMENT}/)*{_SEGMENT}\.cedar\Z")
_TEST_PATH = re.compile(rf"tests/({_SEGMENT}/)*{_SEGMENT}\.yaml\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`: what the archive claims to hold. `files` maps path to SHA-256 (hex)."""

    format: int
    name: str
    namespace: str | None  # None: the base bundle
    description: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of one archive, parsed. `digest` is the SHA-256 (hex) of the archive bytes."""

    manifest: Manifest
    policies: Mapping[str, str]  # "policies/x.cedar" -> text
    schema: str  # Cedar schema, human syntax
    entities: str  # Cedar entities, JSON
    descriptors: bytes | None  # FileDescriptorSet
    mesh: MeshSettings | None  # base bundle only
    tests: Mapping[str, str]  # "tests/x.yaml" -> text
    digest: str
    reference_values: ReferenceValues | None = None  # base bundle only; None: measurements are not compared


def read_bundle(archive: bytes, *, role: str) -> Bundle:
    """Return the content of `archive`, which TUF role `role` signed.

    Total over arbitrary bytes. Does not judge the policies: `trust.policy.engine` does.

    Args:
        archive: gzip-compressed tar, at most limits.MAX_BUNDLE_ARCHIVE_BYTES.
        role: "targets" for the base bundle, else the namespace.

    Raises:
        EvidenceError: BUNDLE_TOO_LARGE (a cap of `trust.limits`, also while decompressing),
            BUNDLE_UNSAFE_PATH (a name or kind of member that could escape), BUNDLE_MALFORMED.
    """
    bundle = read_claimed_bundle(archive)
    expected = None if role == BASE_ROLE else role
    if bundle.manifest.namespace != expected:
        raise _malformed(
            f"{MANIFEST}: namespace is {bundle.manifest.namespace!r}, but role {role!r} signs this bundle"
        )
    return bundle


def read_claimed_bundle(archive: bytes) -> Bundle:
    """Return the content of `archive`, of whatever role its manifest claims to be.

    For tools that look at archives nobody has signed yet. A sidecar must use `read_bundle`.

    Raises:
        EvidenceError: as `read_bundle`.
    """
    if len(archive) > limits.MAX_BUNDLE_ARCHIVE_BYTES:
        raise _too_large(f"the archive has more than {limits.MAX_BUNDLE_ARCHIVE_BYTES} bytes")
    files: dict[str, bytes] = {}
    folded: set[str] = set()
    last = ""
    for path, data in _members(archive):
        if path.lower() in folded:
            raise _malformed(f"{path}: appears twice, or differs from another name in case only")
        if path < last:
            raise _malformed(f"{path}: members are not in ascending order")
        folded.add(path.lower())
        last = path
        files[path] = data
    return _assemble(files, hashlib.sha256(archive).hexdigest())


def bundle_files(archive: bytes) -> dict[str, bytes]:
    """Return the files of an archive by path, without manifest.json: what `write_bundle` was given.

    Raises:
        EvidenceError: as `read_bundle`.
    """
    read_claimed_bundle(archive)
    return {path: data for path, data in _members(archive) if path != MANIFEST}


def write_bundle(
    name: str, files: Mapping[str, bytes], *, namespace: str | None = None, description: str = ""
) -> bytes:
    """Return the archive of `files`; the same input gives the same bytes.

    The result has been read back, so it is never an archive that a sidecar refuses to read.

    Args:
        name: what the bundle is called, 1 to MAX_NAME_CHARS characters.
        files: path -> content, without manifest.json.
        namespace: None for the base bundle.
        description: for people.

    Raises:
        EvidenceError: as `read_bundle`.
    """
    manifest = {
        "format": FORMAT,
        "name": name,
        "namespace": namespace,
        "description": description,
        "files": {path: hashlib.sha256(files[path]).hexdigest() for path in sorted(files)},
    }
    content = dict(files)
    if MANIFEST in content:
        raise _malformed(f"{MANIFEST}: is written, not given")
    content[MANIFEST] = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)  # gzip framing; zlib writes no time and no file name
    chunks: list[bytes] = []
    for path in sorted(content):
        check_path(path)
        data = content[path]
        chunks.append(packer.compress(_header(path, len(data)) + data + _padding(len(data))))
    chunks.append(packer.compress(_END))
    chunks.append(packer.flush())
    archive = b"".join(chunks)
    read_bundle(archive, role=BASE_ROLE if namespace is None else namespace)
    return archive


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
        raise _malformed(
            f"{path}: not a file of a bundle (policies/*.cedar, tests/*.yaml, {sorted(_ONE_FILE)})"
        )
    return path


def _malformed(detail: str) -> EvidenceError:
    return EvidenceError(Reason.BUNDLE_MALFORMED, detail)


def _too_large(detail: str) -> EvidenceError:
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
            raise _too_large(f"unpacks to more than {limits.MAX_BUNDLE_UNPACKED_BYTES} bytes")
        parts: list[bytes] = []
        missing = count
        while missing:
            part = self._inflate(missing)
            if not part:
                raise _malformed("the archive ends in the middle of a member")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Check that the stream ended exactly here, with a good checksum and nothing behind it."""
        left = self._fed < len(self._archive)
        if self._inflate(1) or not self._zlib.eof or self._zlib.unused_data or left:
            raise _malformed("there is data after the end of the archive")

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
                raise _malformed(f"not a gzip archive, or damaged ({error})") from None
            self._pending = self._zlib.unconsumed_tail
            if not fed:  # and nothing came: the archive ends too early
                break
        return part


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of every member, each checked before its content is unpacked."""
    unpacker = _Unpacker(archive)
    count = 0
    while True:
        header = unpacker.read(_BLOCK)
        if not any(header):
            break
        count += 1
        if count > limits.MAX_BUNDLE_ENTRIES:
            raise _too_large(f"more than {limits.MAX_BUNDLE_ENTRIES} files")
        path, size = _parse_header(header)
        data = unpacker.read(size)
        if any(unpacker.read(-size % _BLOCK)):
            raise _malformed(f"{path}: padding is not zero")
        yield path, data
    if any(unpacker.read(_BLOCK)):
        raise _malformed("the end of the archive is not two zero blocks")
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
        raise _malformed(f"{path}: its size is not an octal number")
    size = int(digits, 8)
    if size > limits.MAX_BUNDLE_ENTRY_BYTES:
        raise _too_large(f"{path}: has more than {limits.MAX_BUNDLE_ENTRY_BYTES} bytes")
    if header != _header(path, size):
        raise _malformed(
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


def _assemble(files: Mapping[str, bytes], digest: str) -> Bundle:
    """Check `files` against the manifest, and give each its place."""
    if MANIFEST not in files:
        raise _malformed(f"{MANIFEST} is missing")
    manifest = _parse_manifest(files[MANIFEST])
    content = {path: data for path, data in files.items() if path != MANIFEST}
    _check_files(manifest, content)
    if (MESH in content) != (manifest.namespace is None):
        raise _malformed(
            f"{MESH} is missing from the base bundle"
            if manifest.namespace is None
            else f"{MESH} belongs to the base bundle alone, not to namespace {manifest.namespace!r}"
        )
    for required in (SCHEMA, ENTITIES):
        if required not in content:
            raise _malformed(f"{required} is missing")
    texts = {path: _text(path, data) for path, data in content.items() if path != DESCRIPTORS}
    _check_nesting(texts)
    return Bundle(
        manifest=manifest,
        policies={path: text for path, text in texts.items() if path.startswith("policies/")},
        schema=texts[SCHEMA],
        entities=texts[ENTITIES],
        descriptors=content.get(DESCRIPTORS),
        mesh=parse_mesh(content[MESH]) if MESH in content else None,
        tests={path: text for path, text in texts.items() if path.startswith("tests/")},
        digest=digest,
        reference_values=_reference_values(manifest, content),
    )


def _reference_values(manifest: Manifest, content: Mapping[str, bytes]) -> ReferenceValues | None:
    if REFERENCE_VALUES not in content:
        return None
    if manifest.namespace is not None:
        raise _malformed(f"{REFERENCE_VALUES} belongs to the base bundle alone")
    return parse_reference_values(content[REFERENCE_VALUES])


def _check_files(manifest: Manifest, content: Mapping[str, bytes]) -> None:
    if missing := sorted(manifest.files.keys() - content.keys()):
        raise _malformed(f"{missing[0]}: named in {MANIFEST}, not in the archive")
    if extra := sorted(content.keys() - manifest.files.keys()):
        raise _malformed(f"{extra[0]}: in the archive, not named in {MANIFEST}")
    for path, data in content.items():
        if hashlib.sha256(data).hexdigest() != manifest.files[path]:
            raise _malformed(f"{path}: its content does not have the SHA-256 that {MANIFEST} states")


def _check_nesting(texts: Mapping[str, str]) -> None:
    """Refuse Cedar text that would overflow the stack of whoever parses it next."""
    for path, text in texts.items():
        if path == SCHEMA or path.startswith("policies/"):
            line = line_too_deep(text, schema=path == SCHEMA)
            if line is not None:
                raise _malformed(f"{path}:{line}: nested or chained too deeply to be parsed safely")


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed(f"{path}: is not UTF-8 text") from None


def _parse_manifest(data: bytes) -> Manifest:
    """Parse manifest.json; unknown, missing, repeated or mistyped fields are refused."""
    try:
        value = json.loads(_text(MANIFEST, data), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise _malformed(f"{MANIFEST}: is not JSON, or repeats a key") from None
    if not isinstance(value, dict) or value.keys() != {"format", "name", "namespace", "description", "files"}:
        raise _malformed(f"{MANIFEST}: must have exactly format, name, namespace, description and files")
    name, namespace, description, files = (value[k] for k in ("name", "namespace", "description", "files"))
    if type(value["format"]) is not int or value["format"] != FORMAT:
        raise _malformed(
            f"{MANIFEST}: format {value['format']!r:.20} is not known to this version; it reads {FORMAT}"
        )
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise _malformed(f"{MANIFEST}: name must be printable text of 1 to {MAX_NAME_CHARS} characters")
    if not isinstance(description, str) or not _shows(description):
        raise _malformed(
            f"{MANIFEST}: description must be printable text of at most {MAX_DESCRIPTION_CHARS} characters"
        )
    if namespace is not None:
        _check_namespace(namespace)
    if not isinstance(files, dict) or not all(
        isinstance(d, str) and _SHA256.match(d) for d in files.values()
    ):
        raise _malformed(f"{MANIFEST}: files must map each path to a SHA-256 in lower-case hex")
    return Manifest(FORMAT, name, namespace, description, files)


def _shows(text: str) -> bool:
    """Whether `text` is short and safe to show: a terminal must not obey what a bundle says."""
    return len(text) <= MAX_DESCRIPTION_CHARS and all(line.isprintable() for line in text.split("\n"))


def _check_namespace(namespace: object) -> None:
    if not isinstance(namespace, str) or namespace in RESERVED_NAMESPACES:
        raise _malformed(f"{MANIFEST}: namespace must be a name other than {sorted(RESERVED_NAMESPACES)}")
    try:
        check_name(namespace)
    except (EvidenceError, UnicodeError):
        raise _malformed(f"{MANIFEST}: namespace {namespace[:80]!r} is not a name (a-z 0-9 -)") from None


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("repeated key")
    return result
