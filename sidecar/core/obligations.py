"""Which obligations of an allowed call this sidecar can meet, and what it wrote down of how it met them.

An obligation is an annotation of the permits that determined a decision. What is not listed here cannot be met:
such a call is refused (OBLIGATION_UNSUPPORTED, `sidecar.core.levels`). What is listed may still fail for one call;
from level 4 on that call is refused (OBLIGATION_UNMET), below it goes on and a person is told.
"""

import enum
from collections.abc import Iterable
from typing import Final

from trust import limits
from trust.policy.rules import AUDIT_PAYLOAD

Obligations = tuple[tuple[str, str], ...]

MEETABLE: Final = frozenset({AUDIT_PAYLOAD})


@enum.unique
class Kept(enum.StrEnum):
    """What became of the request that `@audit("payload")` asks to keep; recorded, so never renamed."""

    SEALED = "sealed"  # it is in the record, for the auditors
    NOTHING = "nothing-sent"  # a stream that ended without a message
    UNSEEN = "unseen"  # nobody asked for it when the stream opened, so it was not waited for
    TOO_LARGE = "too-large"
    NO_AUDITOR = "no-auditor"  # the policy in force names none
    FAILED = "failed"


UNSUPPORTED: Final = "unsupported"
MET: Final = frozenset({Kept.SEALED, Kept.NOTHING})


def beyond_us(obligations: Iterable[tuple[str, str]]) -> bool:
    """Whether one of them is nothing that this version can do."""
    return not MEETABLE.issuperset(obligations)


def asks_payload(obligations: Obligations) -> bool:
    """Whether the payload must be kept for the auditors."""
    return AUDIT_PAYLOAD in obligations


def recorded(obligations: Obligations, payload: Kept) -> Obligations:
    """Return the obligations as a record lists them: each value, "=", and what was done about it."""
    return tuple(
        (name, f"{value}={payload.value if (name, value) == AUDIT_PAYLOAD else UNSUPPORTED}")
        for name, value in obligations
    )


def why_unsealable(size: int | None, auditors: int, *, ended: bool = False) -> Kept | None:
    """Return why a payload cannot be sealed; None when it can.

    Args:
        size: of the payload, in bytes; None without one.
        auditors: to whom it would be sealed.
        ended: the caller has said that it sends none.
    """
    if size is None:
        return Kept.NOTHING if ended else Kept.UNSEEN
    if not auditors:
        return Kept.NO_AUDITOR
    return Kept.TOO_LARGE if size > limits.MAX_AUDITED_PAYLOAD_BYTES else None


def explain(kept: Kept, what: str, size: int) -> str:
    """Say why a payload was not kept, and what to do; safe to show the caller.

    Args:
        kept: one that is not in `MET`.
        what: "request" or "response".
        size: of the payload, in bytes.
    """
    if kept is Kept.NO_AUDITOR:
        return (
            'policy asks to keep the payload (@audit("payload")) and names no auditor to seal it to; '
            "its approvers must add one under auditors:"
        )
    if kept is Kept.TOO_LARGE:
        return (
            f'policy asks to keep the payload (@audit("payload")), and the {what} of {size} bytes exceeds the '
            f"{limits.MAX_AUDITED_PAYLOAD_BYTES} bytes that a record can hold; split it"
        )
    if kept is Kept.UNSEEN:
        return "policy asks to keep the payload since this stream was opened; open it again"
    return f"policy asks to keep the payload, and sealing the {what} failed; the node's log says why"


def newly_asked(before: Obligations, now: Obligations) -> bool:
    """Whether an open stream would have to meet at its opening what it was not asked then."""
    return not set(now) <= set(before)
