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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.attestation.measurement import ReferenceValues, parse_reference_values
from trust.bundle_archive import (
    DESCRIPTORS,
    ENTITIES,
    MANIFEST,
    MESH,
    REFERENCE_VALUES,
    SCHEMA,
    check_path,
    malformed,
    members,
    packed,
    too_large,
)
from trust.compact import members_once
from trust.errors import EvidenceError
from trust.mesh import MeshSettings, parse_mesh
from trust.nesting import line_too_deep
from trust.spiffe import check_name
from trust.verified import BASE_ROLE

__all__ = [
    "DESCRIPTORS",
    "ENTITIES",
    "FORMAT",
    "MANIFEST",
    "MAX_DESCRIPTION_CHARS",
    "MAX_NAME_CHARS",
    "MESH",
    "REFERENCE_VALUES",
    "RESERVED_NAMESPACES",
    "SCHEMA",
    "Bundle",
    "Manifest",
    "bundle_files",
    "check_path",
    "read_bundle",
    "read_claimed_bundle",
    "write_bundle",
]

FORMAT: Final = 1
# TUF role names; a namespace is a role, so it cannot have one of these names.
RESERVED_NAMESPACES: Final = frozenset({"root", "targets", "snapshot", "timestamp"})
MAX_NAME_CHARS: Final = 100
MAX_DESCRIPTION_CHARS: Final = 2000
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
        raise malformed(
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
        raise too_large(f"the archive has more than {limits.MAX_BUNDLE_ARCHIVE_BYTES} bytes")
    files: dict[str, bytes] = {}
    folded: set[str] = set()
    last = ""
    for path, data in members(archive):
        if path.lower() in folded:
            raise malformed(f"{path}: appears twice, or differs from another name in case only")
        if path < last:
            raise malformed(f"{path}: members are not in ascending order")
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
    return {path: data for path, data in members(archive) if path != MANIFEST}


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
        raise malformed(f"{MANIFEST}: is written, not given")
    content[MANIFEST] = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    archive = packed(content)
    read_bundle(archive, role=BASE_ROLE if namespace is None else namespace)
    return archive


def _assemble(files: Mapping[str, bytes], digest: str) -> Bundle:
    """Check `files` against the manifest, and give each its place."""
    if MANIFEST not in files:
        raise malformed(f"{MANIFEST} is missing")
    manifest = _parse_manifest(files[MANIFEST])
    content = {path: data for path, data in files.items() if path != MANIFEST}
    _check_files(manifest, content)
    if (MESH in content) != (manifest.namespace is None):
        raise malformed(
            f"{MESH} is missing from the base bundle"
            if manifest.namespace is None
            else f"{MESH} belongs to the base bundle alone, not to namespace {manifest.namespace!r}"
        )
    for required in (SCHEMA, ENTITIES):
        if required not in content:
            raise malformed(f"{required} is missing")
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
        raise malformed(f"{REFERENCE_VALUES} belongs to the base bundle alone")
    return parse_reference_values(content[REFERENCE_VALUES])


def _check_files(manifest: Manifest, content: Mapping[str, bytes]) -> None:
    if missing := sorted(manifest.files.keys() - content.keys()):
        raise malformed(f"{missing[0]}: named in {MANIFEST}, not in the archive")
    if extra := sorted(content.keys() - manifest.files.keys()):
        raise malformed(f"{extra[0]}: in the archive, not named in {MANIFEST}")
    for path, data in content.items():
        if hashlib.sha256(data).hexdigest() != manifest.files[path]:
            raise malformed(f"{path}: its content does not have the SHA-256 that {MANIFEST} states")


def _check_nesting(texts: Mapping[str, str]) -> None:
    """Refuse Cedar text that would overflow the stack of whoever parses it next."""
    for path, text in texts.items():
        if path == SCHEMA or path.startswith("policies/"):
            line = line_too_deep(text, schema=path == SCHEMA)
            if line is not None:
                raise malformed(f"{path}:{line}: nested or chained too deeply to be parsed safely")


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise malformed(f"{path}: is not UTF-8 text") from None


def _parse_manifest(data: bytes) -> Manifest:
    """Parse manifest.json; unknown, missing, repeated or mistyped fields are refused."""
    try:
        value = json.loads(_text(MANIFEST, data), object_pairs_hook=members_once)
    except (ValueError, RecursionError):
        raise malformed(f"{MANIFEST}: is not JSON, or repeats a key") from None
    if not isinstance(value, dict) or value.keys() != {"format", "name", "namespace", "description", "files"}:
        raise malformed(f"{MANIFEST}: must have exactly format, name, namespace, description and files")
    name, namespace, description, files = (value[k] for k in ("name", "namespace", "description", "files"))
    if type(value["format"]) is not int or value["format"] != FORMAT:
        raise malformed(
            f"{MANIFEST}: format {value['format']!r:.20} is not known to this version; it reads {FORMAT}"
        )
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise malformed(f"{MANIFEST}: name must be printable text of 1 to {MAX_NAME_CHARS} characters")
    if not isinstance(description, str) or not _shows(description):
        raise malformed(
            f"{MANIFEST}: description must be printable text of at most {MAX_DESCRIPTION_CHARS} characters"
        )
    if namespace is not None:
        _check_namespace(namespace)
    if not isinstance(files, dict) or not all(
        isinstance(d, str) and _SHA256.match(d) for d in files.values()
    ):
        raise malformed(f"{MANIFEST}: files must map each path to a SHA-256 in lower-case hex")
    return Manifest(FORMAT, name, namespace, description, files)


def _shows(text: str) -> bool:
    """Whether `text` is short and safe to show: a terminal must not obey what a bundle says."""
    return len(text) <= MAX_DESCRIPTION_CHARS and all(line.isprintable() for line in text.split("\n"))


def _check_namespace(namespace: object) -> None:
    if not isinstance(namespace, str) or namespace in RESERVED_NAMESPACES:
        raise malformed(f"{MANIFEST}: namespace must be a name other than {sorted(RESERVED_NAMESPACES)}")
    try:
        check_name(namespace)
    except (EvidenceError, UnicodeError):
        raise malformed(f"{MANIFEST}: namespace {namespace[:80]!r} is not a name (a-z 0-9 -)") from None
