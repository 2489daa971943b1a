"""Why a call that is open, or about to be forwarded, has lost its right since it was decided."""

from dataclasses import replace
from typing import Final

from sidecar.core.call import Decision
from sidecar.core.obligations import newly_asked
from trust.errors import Reason
from trust.levels import CRYPTOGRAPHIC, GOVERNED

# What ends a stream for a reason of its own; everything else is AUTHORIZATION_WITHDRAWN.
_NAMED_AS_THEY_ARE: Final = frozenset(
    {
        Reason.POLICY_STALE,
        Reason.POLICY_EXPIRED,
        Reason.POLICY_MISSING,
        Reason.NODE_NOT_ATTESTED,
        Reason.ATTESTATION_EXPIRED,
        Reason.ATTESTATION_INVALID,
        Reason.ATTESTATION_UNKNOWN,
        Reason.MEASUREMENT_REFUSED,
        Reason.REVOKED,
        Reason.NODE_QUARANTINED,
    }
)


def withdrawal(before: Decision, again: Decision) -> Decision | None:
    """Return the decision to end a call with; None while it keeps its right.

    Args:
        before: that allowed it.
        again: the same call, decided now.
    """
    lacks = _lacks(before, again)
    if again.allowed and not lacks:
        return None
    if again.reason in _NAMED_AS_THEY_ARE:
        return _ended(again, again.reason, again.detail)
    detail = lacks if again.allowed else f"{again.reason} under the policy now in force: {again.detail}"
    return _ended(again, Reason.AUTHORIZATION_WITHDRAWN, detail)


def _ended(again: Decision, reason: Reason, detail: str) -> Decision:
    return replace(
        again,
        allowed=False,
        reason=reason,
        detail=detail,
        would_deny=None,
        obligations=(),
        controls=(),
        method_alone=False,
    )


def _lacks(before: Decision, again: Decision) -> str:
    """Say what a stream that is still allowed lacks of what is done when one opens; empty when nothing."""
    if (
        before.level < CRYPTOGRAPHIC <= again.level
    ):  # no permit, no durable intent, and nobody asked who is attested
        return (
            "the service was raised to level 5 after this call was admitted, which has no permit; call again"
        )
    if _unmet(before, again):
        return "the policy now in force asks for what is done when a stream opens; open it again"
    if _unbound(before, again):
        return "the policy now in force wants permits that bind the opening message, which this stream's does not"
    return ""


def _unmet(before: Decision, again: Decision) -> bool:
    """Return whether a stream lacks what is done at its opening: not asked for then, or not insisted on."""
    # Below level 4 what policy asks is not insisted on; what incident response asks is, at every level that has it.
    asked = again.obligations if again.level >= GOVERNED else again.restrictions
    insisted = before.obligations if before.level >= GOVERNED else before.restrictions
    return bool(asked) and newly_asked(insisted, asked)


def _unbound(before: Decision, again: Decision) -> bool:
    """Return whether a stream was opened with a permit of its method alone, which is not enough any more."""
    both = min(before.level, again.level) >= CRYPTOGRAPHIC
    return both and before.method_alone and not again.method_alone
