"""What each level does with each situation: one total table, level x lease x identity x finding -> effect.

Everything a sidecar refuses is refused here. A situation that the table does not
list cannot be built; one that is looked up and missing is refused (`REFUSE_UNLISTED`).
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Final

from sidecar.core.bundle_state import Lease
from sidecar.core.obligations import beyond_us
from trust.errors import InputError, Reason
from trust.levels import GOVERNED, OBSERVABLE, POLICY_AWARE, REACTIVE
from trust.mesh import SUPPORTED_LEVELS, MeshSettings
from trust.policy.types import Verdict


@enum.unique
class Finding(enum.StrEnum):
    """What the policies said about one call, reduced to what the levels tell apart."""

    ALLOWED = "allowed"
    OBLIGED = "obliged"  # allowed, under obligations that this version cannot meet
    DENIED = "denied"  # a forbid determined it
    UNPERMITTED = "unpermitted"  # no permit, though a policy governs the method and service
    UNGOVERNED = "ungoverned"  # no permit, and no policy speaks of the method and service
    ERROR = "error"  # a policy failed to evaluate
    UNREPRESENTABLE = "unrepresentable"  # the request cannot be shown to the policies
    REVOKED = "revoked"  # an emergency key or the quorum denies it, whatever the policies say
    UNATTESTED = "unattested"  # level 5: too few witnesses vouch for this node; the policies were not asked
    QUARANTINED = "quarantined"  # a proof of misbehaviour accuses a node that has a part in it


@dataclass(frozen=True, slots=True)
class Effect:
    """What happens to the call. CALLER_UNIDENTIFIED stands for the attempt's own, more precise reason."""

    allow: bool
    reason: Reason
    would_deny: Reason | None = None  # set only when `allow`: why level 4 would have refused


# A person should look: a call went on without governance, or a policy is broken.
ALARMING: Final = frozenset(
    {
        Reason.GOVERNANCE_UNAVAILABLE,
        Reason.POLICY_ERROR,
        Reason.INTERNAL,
        Reason.REVOKED,
        Reason.NODE_QUARANTINED,
    }
)
# Denied from outside the policies, from level 2 on: also when the lease is over.
_AT_ONCE: Final = frozenset({Finding.REVOKED, Finding.QUARANTINED})

REFUSE_UNLISTED: Final = Effect(allow=False, reason=Reason.INTERNAL)

_REFUSAL_OF_LEASE: Final[Mapping[Lease, Reason | None]] = {
    Lease.NONE: Reason.POLICY_MISSING,
    Lease.FRESH: None,
    Lease.STALE: None,
    Lease.SEALED: Reason.POLICY_STALE,
    Lease.EXPIRED: Reason.POLICY_EXPIRED,
}
_REFUSAL_OF_FINDING: Final[Mapping[Finding, Reason | None]] = {
    Finding.ALLOWED: None,
    Finding.OBLIGED: Reason.OBLIGATION_UNSUPPORTED,
    Finding.DENIED: Reason.POLICY_DENIED,
    Finding.UNPERMITTED: Reason.NO_POLICY_PERMITS,
    Finding.UNGOVERNED: Reason.NO_POLICY_PERMITS,
    Finding.ERROR: Reason.POLICY_ERROR,
    Finding.UNREPRESENTABLE: Reason.REQUEST_UNREPRESENTABLE,
    Finding.UNATTESTED: Reason.NODE_NOT_ATTESTED,
    Finding.REVOKED: Reason.REVOKED,
    Finding.QUARANTINED: Reason.NODE_QUARANTINED,
}
_FINDING_OF_REASON: Final[Mapping[Reason, Finding]] = {
    Reason.ALLOWED: Finding.ALLOWED,
    Reason.POLICY_DENIED: Finding.DENIED,
    Reason.NO_POLICY_PERMITS: Finding.UNPERMITTED,
    Reason.POLICY_ERROR: Finding.ERROR,
    Reason.REQUEST_UNREPRESENTABLE: Finding.UNREPRESENTABLE,
}


