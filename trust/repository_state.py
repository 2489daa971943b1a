"""What is in force in the TUF repository, and under which paths its files are (`trust.repository` lists them)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from trust import limits
from trust.authoring import parse_metadata
from trust.chain import verify_roots
from trust.errors import EvidenceError, Reason, StateError
from trust.metadata import expires_ms
from trust.verified import target_path

TIMESTAMP_PATH: Final = "metadata/timestamp.json"
_VERSIONED = re.compile(r"metadata/([1-9][0-9]{0,15})\.([a-z0-9-]{1,63})\.json\Z")


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """The metadata in force. Empty but for `root` until the first policy is published."""

    root: bytes
    timestamp: bytes | None = None
    snapshot: bytes | None = None
    roles: Mapping[str, bytes] = field(default_factory=dict)  # "targets" and namespaces, in force

    @classmethod
    def load(cls, read: Callable[[str], bytes | None], *, anchor: bytes | None = None) -> Self:
        """Read the state of a repository; `read` returns a file's bytes, or None when there is none.

        Args:
            read: by path, for example "metadata/2.root.json".
            anchor: the trusted root, of any version, when `read` is not trusted: the walk over roots begins at
                it, and no older root is ever read. None: version 1 of the repository itself, for its owner.

        Raises:
            StateError: POLICY_MISSING, when there is not even a first root.
            EvidenceError: METADATA_INVALID and the others of `trust.chain`.
        """
        first = read(metadata_path("root", 1)) if anchor is None else anchor
        if first is None:
            raise StateError(
                Reason.POLICY_MISSING, "the repository has no root metadata; run 'egm init' first"
            )
        version = parse_metadata(first, Root).signed.version
        roots: list[bytes] = []
        while len(roots) < limits.MAX_ROOT_ROTATIONS:
            following = read(metadata_path("root", version + len(roots) + 1))
            if following is None:
                break
            roots.append(following)
        verify_roots(first, roots)
        state = cls(root=roots[-1] if roots else first)
        timestamp = read(TIMESTAMP_PATH)
        if timestamp is None:
            return state
        pinned = parse_metadata(timestamp, Timestamp).signed.snapshot_meta
        snapshot = _required(read, metadata_path("snapshot", pinned.version))
        roles = {}
        for name, meta in parse_metadata(snapshot, Snapshot).signed.meta.items():
            role = name.removesuffix(".json")
            roles[role] = _required(read, metadata_path(role, meta.version))
        return replace(state, timestamp=timestamp, snapshot=snapshot, roles=roles)

    def after(self, files: Mapping[str, bytes]) -> Self:
        """Return the state once `files` (from `publish` or `renew`) have been written."""
        changes: dict[str, Any] = {}
        roles = dict(self.roles)
        for path, data in files.items():
            match = _VERSIONED.match(path)
            if path == TIMESTAMP_PATH:
                changes["timestamp"] = data
            elif match is not None and match[2] in {"root", "snapshot"}:
                changes[match[2]] = data
            elif match is not None:
                roles[match[2]] = data
        return replace(self, roles=roles, **changes)

    def root_metadata(self) -> Metadata[Root]:
        """Return the root in force."""
        return parse_metadata(self.root, Root)

    def role_metadata(self, role: str) -> Metadata[Targets] | None:
        """Return the metadata of "targets" or a namespace in force, or None when never published."""
        data = self.roles.get(role)
        return None if data is None else parse_metadata(data, Targets)

    def version_of(self, role: str) -> int:
        """Return the version of a role in force; 0 when never published."""
        if role == "root":
            return self.root_metadata().signed.version
        if role in {"timestamp", "snapshot"}:
            return self.versions().get(role, 0)
        metadata = self.role_metadata(role)
        return 0 if metadata is None else metadata.signed.version

    def versions(self) -> dict[str, int]:
        """Return TUF role to version, for everything that is in force."""
        found = {"root": self.version_of("root")} | {role: self.version_of(role) for role in self.roles}
        if self.timestamp is not None and self.snapshot is not None:
            found["timestamp"] = parse_metadata(self.timestamp, Timestamp).signed.version
            found["snapshot"] = parse_metadata(self.snapshot, Snapshot).signed.version
        return found

    def lease_expires_ms(self) -> int | None:
        """Return when the current lease ends, Unix ms; None before the first publication."""
        return (
            None if self.timestamp is None else expires_ms(parse_metadata(self.timestamp, Timestamp).signed)
        )


def metadata_path(role: str, version: int | None = None) -> str:
    """Return the repository path of a metadata file; the timestamp has no version."""
    return TIMESTAMP_PATH if role == "timestamp" else f"metadata/{version}.{role}.json"


def target_file_path(role: str, sha256: str) -> str:
    """Return the repository path of the archive of `role` with this SHA-256 (hex)."""
    directory, _, name = target_path(role).rpartition("/")
    return "/".join(part for part in ("targets", directory, f"{sha256}.{name}") if part)


def _required(read: Callable[[str], bytes | None], path: str) -> bytes:
    data = read(path)
    if data is None:
        raise EvidenceError(Reason.METADATA_INVALID, f"the repository lacks {path}; restore it from a backup")
    return data
