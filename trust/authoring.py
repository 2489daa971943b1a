"""What the next version of each TUF role says: unsigned metadata, made from the previous version.

Nothing here decides whether it may be published; that is `trust.repository.publish`.
"""

import copy
import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from trust import limits
from trust.errors import CapacityError, EvidenceError, InputError, Reason
from trust.keys import check_distinct, check_ids, check_public_key, key_material, key_name
from trust.metadata import (
    DEVELOPMENT_FIELD,
    TRUST_DOMAIN_FIELD,
    check,
    check_root,
    lint_rotation,
    lint_targets,
)
from trust.quorum import keys_of
from trust.spiffe import check_name, check_trust_domain
from trust.verified import BASE_ROLE, target_path

ROOT_LIFETIME_S: Final = 2 * 365 * 24 * 3600
POLICY_LIFETIME_S: Final = 365 * 24 * 3600
SNAPSHOT_LIFETIME_S: Final = 30 * 24 * 3600

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class Holders:
    """The keys of one role and how many of them must sign."""

    keys: Sequence[Key]
    threshold: int


def parse_metadata(data: bytes, kind: type[T]) -> Metadata[T]:
    """Parse one metadata file; nothing is verified yet.

    Raises:
        EvidenceError: METADATA_INVALID.
        CapacityError: LIMIT_EXCEEDED, over `limits.MAX_METADATA_BYTES`.
    """
    if len(data) > limits.MAX_METADATA_BYTES:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED, f"{kind.type} metadata is over {limits.MAX_METADATA_BYTES} bytes"
        )
    try:
        metadata = Metadata[T].from_bytes(data)
    except RepositoryError:
        raise EvidenceError(Reason.METADATA_INVALID, f"not TUF {kind.type} metadata") from None
    if metadata.signed.type != kind.type:
        raise EvidenceError(
            Reason.METADATA_INVALID, f"this is {metadata.signed.type} metadata, expected {kind.type}"
        )
    signable_bytes(metadata)
    return metadata


def signable_bytes(metadata: Metadata[Any]) -> bytes:
    """Return the exact bytes that holders sign: the canonical JSON of the `signed` part.

    Raises:
        EvidenceError: METADATA_INVALID, if it has no canonical form (a float, for example).
    """
    try:
        return metadata.signed_bytes
    except RepositoryError:
        raise EvidenceError(Reason.METADATA_INVALID, "the metadata has no canonical form") from None


def digest_of(metadata: Metadata[Any]) -> str:
    """Return the SHA-256 (hex) of the bytes to be signed; names a proposal."""
    return hashlib.sha256(signable_bytes(metadata)).hexdigest()


def new_root(
    *,
    trust_domain: str,
    root: Holders,
    approvers: Holders,
    snapshot: Key,
    timestamp: Key,
    now_ms: int,
    development: bool = False,
    lifetime_s: int = ROOT_LIFETIME_S,
) -> Metadata[Root]:
    """Return root version 1, unsigned.

    Raises:
        EvidenceError: KEY_UNSAFE or METADATA_UNSAFE, saying what is wrong.
    """
    check_trust_domain(trust_domain)
    fields: dict[str, Any] = {TRUST_DOMAIN_FIELD: trust_domain}
    if development:
        fields[DEVELOPMENT_FIELD] = True
    roles = {
        "root": root,
        BASE_ROLE: approvers,
        "snapshot": Holders([snapshot], 1),
        "timestamp": Holders([timestamp], 1),
    }
    check_ids(key for holders in roles.values() for key in _checked(holders.keys))
    signed = Root(
        version=1,
        expires=_time(now_ms + lifetime_s * 1000),
        keys={key.keyid: key for holders in roles.values() for key in holders.keys},
        roles={name: Role([k.keyid for k in h.keys], h.threshold) for name, h in roles.items()},
        consistent_snapshot=True,
        unrecognized_fields=fields,
    )
    check_root(signed, now_ms=now_ms)
    return Metadata(signed)


