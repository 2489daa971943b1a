"""Which files a publication adds to the TUF repository, and whether it may be published at all.

Paths: "metadata/timestamp.json", "metadata/3.targets.json" (consistent snapshots), "targets/<sha256>.base.tar.gz",
"targets/payments/<sha256>.bundle.tar.gz"; "metadata/superseded/5.timestamp.json" is the last timestamp of snapshot 5:
evidence of what was decided under it needs one, and timestamp.json only ever is the newest.

`publish` verifies the repository it would make exactly as a node does, so what it returns is what nodes accept.
The parts of authoring live in `trust.authoring` and `trust.quorum` and are offered here too.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from trust.authoring import (
    Holders,
    T,
    add_signature,
    digest_of,
    find_key,
    first_targets,
    new_root,
    next_namespace,
    next_root,
    next_snapshot,
    next_targets,
    next_timestamp,
    parse_metadata,
    sign,
    signable_bytes,
)
from trust.chain import (
    Stored,
    VerifiedMetadata,
    require_quorum,
    verify_metadata,
)
from trust.errors import EvidenceError, Reason, StateError
from trust.metadata import check, check_root, expires_ms, lint_rotation
from trust.quorum import Quorum, quorum_of
from trust.repository_state import TIMESTAMP_PATH, RepositoryState, metadata_path, target_file_path
from trust.superseded import superseded
from trust.verified import BASE_ROLE, target_path

__all__ = [
    "TIMESTAMP_PATH",
    "Holders",
    "OnlineSigners",
    "RepositoryState",
    "add_signature",
    "delegator_of",
    "delegators_of",
    "digest_of",
    "find_key",
    "first_targets",
    "metadata_path",
    "new_root",
    "next_namespace",
    "next_root",
    "next_snapshot",
    "next_targets",
    "next_timestamp",
    "parse_metadata",
    "publish",
    "quorum_of",
    "quorums_of",
    "renew",
    "sign",
    "signable_bytes",
    "target_file_path",
]

_RENEW_SNAPSHOT_BEFORE_MS: Final = 10 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class OnlineSigners:
    """The keys that a control plane holds: they say what is newest and for how long, never what is allowed."""

    snapshot: Signer
    timestamp: Signer


def delegator_of(role: str, state: RepositoryState) -> Root | Targets:
    """Return who says, in force now, which keys sign `role`: root, or for a namespace the base policy.

    Raises:
        EvidenceError: NOT_AUTHORIZED, if nobody delegates to `role`.
    """
    if role in {"root", BASE_ROLE, "snapshot", "timestamp"}:
        return state.root_metadata().signed
    base = state.role_metadata(BASE_ROLE)
    delegated = None if base is None or base.signed.delegations is None else base.signed.delegations.roles
    if base is None or role not in (delegated or {}):
        raise EvidenceError(
            Reason.NOT_AUTHORIZED,
            f"the namespace {role[:63]!r} is not delegated; add it to the base policy and publish that first",
        )
    return base.signed


def delegators_of(role: str, metadata: Metadata[Any], state: RepositoryState) -> tuple[Root | Targets, ...]:
    """Return everybody whose quorum `metadata` needs: for root the one in force and the new one itself."""
    if role == "root" and isinstance(metadata.signed, Root):
        return (delegator_of(role, state), metadata.signed)
    return (delegator_of(role, state),)


def quorums_of(role: str, metadata: Metadata[Any], state: RepositoryState) -> tuple[Quorum, ...]:
    """Return the quorums that must all be met before `metadata` may be published."""
    return tuple(quorum_of(d, role, metadata) for d in delegators_of(role, metadata, state))


def publish(
    state: RepositoryState,
    role_metadata: Mapping[str, bytes],
    target_files: Mapping[str, bytes],
    signers: OnlineSigners,
    *,
    now_ms: int,
    lease_ttl_s: int,
) -> dict[str, bytes]:
    """Return the files that publishing adds, in the order in which they must be written (timestamp last).

    Args:
        state: what is in force.
        role_metadata: role ("root", "targets" or a namespace) to its signed next version, kept verbatim.
            Usually one; several when they only work together (a namespace and its new approvers).
        target_files: TUF target path ("base.tar.gz") to archive; an archive already in force may be left out.

    Raises:
        EvidenceError: QUORUM_NOT_MET, NOT_AUTHORIZED, METADATA_INVALID, METADATA_UNSAFE, DIGEST_MISMATCH,
            POLICY_EXPIRED. Nothing may be written.
        StateError: CONFLICT, if a version is not exactly the next one: propose again.
    """
    new = dict(state.roles)
    root_file, root = _next_root(state, role_metadata.get("root"), now_ms)
    policies = {role: data for role, data in role_metadata.items() if role != "root"}
    for role, data in policies.items():
        _check_next(role, parse_metadata(data, Targets), state, now_ms)
        new[role] = data
    base = parse_metadata(new[BASE_ROLE], Targets).signed if BASE_ROLE in new else None
    for role, data in policies.items():
        _require_policy_quorum(role, parse_metadata(data, Targets), root, base)
    files: dict[str, bytes] = {}
    for role, data in policies.items():
        files |= _target_file(role, parse_metadata(data, Targets).signed, target_files, state)
    unknown = sorted(set(target_files) - {target_path(role) for role in policies})
    if unknown:
        raise EvidenceError(
            Reason.METADATA_INVALID, f"no proposed metadata names the file {unknown[0][:120]!r}"
        )
    for role, data in policies.items():
        files[metadata_path(role, parse_metadata(data, Targets).signed.version)] = data
    if root_file is not None:
        files[metadata_path("root", root.version)] = root_file
    if base is None:
        return files  # a root rotation before the first policy
    snapshot = state.snapshot
    if policies or snapshot is None or not _signs(root, snapshot):
        files |= superseded(state.timestamp)
        snapshot = _sign_snapshot(state, policies, root, signers, now_ms)
        files[metadata_path("snapshot", parse_metadata(snapshot, Snapshot).signed.version)] = snapshot
    files[TIMESTAMP_PATH] = _sign_timestamp(state, snapshot, root, signers, now_ms=now_ms, ttl_s=lease_ttl_s)
    _verify_as_node(root, state.after(files), now_ms)
    return files


def renew(
    state: RepositoryState, signers: OnlineSigners, *, now_ms: int, lease_ttl_s: int
) -> dict[str, bytes]:
    """Return the files that extend the lease: the next timestamp, and a snapshot when it expires soon.

    Empty before the first publication: there is nothing to vouch for.

    Raises:
        EvidenceError: NOT_AUTHORIZED, if root no longer names the online key; POLICY_EXPIRED, if
            something below the lease has expired: nodes would refuse it.
    """
    if state.timestamp is None or state.snapshot is None:
        return {}
    root = state.root_metadata().signed
    files: dict[str, bytes] = {}
    snapshot = state.snapshot
    ends_ms = expires_ms(parse_metadata(snapshot, Snapshot).signed)
    if ends_ms - now_ms < _RENEW_SNAPSHOT_BEFORE_MS or not _signs(root, snapshot):
        files |= superseded(state.timestamp)
        snapshot = _sign_snapshot(state, {}, root, signers, now_ms)
        files[metadata_path("snapshot", parse_metadata(snapshot, Snapshot).signed.version)] = snapshot
    files[TIMESTAMP_PATH] = _sign_timestamp(state, snapshot, root, signers, now_ms=now_ms, ttl_s=lease_ttl_s)
    _verify_as_node(root, state.after(files), now_ms)
    return files


def _next_root(state: RepositoryState, data: bytes | None, now_ms: int) -> tuple[bytes | None, Root]:
    current = state.root_metadata().signed
    if data is None:
        return None, current
    metadata = parse_metadata(data, Root)
    _check_version("root", metadata.signed.version, current.version)
    check(lint_rotation(current, metadata.signed))
    check_root(metadata.signed, now_ms=now_ms)
    _check_not_expired("root", metadata, now_ms)
    require_quorum(current, "root", metadata, by="the root in force")
    require_quorum(metadata.signed, "root", metadata)
    return data, metadata.signed


def _check_next(role: str, metadata: Metadata[Targets], state: RepositoryState, now_ms: int) -> None:
    if role in {"snapshot", "timestamp"}:
        raise EvidenceError(Reason.NOT_AUTHORIZED, f"{role} metadata is made by the control plane alone")
    _check_version(role, metadata.signed.version, state.version_of(role))
    _check_not_expired(role, metadata, now_ms)


def _require_policy_quorum(role: str, metadata: Metadata[Targets], root: Root, base: Targets | None) -> None:
    """Check the signatures against the delegators that will be in force, so that the message is about them."""
    if role == BASE_ROLE:
        require_quorum(root, role, metadata)
    elif base is None:
        raise StateError(Reason.POLICY_MISSING, "publish a base policy before a namespace")
    else:
        require_quorum(base, role, metadata)


def _check_version(role: str, version: int, current: int) -> None:
    if version != current + 1:
        raise StateError(
            Reason.CONFLICT,
            f"{role} is at version {current}, so the next is {current + 1}, not {version}; propose again",
        )


def _check_not_expired(role: str, metadata: Metadata[Any], now_ms: int) -> None:
    if now_ms >= expires_ms(metadata.signed):
        raise EvidenceError(
            Reason.POLICY_EXPIRED, f"{role} version {metadata.signed.version} has expired; propose again"
        )


def _target_file(
    role: str, targets: Targets, target_files: Mapping[str, bytes], state: RepositoryState
) -> dict[str, bytes]:
    path = target_path(role)
    target = targets.targets.get(path)
    if target is None:
        raise EvidenceError(Reason.METADATA_UNSAFE, f"{role}: does not list {path}")
    data = target_files.get(path)
    if data is None:
        previous = state.role_metadata(role)
        if previous is not None and previous.signed.targets.get(path) == target:
            return {}
        raise EvidenceError(Reason.DIGEST_MISMATCH, f"the file {path} that {role} names was not given")
    sha256 = hashlib.sha256(data).hexdigest()
    if target.length != len(data) or target.hashes != {"sha256": sha256}:
        raise EvidenceError(Reason.DIGEST_MISMATCH, f"the file {path} is not the one that {role} names")
    return {target_file_path(role, sha256): data}


def _signs(root: Root, snapshot: bytes) -> bool:
    return quorum_of(root, "snapshot", parse_metadata(snapshot, Snapshot)).met


def _sign_snapshot(
    state: RepositoryState, changed: Mapping[str, bytes], root: Root, signers: OnlineSigners, now_ms: int
) -> bytes:
    previous = None if state.snapshot is None else parse_metadata(state.snapshot, Snapshot)
    return _sign_online(next_snapshot(previous, changed, now_ms=now_ms), signers.snapshot, root)


def _sign_timestamp(
    state: RepositoryState, snapshot: bytes, root: Root, signers: OnlineSigners, *, now_ms: int, ttl_s: int
) -> bytes:
    previous = None if state.timestamp is None else parse_metadata(state.timestamp, Timestamp)
    unsigned = next_timestamp(previous, snapshot, now_ms=now_ms, ttl_s=ttl_s)
    return _sign_online(unsigned, signers.timestamp, root)


def _sign_online(metadata: Metadata[T], signer: Signer, root: Root) -> bytes:
    return sign(metadata, signer, root).to_bytes()


def _verify_as_node(root: Root, state: RepositoryState, now_ms: int) -> VerifiedMetadata:
    """Accept the state after a publication only if a node will."""
    if state.timestamp is None or state.snapshot is None:
        raise StateError(Reason.POLICY_MISSING, "no policy has been published yet")
    stored = Stored((), state.timestamp, state.snapshot, state.roles)
    try:
        verified = verify_metadata(root, stored, now_ms=now_ms)
    except EvidenceError as error:
        if error.reason is not Reason.QUORUM_NOT_MET:
            raise
        raise EvidenceError(
            error.reason,
            f"{error.detail}. If keys were replaced: the holders who remain must sign a new version first",
        ) from None
    signed = {"root": verified.root, "snapshot": verified.snapshot, **verified.roles}
    for role, metadata in signed.items():
        if now_ms >= expires_ms(metadata):
            raise EvidenceError(
                Reason.POLICY_EXPIRED, f"{role} version {metadata.version} has expired; sign a new version"
            )
    return verified