def _refusal(lease: Lease, identified: bool, finding: Finding) -> Reason | None:
    """Return why level 4 refuses, in the order identity, trust gate, decision; None when it allows."""
    if not identified:
        return Reason.CALLER_UNIDENTIFIED
    return _REFUSAL_OF_LEASE[lease] or _REFUSAL_OF_FINDING[finding]


def _effect(level: int, lease: Lease, identified: bool, finding: Finding) -> Effect:
    refusal = _refusal(lease, identified, finding)
    if lease is Lease.NONE:  # nothing signed says that a lower level is meant
        return Effect(allow=False, reason=refusal or Reason.POLICY_MISSING)
    if level == 0:
        return Effect(allow=True, reason=Reason.PASSED_UNGOVERNED)
    if level in {OBSERVABLE, REACTIVE}:
        at_once = _REFUSAL_OF_FINDING[finding] if finding in _AT_ONCE else None
        if level == REACTIVE and at_once is not None:
            return Effect(allow=False, reason=at_once)
        reason = Reason.ALLOWED if refusal is None else Reason.PASSED_UNGOVERNED
        return Effect(allow=True, reason=reason, would_deny=refusal)
    if level == POLICY_AWARE:
        if lease in {Lease.SEALED, Lease.EXPIRED} and finding not in _AT_ONCE:
            return Effect(allow=True, reason=Reason.GOVERNANCE_UNAVAILABLE, would_deny=refusal)
        if finding not in {Finding.ALLOWED, Finding.UNGOVERNED}:
            reason = _REFUSAL_OF_FINDING[finding] or Reason.INTERNAL
            return Effect(allow=False, reason=reason)
        reason = Reason.ALLOWED if finding is Finding.ALLOWED else Reason.PASSED_UNGOVERNED
        return Effect(allow=True, reason=reason, would_deny=refusal)
    if refusal is not None:
        return Effect(allow=False, reason=refusal)
    return Effect(allow=True, reason=Reason.ALLOWED)


EFFECTS: Final[Mapping[tuple[int, Lease, bool, Finding], Effect]] = MappingProxyType(
    {
        situation: _effect(*situation)
        for situation in product(sorted(SUPPORTED_LEVELS), Lease, (True, False), Finding)
    }
)


def effect_of(level: int, lease: Lease, identified: bool, finding: Finding) -> Effect:
    """Look one situation up; an unlisted one is refused."""
    return EFFECTS.get((level, lease, identified, finding), REFUSE_UNLISTED)


def finding_of(verdict: Verdict, *, governs: bool) -> Finding:
    """Reduce a verdict; anything unknown or contradictory counts as a policy error.

    Args:
        verdict: what the engine said.
        governs: whether any policy speaks of the method and service at all.
    """
    if verdict.allowed:
        if verdict.errors or verdict.reason is not Reason.ALLOWED:
            return Finding.ERROR
        return Finding.OBLIGED if beyond_us(verdict.obligations) else Finding.ALLOWED
    finding = _FINDING_OF_REASON.get(verdict.reason, Finding.ERROR)
    if finding is Finding.ALLOWED:  # says ALLOWED and is not
        return Finding.ERROR
    if not governs and finding in {Finding.UNPERMITTED, Finding.UNREPRESENTABLE}:
        return Finding.UNGOVERNED
    return finding


def level_in_force(mesh: MeshSettings | None, local: int | None, service: str) -> int:
    """Return the level of `service`: the signed one, raised by the local one; at least 4 without policy."""
    signed = GOVERNED if mesh is None else mesh.level_of(service)
    return signed if local is None else max(signed, local)


def check_local_level(mesh: MeshSettings, local: int | None) -> None:
    """Refuse a local level that is below a signed one: it would look like a downgrade that does nothing.

    Raises:
        InputError: CONFIG_INVALID, naming both levels.
    """
    if local is None or local >= mesh.level:
        return
    raise InputError(
        Reason.CONFIG_INVALID,
        f"level: {local} is lower than {mesh.level}, the level in the signed policy; local configuration may "
        f"only raise it. Remove `level`, or have the approvers sign a policy with level {local}",
    )
