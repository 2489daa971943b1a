"""What a set of stored TUF files proves, without a network and whatever the time is.

python-tuf's client refuses expired metadata, so it cannot tell a node that restarts during an outage what it
may still enforce within its grace. This module verifies the same chain (root, timestamp, snapshot, targets,
namespaces) by signatures, versions, lengths and digests, counts signatures per key material, runs the linter,
and reports the expiries instead of judging them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from trust.authoring import parse_metadata
from trust.errors import EvidenceError, Reason
from trust.metadata import (
    check,
    check_root,
    check_targets,
    expires_ms,
    lint_rotation,
    lint_snapshot,
    lint_timestamp,
)
from trust.quorum import Quorum, quorum_of
from trust.verified import BASE_ROLE, VerifiedPolicy, VerifiedTarget, target_path


@dataclass(frozen=True, slots=True)
class Stored:
    """Metadata files as received. `roles` maps "targets" and every delegated namespace to its file."""

    roots: tuple[bytes, ...]  # versions after the trusted root, ascending
    timestamp: bytes
    snapshot: bytes
    roles: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class VerifiedMetadata:
    """A consistent, quorum-signed set of metadata. Holding one says nothing about time."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    roles: Mapping[str, Targets]  # "targets" and every delegated namespace that has been published
    quorums: Mapping[str, Quorum]

    @property
    def versions(self) -> dict[str, int]:
        """TUF role to version."""
        top = {"root": self.root, "timestamp": self.timestamp, "snapshot": self.snapshot}
        return {name: signed.version for name, signed in (top | dict(self.roles)).items()}


def verify_roots(trusted_root: bytes, roots: Sequence[bytes], *, now_ms: int | None = None) -> Root:
    """Return the newest root, each version signed by the root quorum before it and by its own.

    Raises:
        EvidenceError: METADATA_INVALID, QUORUM_NOT_MET, METADATA_UNSAFE or KEY_UNSAFE.
    """
    metadata = parse_metadata(trusted_root, Root)
    check_root(metadata.signed, now_ms=now_ms)
    require_quorum(metadata.signed, "root", metadata)
    for data in roots:
        following = parse_metadata(data, Root)
        check(lint_rotation(metadata.signed, following.signed))
        check_root(following.signed, now_ms=now_ms)
        require_quorum(metadata.signed, "root", following, by="the root in force")
        require_quorum(following.signed, "root", following)
        metadata = following
    return metadata.signed


def verify_metadata(root: Root, stored: Stored, *, now_ms: int | None = None) -> VerifiedMetadata:
    """Verify everything below a verified `root`.

    Raises:
        EvidenceError: QUORUM_NOT_MET, DIGEST_MISMATCH, METADATA_INVALID or METADATA_UNSAFE.
    """
    quorums = {}
    timestamp = parse_metadata(stored.timestamp, Timestamp)
    quorums["timestamp"] = require_quorum(root, "timestamp", timestamp)
    check(lint_timestamp(timestamp.signed, now_ms=now_ms))
    _check_pinned("snapshot", timestamp.signed.snapshot_meta, stored.snapshot)
    snapshot = parse_metadata(stored.snapshot, Snapshot)
    quorums["snapshot"] = require_quorum(root, "snapshot", snapshot)
    _check_version("snapshot", snapshot, timestamp.signed.snapshot_meta)
    check(lint_snapshot(snapshot.signed, now_ms=now_ms))

    roles: dict[str, Targets] = {}
    base, quorums[BASE_ROLE] = _verify_role(root, BASE_ROLE, snapshot.signed, stored)
    check_targets(BASE_ROLE, base, root, now_ms=now_ms)
    roles[BASE_ROLE] = base
    for name in published_namespaces(base, snapshot.signed):
        namespace, quorums[name] = _verify_role(base, name, snapshot.signed, stored)
        check_targets(name, namespace, root, now_ms=now_ms)
        roles[name] = namespace
    return VerifiedMetadata(root, timestamp.signed, snapshot.signed, roles, quorums)


