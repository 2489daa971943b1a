"""Which metadata and archives made up a policy that was in force at some time, out of a repository that kept them.

Versioned files of a repository are never removed, and of each past snapshot its last timestamp is kept
(`trust.superseded`). Nothing that is found is verified against a trusted root here; `trust.evidence_verify` does that.
"""

from collections.abc import Callable
from typing import Final

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from trust import limits
from trust.authoring import parse_metadata
from trust.chain import Stored, published_namespaces, sha256_of_target, verify_metadata
from trust.errors import EvidenceError, Reason
from trust.evidence import PolicyPart
from trust.metadata import expires_ms
from trust.repository import TIMESTAMP_PATH, metadata_path, target_file_path
from trust.superseded import superseded_path
from trust.verified import BASE_ROLE

Read = Callable[[str], bytes | None]
_BASE_FILE: Final = f"{BASE_ROLE}.json"


def find_policy(read: Read, version: int, sha256: bytes, at_ms: int) -> PolicyPart | None:
    """Return the policy with this base bundle as it was at `at_ms`; None when the repository does not have it whole.

    Of several snapshots with this base version, the first is taken whose lease ends after `at_ms`, else the last.

    Args:
        read: returns a repository file by path, or None when there is none.
        version: of the base policy (its TUF role).
        sha256: of the base bundle, 32 bytes.
        at_ms: Unix ms.

    Raises:
        EvidenceError: METADATA_INVALID, for a file that cannot be read.
    """
    found = _snapshot_at(read, version, at_ms)
    if found is None:
        return None
    timestamp, snapshot = found
    parsed = parse_metadata(snapshot, Snapshot).signed
    base = _needed(read, metadata_path(BASE_ROLE, version))
    names = [BASE_ROLE, *published_namespaces(parse_metadata(base, Targets).signed, parsed)]
    roles = {name: _needed(read, metadata_path(name, parsed.meta[f"{name}.json"].version)) for name in names}
    digests = {
        name: sha256_of_target(name, parse_metadata(data, Targets).signed) for name, data in roles.items()
    }
    if bytes.fromhex(digests[BASE_ROLE]) != sha256:
        return None  # another repository, or another history of this one
    stored = with_roots(read, Stored((), timestamp, snapshot, roles))
    if stored is None:
        return None
    archives = [
        (name, _needed(read, target_file_path(name, digest))) for name, digest in sorted(digests.items())
    ]
    return PolicyPart(stored, tuple(archives))


def with_roots(read: Read, stored: Stored) -> Stored | None:
    """Return `stored` with every root from the second on up to the newest under which it verifies; None without one.

    Later roots may name other keys; earlier ones are there for readers who trust the first.
    """
    roots: list[bytes] = []
    while len(roots) <= limits.MAX_ROOT_ROTATIONS:
        data = read(metadata_path("root", len(roots) + 1))
        if data is None:
            break
        roots.append(data)
    for count in range(len(roots), 0, -1):
        try:
            verify_metadata(parse_metadata(roots[count - 1], Root).signed, stored)
        except EvidenceError:
            continue
        return Stored(tuple(roots[1:count]), stored.timestamp, stored.snapshot, stored.roles)
    return None


def _needed(read: Read, path: str) -> bytes:
    data = read(path)
    if data is None:
        raise EvidenceError(Reason.METADATA_INVALID, f"the repository lacks {path}; restore it from a backup")
    return data


def _snapshot_at(read: Read, version: int, at_ms: int) -> tuple[bytes, bytes] | None:
    """Return (timestamp, snapshot) of the snapshot with this base version that was in force at `at_ms`."""
    newest = read(TIMESTAMP_PATH)
    if newest is None:
        return None
    last = parse_metadata(newest, Timestamp).signed.snapshot_meta.version
    chosen: tuple[bytes, bytes] | None = None
    for number in range(_first_with(read, version, last), last + 1):
        snapshot = read(metadata_path("snapshot", number))
        if snapshot is None or _base_version(parse_metadata(snapshot, Snapshot)) != version:
            break
        timestamp = newest if number == last else read(superseded_path(number))
        if timestamp is None:
            continue  # published before past timestamps were kept
        chosen = timestamp, snapshot
        if expires_ms(parse_metadata(timestamp, Timestamp).signed) > at_ms:
            break
    return chosen


def _first_with(read: Read, version: int, last: int) -> int:
    """Return the first snapshot whose base version is not below `version`: neither ever goes back."""
    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        snapshot = read(metadata_path("snapshot", middle))
        # a missing one is of an earlier history: root replaced the online keys, and versions began again
        if snapshot is None or _base_version(parse_metadata(snapshot, Snapshot)) < version:
            low = middle + 1
        else:
            high = middle
    return low


def _base_version(snapshot: Metadata[Snapshot]) -> int:
    meta = snapshot.signed.meta.get(_BASE_FILE)
    return 0 if meta is None else int(meta.version)
