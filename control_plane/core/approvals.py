"""What the control plane makes of tickets and approvals: which it takes, how a ticket stands, when it is over.

It only keeps and shows. Whether a call may go on, the sidecars decide from the approvers' signatures alone.
"""

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trust import limits
from trust.approval import SignedApproval, Standing, Verdict, judge, open_approval, read_approval
from trust.approval_rule import Groups, Requirement, members_of, requirements_in
from trust.errors import CapacityError, EvidenceError, InputError, MeshError, Reason, StateError
from trust.mesh import MeshSettings
from trust.ticket import ANY_REQUEST, Ticket

MIN_PREFIX_DIGITS: Final = 8


@enum.unique
class State(enum.StrEnum):
    """How a ticket stands, for people."""

    OPEN = "open"
    APPROVED = "approved"
    DENIED = "denied"
    USED = "used"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Stored:
    """A ticket as it is kept. Times in Unix ms; `spent_ms` 0: it served no call yet."""

    ticket: Ticket
    node: str
    inbound: bool
    level: int
    opened_ms: int
    until_ms: int
    spent_ms: int
    content: bytes | None  # the request as received; None: not shown, or not loaded
    content_bytes: int
    shown: bool = False  # whether the request is kept
    notes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """A ticket with what is known of it under the policy in force."""

    stored: Stored
    state: State
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """How many tickets are open now: everywhere, of one node, and of one caller at that node."""

    everywhere: int
    node: int
    caller: int


def take(
    data: bytes,
    *,
    trust_domain: str,
    node: str,
    inbound: bool,
    level: int,
    content: bytes | None,
    size: int,
    now_ms: int,
) -> Stored:
    """Return the ticket that a node asks to open.

    Args:
        data: text of the ticket.
        trust_domain: of this mesh.
        node: name of the node, by its certificate.
        inbound: whether the callee's sidecar asks.
        level: in force for the service, as the node says.
        content: the request, if approvers are to see it.
        size: of the request, in bytes.
        now_ms: Unix time, ms.

    Raises:
        EvidenceError: APPROVAL_INVALID.
        InputError: INPUT_INVALID, if the content is not the request that would be signed.
    """
    ticket = Ticket.parse(data)
    requirements_in(ticket.needs)
    if ticket.trust_domain != trust_domain:
        raise InputError(
            Reason.INPUT_INVALID, f"the ticket is for {ticket.trust_domain[:80]}, this mesh is {trust_domain}"
        )
    if content is not None and (len(content) > limits.MAX_TICKET_CONTENT_BYTES or len(content) != size):
        raise InputError(
            Reason.INPUT_INVALID, f"the request may have {limits.MAX_TICKET_CONTENT_BYTES} bytes to be shown"
        )
    if content is not None and ticket.request not in {ANY_REQUEST, hashlib.sha256(content).hexdigest()}:
        raise InputError(Reason.INPUT_INVALID, "the request that came is not the one that the ticket binds")
    until_ms = now_ms + limits.MAX_APPROVAL_LIFETIME_S * 1000
    return Stored(ticket, node, inbound, level, now_ms, until_ms, 0, content, size, content is not None)


def check_room(room: Room) -> None:
    """Refuse another ticket where there are too many: nobody could judge them all.

    Raises:
        CapacityError: LIMIT_EXCEEDED.
    """
    for held, most, whose in (
        (room.everywhere, limits.MAX_OPEN_TICKETS, "in this mesh"),
        (room.node, limits.MAX_NODE_TICKETS, "of this node"),
        (room.caller, limits.MAX_CALLER_TICKETS, "of this caller"),
    ):
        if held >= most:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED,
                f"{held} tickets {whose} wait for approvers, the most there may be; decide some: egm approvals list",
            )


def check_prefix(prefix: str) -> str:
    """Return the beginning of a ticket id as it is looked for.

    Raises:
        InputError: INPUT_INVALID.
    """
    text = prefix.strip().lower()
    if not MIN_PREFIX_DIGITS <= len(text) <= 64 or not set(text) <= set("0123456789abcdef"):
        raise InputError(
            Reason.INPUT_INVALID,
            f"{prefix[:70]!r} is no ticket: give at least {MIN_PREFIX_DIGITS} of its 64 digits ('egm approvals list')",
        )
    return text


def view(stored: Stored, mesh: MeshSettings | None, *, now_ms: int) -> View:
    """Return how a ticket stands at `now_ms` (Unix ms) under the published settings."""
    groups: Groups = {} if mesh is None else mesh.approver_groups
    standing = _standing(stored, groups, requirements_in(stored.ticket.needs), now_ms)
    if stored.spent_ms:
        state = State.USED
    elif standing.denied is not None:
        state = State.DENIED
    elif now_ms >= stored.until_ms:
        state = State.EXPIRED
    else:
        state = State.APPROVED if standing.met else State.OPEN
    return View(stored, state, () if state is State.DENIED else standing.missing)


def decide(stored: Stored, note: bytes, mesh: MeshSettings | None, *, now_ms: int) -> SignedApproval:
    """Return what an approver says of a ticket, if it may be taken.

    Raises:
        EvidenceError: APPROVAL_INVALID: not of an approver whom the ticket asks, or not in time.
        StateError: CONFLICT: the ticket is over, or the approver has said something else before.
        CapacityError: LIMIT_EXCEEDED.
    """
    ticket = stored.ticket
    requirements = requirements_in(ticket.needs)
    groups: Groups = {} if mesh is None else mesh.approver_groups
    signed = open_approval(note, members_of(groups, requirements), trust_domain=ticket.trust_domain)
    if signed.approval.ticket != ticket:
        raise EvidenceError(Reason.APPROVAL_INVALID, "it is for another ticket than the one it names")
    alone = judge([signed], ticket, requirements, groups, now_ms)
    if not alone.approved and alone.denied is None:
        raise EvidenceError(
            Reason.APPROVAL_INVALID,
            "it has ended, or begins later: compare this machine's clock with the mesh's",
        )
    current = view(stored, mesh, now_ms=now_ms)
    if current.state in {State.USED, State.DENIED, State.EXPIRED}:
        raise StateError(Reason.CONFLICT, f"the ticket is {current.state}; there is nothing left to decide")
    if len(stored.notes) >= limits.MAX_TICKET_NOTES:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED, f"the ticket holds {len(stored.notes)} approvals, the most it may"
        )
    if signed.approval.verdict is Verdict.APPROVE and current.state is State.APPROVED:
        raise StateError(Reason.CONFLICT, "enough approvers have approved it already; the call can be made")
    return signed


def summary(note: bytes) -> str:
    """Say in some words what a note says, for the audit log."""
    try:
        said = read_approval(note)
    except MeshError:
        return "unreadable"
    return f"{said.verdict} {said.ticket.id[:16]} {said.ticket.caller} {said.ticket.method}"


def _standing(stored: Stored, groups: Groups, requirements: Sequence[Requirement], now_ms: int) -> Standing:
    keys = members_of(groups, requirements)
    signed: list[SignedApproval] = []
    for note in stored.notes:
        try:
            signed.append(open_approval(note, keys, trust_domain=stored.ticket.trust_domain))
        except EvidenceError:
            continue  # its approver was taken out of the group: it does not count any more
    return judge(signed, stored.ticket, requirements, groups, now_ms)