def verify_policy(verified: VerifiedMetadata, read_target: Callable[[str], bytes | None]) -> VerifiedPolicy:
    """Add the bundle archives, which `read_target` finds by SHA-256 (hex), and return the policy.

    Raises:
        EvidenceError: DIGEST_MISMATCH, if an archive is missing or is not the signed one.
    """
    targets = {role: _verify_target(role, verified, read_target) for role in verified.roles}
    others = [verified.root, verified.snapshot, *verified.roles.values()]
    return VerifiedPolicy(
        base=targets.pop(BASE_ROLE),
        namespaces=targets,
        versions=verified.versions,
        lease_expires_ms=expires_ms(verified.timestamp),
        expires_ms=min(expires_ms(signed) for signed in others),
    )


def published_namespaces(base: Targets, snapshot: Snapshot) -> list[str]:
    """Return the namespaces that `base` delegates and that have been published, sorted."""
    delegated = base.delegations.roles if base.delegations is not None else None
    return sorted(name for name in delegated or {} if f"{name}.json" in snapshot.meta)


def require_quorum(
    delegator: Root | Targets, role: str, metadata: Metadata[Any], *, by: str = "its own holders"
) -> Quorum:
    """Return the quorum of `metadata`, if it is met.

    Raises:
        EvidenceError: QUORUM_NOT_MET, saying who is missing; NOT_AUTHORIZED for an unknown role.
    """
    quorum = quorum_of(delegator, role, metadata)
    if not quorum.met:
        whose = f" by {by}" if role == "root" else ""
        raise EvidenceError(
            Reason.QUORUM_NOT_MET,
            f"{role} version {metadata.signed.version} needs{whose}: {quorum.explain()}",
        )
    return quorum


def sha256_of_target(role: str, targets: Targets) -> str:
    """Return the SHA-256 (hex) of the archive that linted metadata of `role` names."""
    return targets.targets[target_path(role)].hashes["sha256"]


def _verify_role(
    delegator: Root | Targets, role: str, snapshot: Snapshot, stored: Stored
) -> tuple[Targets, Quorum]:
    meta = snapshot.meta.get(f"{role}.json")
    data = stored.roles.get(role)
    if meta is None or data is None:
        raise EvidenceError(Reason.METADATA_INVALID, f"the metadata of {role} is missing")
    _check_pinned(role, meta, data)
    metadata = parse_metadata(data, Targets)
    quorum = require_quorum(delegator, role, metadata)
    _check_version(role, metadata, meta)
    return metadata.signed, quorum


def _verify_target(
    role: str, verified: VerifiedMetadata, read_target: Callable[[str], bytes | None]
) -> VerifiedTarget:
    signed, quorum = verified.roles[role], verified.quorums[role]
    target = signed.targets[target_path(role)]
    sha256 = sha256_of_target(role, signed)
    data = read_target(sha256)
    if data is None:
        raise EvidenceError(Reason.DIGEST_MISMATCH, f"the archive of {role} is missing")
    if len(data) != target.length or hashlib.sha256(data).hexdigest() != sha256:
        raise EvidenceError(Reason.DIGEST_MISMATCH, f"the archive of {role} is not the signed one")
    return VerifiedTarget(
        path=target.path,
        role=role,
        version=signed.version,
        sha256=sha256,
        data=data,
        signers=quorum.signed,
        threshold=quorum.threshold,
        expires_ms=expires_ms(signed),
    )


def _check_pinned(role: str, meta: MetaFile, data: bytes) -> None:
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        raise EvidenceError(
            Reason.DIGEST_MISMATCH, f"the metadata of {role} is not the file that was pinned"
        ) from None


def _check_version(role: str, metadata: Metadata[Any], meta: MetaFile) -> None:
    if metadata.signed.version != meta.version:
        raise EvidenceError(
            Reason.METADATA_INVALID, f"{role} is version {metadata.signed.version}, pinned is {meta.version}"
        )
