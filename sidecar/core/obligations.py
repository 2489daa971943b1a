"""Which obligations of an allowed call this sidecar can meet, and what it wrote down of how it met them.

An obligation is an annotation of the permits that determined a decision. What is not listed here cannot be met:
such a call is refused (OBLIGATION_UNSUPPORTED, `sidecar.core.levels`). What is listed may still fail for one call;
from level 4 on that call is refused (OBLIGATION_UNMET), below it goes on and a person is told.
"""

import enum
from typing import Final

from trust import limits
from trust.approval_rule import is_requirement
from trust.policy.controls import CONTROLS, control_of
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


def beyond_us(obligations: Obligations) -> bool:
    """Whether one of them is nothing that this version can do. Asked for every call: most have none."""
    return bool(obligations) and any(
        one not in MEETABLE and control_of(*one) is None and not is_requirement(one) for one in obligations
    )


def asks_payload(obligations: Obligations) -> bool:
    """Whether the payload must be kept for the auditors."""
    return AUDIT_PAYLOAD in obligations


def noted(done: Obligations, asked: tuple[str, str], what: str) -> Obligations:
    """Return `done` with one more obligation as a record lists it: its value, "=", and what was done about it.

    Args:
        done: what was noted so far.
        asked: the obligation, (name, value).
        what: was done; at most some hundred printable characters.
    """
    name, value = asked
    return (*done, (name, f"{value}={what}"))


def completed(asked: Obligations, done: Obligations) -> Obligations:
    """Return `done` with every obligation of `asked` that nothing was noted about, in the order of `asked`."""
    whole: list[tuple[str, str]] = []
    for name, value in asked:
        mine = [pair for pair in done if pair[0] == name and pair[1].startswith(f"{value}=")]
        whole += mine or noted((), (name, value), UNSUPPORTED)
    return tuple(whole)


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
    """Whether an open stream would have to meet at its opening what it was not asked then.

    Limits count what is opened: a stream that is open is not counted again, nor for the first time.
    """
    return not {one for one in now if one[0] not in CONTROLS} <= set(before)