def next_root(
    previous: Metadata[Root],
    *,
    now_ms: int,
    role: str = BASE_ROLE,
    add: Sequence[Key] = (),
    remove: Sequence[str] = (),
    threshold: int | None = None,
    lifetime_s: int = ROOT_LIFETIME_S,
) -> Metadata[Root]:
    """Return the next root version with keys of one role replaced, unsigned.

    It becomes valid when the root quorum of `previous` and its own root quorum have both signed.

    Args:
        role: "root", "targets" (the approvers), "snapshot" or "timestamp".
        remove: key ids.

    Raises:
        InputError: INPUT_INVALID, if a key to remove is not there.
        EvidenceError: KEY_UNSAFE or METADATA_UNSAFE.
    """
    signed = copy.deepcopy(previous.signed)
    signed.version += 1
    signed.expires = _time(now_ms + lifetime_s * 1000)
    if role not in signed.roles:
        known = ", ".join(sorted(signed.roles))
        raise InputError(Reason.INPUT_INVALID, f"there is no role {role!r}; use one of: {known}")
    for key_id in remove:
        try:
            signed.revoke_key(key_id, role)
        except ValueError:
            raise InputError(Reason.INPUT_INVALID, f"{role} has no key {key_id[:64]}") from None
    check_ids([*signed.keys.values(), *_checked(add)])
    for key in add:
        signed.add_key(key, role)
    if threshold is not None:
        signed.roles[role].threshold = threshold
    check_root(signed, now_ms=now_ms)
    check(lint_rotation(previous.signed, signed))
    return Metadata(signed)


