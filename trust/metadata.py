"""Which TUF metadata is acceptable although it verifies: the linter for the shapes that weaken a quorum.

python-tuf proves that metadata is signed as it says itself. It does not ask whether that is enough: one key
under two ids, a threshold of one, a delegation of every path. These rules run when metadata is made and again
whenever a node accepts it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import (
    DelegatedRole,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.keys import check_public_key, key_material, key_name
from trust.spiffe import check_name, check_trust_domain
from trust.verified import BASE_ROLE, target_path

DEVELOPMENT_FIELD: Final = "x-egm-development"  # in root, signed
TRUST_DOMAIN_FIELD: Final = "x-egm-trust-domain"  # in root, signed
ONLINE_ROLES: Final = ("snapshot", "timestamp")
QUORUM_ROLES: Final = ("root", BASE_ROLE)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MAX_VERSION: Final = 2**53 - 1  # the largest integer that every JSON reader keeps exactly


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a piece of metadata. `where` is a role, or a role and a key or path."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


def is_development(root: Root) -> bool:
    """Whether root declares a development domain, in which one signature may be enough."""
    return root.unrecognized_fields.get(DEVELOPMENT_FIELD) is True


def trust_domain_of(root: Root) -> str | None:
    """Return the trust domain that root names, or None."""
    domain = root.unrecognized_fields.get(TRUST_DOMAIN_FIELD)
    return domain if isinstance(domain, str) else None


def lint_root(root: Root, *, development: bool, now_ms: int | None = None) -> list[Finding]:
    """Return what is wrong with root metadata. Lifetimes are checked when `now_ms` is given."""
    findings = _lint_common("root", root, limits.MAX_ROOT_LIFETIME_S, now_ms)
    if root.consistent_snapshot is not True:
        findings.append(Finding("root", "consistent_snapshot must be true"))
    claimed = root.unrecognized_fields.get(DEVELOPMENT_FIELD)
    if claimed is not None and not isinstance(claimed, bool):
        findings.append(Finding("root", f"{DEVELOPMENT_FIELD} must be true or false"))
    if TRUST_DOMAIN_FIELD in root.unrecognized_fields and not _is_trust_domain(trust_domain_of(root)):
        findings.append(Finding("root", f"{TRUST_DOMAIN_FIELD} is not a trust domain name"))
    materials: dict[str, dict[bytes, Key]] = {}
    for name, role in sorted(root.roles.items()):
        minimum = 1 if development or name in ONLINE_ROLES else limits.MIN_APPROVER_THRESHOLD
        materials[name], problems = _lint_role(name, role, root.keys, minimum)
        findings += problems
    if not development:
        offline = materials["root"] | materials[BASE_ROLE]
        for name in ONLINE_ROLES:
            findings += [
                Finding(name, f"the online key {key_name(key)} is also a root or approver key")
                for material, key in materials[name].items()
                if material in offline
            ]
    return findings


def lint_rotation(previous: Root, root: Root) -> list[Finding]:
    """Return what is wrong with `root` as the successor of `previous`."""
    findings = []
    if root.version != previous.version + 1:
        findings.append(
            Finding("root", f"version {root.version} does not follow {previous.version}: it must be one more")
        )
    if is_development(root) and not is_development(previous):
        findings.append(Finding("root", "a trust domain cannot become a development one"))
    if trust_domain_of(root) != trust_domain_of(previous):
        findings.append(Finding("root", "the trust domain cannot be renamed"))
    return findings


def lint_targets(
    role: str,
    targets: Targets,
    *,
    development: bool,
    root: Root | None = None,
    now_ms: int | None = None,
) -> list[Finding]:
    """Return what is wrong with the metadata of `role` ("targets" or a namespace).

    With `root` its online keys are refused as approvers of a namespace (outside development).
    """
    findings = _lint_common(role, targets, limits.MAX_POLICY_LIFETIME_S, now_ms)
    expected = target_path(role)
    findings += [
        Finding(role, f"lists {path[:120]!r}; it may list only {expected}")
        for path in sorted(targets.targets)
        if path != expected
    ]
    target = targets.targets.get(expected)
    findings += [Finding(role, f"does not list {expected}")] if target is None else _lint_target(role, target)
    if targets.delegations is None:
        return findings
    if role != BASE_ROLE:
        return [*findings, Finding(role, "a namespace may not delegate further")]
    return findings + _lint_delegations(targets, development=development, root=root)


def lint_snapshot(snapshot: Snapshot, *, now_ms: int | None = None) -> list[Finding]:
    """Return what is wrong with snapshot metadata: every role with version, length and SHA-256."""
    findings = _lint_common("snapshot", snapshot, limits.MAX_POLICY_LIFETIME_S, now_ms)
    if len(snapshot.meta) > 4 * limits.MAX_NAMESPACES:
        findings.append(Finding("snapshot", f"lists {len(snapshot.meta)} roles"))
    for name, meta in sorted(snapshot.meta.items()):
        role = name.removesuffix(".json")
        if not name.endswith(".json") or (role != BASE_ROLE and not _is_name(role)):
            findings.append(Finding("snapshot", f"lists {name[:80]!r}, which is not a role"))
        findings += _lint_meta("snapshot", name, meta)
    return findings


def lint_timestamp(timestamp: Timestamp, *, now_ms: int | None = None) -> list[Finding]:
    """Return what is wrong with the lease: one that lasts too long would hide a frozen mesh."""
    findings = _lint_common("timestamp", timestamp, limits.MAX_LEASE_TTL_S, now_ms)
    return findings + _lint_meta("timestamp", "snapshot.json", timestamp.snapshot_meta)


def check_root(root: Root, *, now_ms: int | None = None) -> None:
    """Raise EvidenceError METADATA_UNSAFE unless `lint_root` finds nothing."""
    check(lint_root(root, development=is_development(root), now_ms=now_ms))


def check_targets(role: str, targets: Targets, root: Root, *, now_ms: int | None = None) -> None:
    """Raise EvidenceError METADATA_UNSAFE unless `lint_targets` finds nothing."""
    check(lint_targets(role, targets, development=is_development(root), root=root, now_ms=now_ms))


def check(findings: Iterable[Finding]) -> None:
    """Raise EvidenceError METADATA_UNSAFE with the findings, if there are any."""
    texts = [str(finding) for finding in findings]
    if texts:
        shown = "; ".join(texts[:5]) + (f"; and {len(texts) - 5} more" if len(texts) > 5 else "")
        raise EvidenceError(Reason.METADATA_UNSAFE, shown)


def expires_ms(signed: Signed) -> int:
    """Return the expiry of metadata in Unix milliseconds."""
    return int(signed.expires.timestamp()) * 1000


def _lint_common(where: str, signed: Signed, lifetime_s: int, now_ms: int | None) -> list[Finding]:
    findings = []
    if not _is_int(signed.version) or not 1 <= signed.version <= _MAX_VERSION:
        findings.append(Finding(where, "the version is not a positive integer"))
    if now_ms is not None:
        latest_ms = now_ms + lifetime_s * 1000 + limits.MAX_CLOCK_SKEW_MS
        if expires_ms(signed) > latest_ms:
            findings.append(
                Finding(where, f"expires {signed.expires:%Y-%m-%d}, later than {lifetime_s} s from now")
            )
    return findings


def _lint_role(
    where: str, role: Role, keys: Mapping[str, Key], minimum: int
) -> tuple[dict[bytes, Key], list[Finding]]:
    """Return the distinct acceptable keys of a role by material, and what is wrong with it."""
    findings = []
    found: dict[bytes, Key] = {}
    if len(role.keyids) > limits.MAX_ROLE_KEYS:
        return found, [Finding(where, f"has {len(role.keyids)} keys; at most {limits.MAX_ROLE_KEYS}")]
    for key_id in role.keyids:
        key = keys.get(key_id)
        if key is None or key.keyid != key_id:
            findings.append(Finding(where, f"names the key {str(key_id)[:12]}, which is not defined"))
            continue
        try:
            check_public_key(key)
        except EvidenceError as error:
            findings.append(Finding(where, error.detail))
            continue
        other = found.setdefault(key_material(key), key)
        if other is not key:
            findings.append(
                Finding(where, f"{key_name(other)} and {key_name(key)} are the same key under two ids")
            )
    if not _is_int(role.threshold) or role.threshold < 1:
        findings.append(Finding(where, "the threshold is not a positive integer"))
    elif role.threshold < minimum:
        findings.append(
            Finding(where, f"the threshold is {role.threshold}; at least {minimum} outside development")
        )
    elif role.threshold > len(found):
        findings.append(
            Finding(where, f"the threshold is {role.threshold} but only {len(found)} distinct keys may sign")
        )
    return found, findings


def _lint_delegations(targets: Targets, *, development: bool, root: Root | None) -> list[Finding]:
    delegations = targets.delegations
    if delegations is None:
        return []
    if delegations.succinct_roles is not None or delegations.roles is None:
        return [Finding(BASE_ROLE, "succinct roles are not accepted; delegate each namespace by name")]
    if len(delegations.roles) > limits.MAX_NAMESPACES:
        return [
            Finding(
                BASE_ROLE, f"delegates {len(delegations.roles)} namespaces; at most {limits.MAX_NAMESPACES}"
            )
        ]
    online = set() if root is None or development else _online_materials(root)
    findings = []
    for name, role in sorted(delegations.roles.items()):
        findings += _lint_delegated(name, role)
        minimum = 1 if development else limits.MIN_APPROVER_THRESHOLD
        found, problems = _lint_role(f"namespace {name[:63]}", role, delegations.keys, minimum)
        findings += problems
        findings += [
            Finding(f"namespace {name[:63]}", f"the online key {key_name(key)} may not approve")
            for material, key in found.items()
            if material in online
        ]
    return findings


def _lint_delegated(name: str, role: DelegatedRole) -> list[Finding]:
    where = f"namespace {name[:63]}"
    findings = []
    if not _is_name(name) or role.name != name:
        findings.append(Finding(where, "is not a valid name: use 1 to 63 of a-z 0-9 -"))
    if role.paths != [f"{name}/*"] or role.path_hash_prefixes is not None:
        findings.append(Finding(where, f"must be delegated exactly {name[:63]}/*"))
    if role.terminating is not True:
        findings.append(Finding(where, "the delegation must be terminating"))
    return findings


def _lint_target(role: str, target: TargetFile) -> list[Finding]:
    findings = []
    if not _is_sha256(target.hashes):
        findings.append(Finding(role, "the target must have exactly one hash, a SHA-256"))
    if not _is_int(target.length) or not 0 < target.length <= limits.MAX_BUNDLE_ARCHIVE_BYTES:
        findings.append(
            Finding(role, f"the target's length must be 1 to {limits.MAX_BUNDLE_ARCHIVE_BYTES} bytes")
        )
    return findings


def _lint_meta(where: str, name: str, meta: MetaFile) -> list[Finding]:
    findings = []
    if not _is_int(meta.version) or not 1 <= meta.version <= _MAX_VERSION:
        findings.append(Finding(where, f"the version of {name[:80]!r} is not a positive integer"))
    if not _is_int(meta.length) or not 0 < (meta.length or 0) <= limits.MAX_METADATA_BYTES:
        findings.append(Finding(where, f"the length of {name[:80]!r} is missing or out of range"))
    if meta.hashes is None or not _is_sha256(meta.hashes):
        findings.append(Finding(where, f"{name[:80]!r} must have exactly one hash, a SHA-256"))
    return findings


def _online_materials(root: Root) -> set[bytes]:
    keys = [root.keys[key_id] for role in ONLINE_ROLES for key_id in root.roles[role].keyids]
    return {key_material(key) for key in keys}


def _is_int(value: object) -> bool:
    return type(value) is int  # not bool, which JSON calls something else


def _is_sha256(hashes: Mapping[str, str]) -> bool:
    return list(hashes) == ["sha256"] and _SHA256.match(hashes["sha256"]) is not None


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except EvidenceError:
        return False
    return text not in {"root", "targets", *ONLINE_ROLES}


def _is_trust_domain(text: str | None) -> bool:
    try:
        check_trust_domain(text or "")
    except EvidenceError:
        return False
    return True
