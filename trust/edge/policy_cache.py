"""The files of a node's policy: what was accepted, its archives, and the version floor.

    DIRECTORY/accepted.json     every metadata file of the policy in force, in one atomic file
    DIRECTORY/targets/SHA256    its archives
    DIRECTORY.floor.json        the highest version ever accepted per role: outside, so that wiping the cache
                                does not make a rollback acceptable

Nothing read here is trusted: the policy client verifies it again each time.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import Root

from trust.authoring import parse_metadata
from trust.chain import Stored, VerifiedMetadata
from trust.edge.files import write_atomic
from trust.errors import EvidenceError, Reason, StateError
from trust.keys import key_material
from trust.metadata import ONLINE_ROLES
from trust.spiffe import check_name
from trust.verified import BASE_ROLE

_SCRATCH_PREFIX: Final = ".refresh-"
_FORMAT: Final = 1
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class PolicyCache:
    """One directory, used by one process at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._accepted = directory / "accepted.json"
        self._targets = directory / "targets"

    def read(self, after_root: int) -> Stored | None:
        """Return what is cached, unverified, with the roots newer than version `after_root`; None when empty.

        Raises:
            EvidenceError: METADATA_INVALID, if the cache is damaged.
            StateError: INTERNAL, if the disk fails.
        """
        try:
            data = self._accepted.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(
                Reason.INTERNAL, f"the policy cache cannot be read: {error.strerror or error}"
            ) from error
        stored = _from_json(data)
        newer = (root for root in stored.roots if parse_metadata(root, Root).signed.version > after_root)
        return Stored(tuple(newer), stored.timestamp, stored.snapshot, stored.roles)

    def write(self, stored: Stored) -> None:
        """Replace what is cached; atomic and durable."""
        record = {
            "format": _FORMAT,
            "roots": [data.decode() for data in stored.roots],
            "timestamp": stored.timestamp.decode(),
            "snapshot": stored.snapshot.decode(),
            "roles": {role: data.decode() for role, data in stored.roles.items()},
        }
        write_atomic(self._accepted, json.dumps(record, sort_keys=True).encode())

    def read_target(self, sha256: str) -> bytes | None:
        """Return the archive with this SHA-256 (hex), or None if it is not here or damaged."""
        if len(sha256) != 64 or not sha256.isalnum():
            return None
        try:
            data = (self._targets / sha256).read_bytes()
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def write_target(self, data: bytes) -> None:
        """Keep an archive under its digest."""
        write_atomic(self._targets / hashlib.sha256(data).hexdigest(), data)

    def keep_targets(self, keep: set[str]) -> None:
        """Remove every archive but these (SHA-256, hex)."""
        for file in self._targets.iterdir():
            if file.name not in keep:
                file.unlink(missing_ok=True)

    def scratch(self) -> AbstractContextManager[str]:
        """Return a directory that is removed on leaving; what a kill leaves goes with the next refresh."""
        return tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=self._directory)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the directory against other processes.

        Raises:
            StateError: CONFLICT, if another process holds it.
        """
        self._targets.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    Reason.CONFLICT, "another process is using this policy cache; give each its own directory"
                ) from None
            for left in self._directory.glob(f"{_SCRATCH_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(descriptor)


class VersionFloor:
    """The highest version ever accepted of each role, and the newest root ever seen, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, verified: VerifiedMetadata) -> None:
        """Refuse what is older than anything accepted before.

        The floor of an online role holds for the keys it was recorded under: when root replaces a stolen
        online key, versions start again (TUF fast-forward recovery). Root itself has a floor without exception.

        Raises:
            StateError: POLICY_ROLLBACK; also when the floor file is damaged.
        """
        floor = self._read()
        versions = verified.versions
        delegations = verified.roles[BASE_ROLE].delegations
        delegated = set() if delegations is None else set(delegations.roles or {})
        for role, lowest in sorted(floor["versions"].items()):
            if role in ONLINE_ROLES and floor["online"].get(role) != _fingerprint(verified.root, role):
                continue
            found = versions.get(role)
            if found is None and role in delegated:
                raise StateError(
                    Reason.POLICY_ROLLBACK, f"{role} is gone although version {lowest} was accepted"
                )
            if found is not None and found < lowest:
                raise StateError(
                    Reason.POLICY_ROLLBACK, f"{role} is version {found}; {lowest} was already accepted"
                )

    def check_root(self, root: Root) -> None:
        """Refuse what is vouched for by an older root than one that was seen here, even if nothing under that was kept.

        Only for what comes from outside: what is on disk may be resumed within the lease that it had.

        Raises:
            StateError: POLICY_ROLLBACK; also when the floor file is damaged.
        """
        known = self._read()["known_root"]
        if root.version < known:
            raise StateError(
                Reason.POLICY_ROLLBACK,
                f"signed under root version {root.version}; version {known} is known here, and may have replaced keys",
            )

    def learned(self, root: Root) -> None:
        """Record a verified root, durably, although nothing under it could be kept: the keys it replaced are over."""
        floor = self._read()
        if root.version > floor["known_root"]:
            self._write({**floor, "known_root": root.version})

    def record(self, verified: VerifiedMetadata) -> None:
        """Record what was accepted, durably; roles that are gone keep their floor."""
        floor = self._read()
        new = {
            "versions": floor["versions"] | verified.versions,
            "online": {role: _fingerprint(verified.root, role) for role in ONLINE_ROLES},
            "known_root": max(floor["known_root"], verified.root.version),
        }
        if new != floor:
            self._write(new)

    def _write(self, floor: Mapping[str, Any]) -> None:
        text = json.dumps({"format": _FORMAT, **floor}, indent=2, sort_keys=True)
        write_atomic(self._path, text.encode() + b"\n")

    def _read(self) -> dict[str, Any]:
        try:
            floor = json.loads(self._path.read_bytes())
            versions, online = dict(floor["versions"]), dict(floor["online"])
            known_root = floor.get("known_root", 0)  # files of earlier releases do not have it
            if not all(type(version) is int for version in (*versions.values(), known_root)):
                raise ValueError("a version is not an integer")
        except FileNotFoundError:
            return {"versions": {}, "online": {}, "known_root": 0}
        except _MALFORMED:
            raise StateError(
                Reason.POLICY_ROLLBACK,
                f"the version floor {self._path.name} is damaged, so a rollback cannot be excluded; restore it, "
                "or delete it if you are sure that nobody feeds this node an old policy",
            ) from None
        return {"versions": versions, "online": online, "known_root": known_root}


def _fingerprint(root: Root, role: str) -> str:
    materials = sorted(key_material(root.keys[key_id]) for key_id in root.roles[role].keyids)
    return hashlib.sha256(b"\0".join(materials)).hexdigest()


def _from_json(data: bytes) -> Stored:
    try:
        record = json.loads(data)
        if record["format"] != _FORMAT:
            raise ValueError("unknown format")
        stored = Stored(
            roots=tuple(text.encode() for text in record["roots"]),
            timestamp=record["timestamp"].encode(),
            snapshot=record["snapshot"].encode(),
            roles={check_name(role): text.encode() for role, text in record["roles"].items()},
        )
    except (*_MALFORMED, EvidenceError):
        raise EvidenceError(Reason.METADATA_INVALID, "the policy cache is damaged") from None
    return stored