def find_key(delegator: Root | Targets, role: str, name_or_id: str) -> Key:
    """Return the key of `role` with this display name, key id, or start of one (8 or more digits).

    Raises:
        InputError: NOT_FOUND, listing the keys; CONFLICT, if several fit.
    """
    keys = keys_of(delegator, role)
    found = [
        key
        for key_id, key in keys.items()
        if name_or_id in {key_id, key_name(key)} or (len(name_or_id) >= 8 and key_id.startswith(name_or_id))
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{key_name(key)} ({key_id[:12]})" for key_id, key in sorted(keys.items()))
    if found:
        raise InputError(Reason.CONFLICT, f"{name_or_id!r} fits several keys of {role}: {names}")
    raise InputError(Reason.NOT_FOUND, f"{role} has no key {name_or_id[:64]!r}; it has: {names}")


def first_targets(
    bundle: bytes, *, now_ms: int, role: str = BASE_ROLE, lifetime_s: int = POLICY_LIFETIME_S
) -> Metadata[Targets]:
    """Return version 1 of a policy role ("targets" or a namespace), unsigned."""
    if role != BASE_ROLE:
        check_name(role)
    path = target_path(role)
    return Metadata(
        Targets(
            version=1,
            expires=_time(now_ms + lifetime_s * 1000),
            targets={path: TargetFile.from_data(path, bundle, ["sha256"])},
        )
    )


def next_targets(
    previous: Metadata[Targets],
    bundle: bytes | None,
    *,
    now_ms: int,
    role: str = BASE_ROLE,
    delegate: Mapping[str, Holders | None] | None = None,
    lifetime_s: int = POLICY_LIFETIME_S,
) -> Metadata[Targets]:
    """Return the next version of a policy role, unsigned.

    Args:
        bundle: the new archive; None keeps the one in force.
        delegate: namespaces whose approvers change: new holders, or None to end the delegation.

    Raises:
        EvidenceError: KEY_UNSAFE or METADATA_UNSAFE; IDENTITY_INVALID for a bad namespace name.
    """
    signed = copy.deepcopy(previous.signed)
    signed.version += 1
    signed.expires = _time(now_ms + lifetime_s * 1000)
    if bundle is not None:
        path = target_path(role)
        signed.targets = {path: TargetFile.from_data(path, bundle, ["sha256"])}
    for name, holders in (delegate or {}).items():
        _set_delegation(signed, name, holders)
    # The thresholds outside development are checked against root when it is published.
    check(lint_targets(role, signed, development=True, now_ms=now_ms))
    return Metadata(signed)


def next_namespace(
    previous: Metadata[Targets] | None,
    namespace: str,
    bundle: bytes,
    *,
    now_ms: int,
    lifetime_s: int = POLICY_LIFETIME_S,
) -> Metadata[Targets]:
    """Return the next (or first) version of a namespace's role, unsigned. Raises as `next_targets`."""
    if previous is None:
        return first_targets(bundle, now_ms=now_ms, role=namespace, lifetime_s=lifetime_s)
    return next_targets(previous, bundle, now_ms=now_ms, role=namespace, lifetime_s=lifetime_s)


def next_snapshot(
    previous: Metadata[Snapshot] | None,
    roles: Mapping[str, bytes],
    *,
    now_ms: int,
    lifetime_s: int = SNAPSHOT_LIFETIME_S,
) -> Metadata[Snapshot]:
    """Return the next snapshot, unsigned, pinning version, length and SHA-256 of every role in `roles`.

    A role that is no longer delegated stays listed: clients treat a vanished one as an attack.
    """
    meta = dict(previous.signed.meta) if previous is not None else {}
    for role, data in roles.items():
        version = parse_metadata(data, Targets).signed.version
        meta[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
    version = 1 if previous is None else previous.signed.version + 1
    return Metadata(Snapshot(version=version, expires=_time(now_ms + lifetime_s * 1000), meta=meta))


def next_timestamp(
    previous: Metadata[Timestamp] | None, snapshot: bytes, *, now_ms: int, ttl_s: int
) -> Metadata[Timestamp]:
    """Return the next freshness lease over `snapshot`, unsigned, for `ttl_s` seconds (rounded down).

    Raises:
        InputError: INPUT_INVALID, if the lease is shorter or longer than `trust.limits` allows.
    """
    if not limits.MIN_LEASE_TTL_S <= ttl_s <= limits.MAX_LEASE_TTL_S:
        raise InputError(
            Reason.INPUT_INVALID,
            f"a lease lasts {limits.MIN_LEASE_TTL_S} to {limits.MAX_LEASE_TTL_S} s, not {ttl_s}",
        )
    meta = MetaFile.from_data(parse_metadata(snapshot, Snapshot).signed.version, snapshot, ["sha256"])
    version = 1 if previous is None else previous.signed.version + 1
    return Metadata(Timestamp(version=version, expires=_time(now_ms + ttl_s * 1000), snapshot_meta=meta))


def add_signature(
    metadata: Metadata[T],
    key_id: str,
    signature_hex: str,
    delegator: Root | Targets | Sequence[Root | Targets],
    *,
    role: str | None = None,
) -> Metadata[T]:
    """Return a copy of `metadata` with one more signature, verified.

    Args:
        delegator: who says which keys count; for root the previous and the new root.
        role: needed for a namespace; otherwise the type of the metadata.

    Raises:
        EvidenceError: NOT_AUTHORIZED, if the key is not of the role; SIGNATURE_INVALID.
    """
    name = role if role is not None else metadata.signed.type
    delegators = [delegator] if isinstance(delegator, Root | Targets) else list(delegator)
    candidates = [keys[key_id] for d in delegators if key_id in (keys := keys_of(d, name))]
    if not candidates:
        raise EvidenceError(Reason.NOT_AUTHORIZED, f"the key {key_id[:12]} may not sign {name} metadata")
    if len({key_material(key) for key in candidates}) != 1:
        raise EvidenceError(Reason.KEY_UNSAFE, f"two different keys have the id {key_id[:12]}")
    signature = Signature(key_id, signature_hex)
    try:
        candidates[0].verify_signature(signature, signable_bytes(metadata))
    except UnverifiedSignatureError:
        what = f"version {metadata.signed.version} of {name}"
        raise EvidenceError(
            Reason.SIGNATURE_INVALID, f"the signature of {key_name(candidates[0])} is not over {what}"
        ) from None
    signed = copy.deepcopy(metadata)
    signed.signatures[key_id] = signature
    return signed


def sign(
    metadata: Metadata[T],
    signer: Signer,
    delegator: Root | Targets | Sequence[Root | Targets],
    *,
    role: str | None = None,
) -> Metadata[T]:
    """Return a copy of `metadata` signed with `signer`. Raises as `add_signature`."""
    signature = signer.sign(signable_bytes(metadata))
    return add_signature(metadata, signature.keyid, signature.signature, delegator, role=role)


def _set_delegation(signed: Targets, name: str, holders: Holders | None) -> None:
    roles = {} if signed.delegations is None else dict(signed.delegations.roles or {})
    keys = {} if signed.delegations is None else dict(signed.delegations.keys)
    roles.pop(name, None)
    if holders is not None:
        check_name(name)
        checked = _checked(holders.keys)
        used = {key_id for role in roles.values() for key_id in role.keyids}
        check_ids([*(key for key_id, key in keys.items() if key_id in used), *checked])
        keys |= {key.keyid: key for key in checked}
        key_ids = [key.keyid for key in checked]
        try:
            roles[name] = DelegatedRole(name, key_ids, holders.threshold, True, [f"{name}/*"])
        except ValueError as error:
            raise EvidenceError(Reason.METADATA_UNSAFE, f"namespace {name}: {error}") from None
    used = {key_id for role in roles.values() for key_id in role.keyids}
    keys = {key_id: key for key_id, key in keys.items() if key_id in used}
    try:
        signed.delegations = Delegations(keys, dict(sorted(roles.items()))) if roles else None
    except ValueError as error:
        raise EvidenceError(Reason.METADATA_UNSAFE, f"namespace {name}: {error}") from None


def _checked(keys: Sequence[Key]) -> Sequence[Key]:
    for key in keys:
        check_public_key(key)
    check_distinct(keys)
    return keys


def _time(unix_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_ms // 1000, datetime.UTC)
