"""Which approvers a call needs here, how long it may be held for them, and which approvals were used up.

Levels 0 and 1 ask nobody; level 2 asks what incident response asks; from level 3 on policy's requirements bind, too.
An approval without a window serves one call on each side of it: what it served is remembered until no approval that
was signed before can still be in time, across restarts and whatever the wall clock does.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sidecar.core.call import Decision
from trust import limits
from trust.approval import SignedApproval, Standing, judge, open_approval
from trust.approval_rule import REQUIRE, Groups, Requirement, members_of, parse_requirement, why_unmeetable
from trust.errors import CapacityError, EvidenceError, MeshError, Reason, StateError
from trust.levels import GOVERNED, OBSERVABLE, POLICY_AWARE
from trust.ticket import Ticket

NOT_ASKED: Final = "not-asked"  # a level that blocks nothing; recorded, so never renamed
UNAVAILABLE: Final = "unavailable"  # level 3: nobody could be asked, and the call went on
_SHARE_OF_DEADLINE: Final = 0.8  # the caller must get the ticket, not its own deadline


@dataclass(frozen=True, slots=True)
class Needed:
    """What a decided call asks of approvers. `obligations` are those of `requirements`, in the same order."""

    requirements: tuple[Requirement, ...]
    obligations: tuple[tuple[str, str], ...]
    binds: bool  # whether the call is refused without
    restricted: bool  # whether incident response asks, too

    @property
    def wait_s(self) -> int:
        """How long the call may be held at most: the longest wait that is asked."""
        return max((one.wait_s for one in self.requirements), default=0)

    def hold_s(self, remaining_s: float | None) -> float:
        """Return how long it is held: less than its deadline (seconds left; None: it has none)."""
        longest = float(min(self.wait_s, limits.MAX_APPROVAL_WAIT_S))
        return longest if remaining_s is None else min(longest, remaining_s * _SHARE_OF_DEADLINE)


def needed(decision: Decision) -> Needed | None:
    """Return what approvers are asked about a call; None when nothing.

    Raises:
        EvidenceError: APPROVAL_INVALID, if it cannot be read.
    """
    asked = tuple(one for one in decision.obligations if one[0] == REQUIRE)
    if not asked:
        return None
    restricting = tuple(one for one in asked if one in decision.restrictions)
    binding = asked if decision.level >= POLICY_AWARE else restricting if decision.level > OBSERVABLE else ()
    shown = binding or asked
    return Needed(
        tuple(parse_requirement(value) for _, value in shown), shown, bool(binding), bool(restricting)
    )


def goes_on_without(asked: Needed, level: int) -> bool:
    """Whether a call goes on when nobody can be asked: at level 3, unless incident response asks."""
    return level < GOVERNED and not asked.restricted


def check_meetable(asked: Needed, groups: Groups) -> None:
    """Refuse a call that no approvers can ever allow.

    Raises:
        StateError: APPROVAL_UNAVAILABLE, saying what is missing in the signed policy.
    """
    for one in asked.requirements:
        why = why_unmeetable(one, groups)
        if why:
            raise StateError(Reason.APPROVAL_UNAVAILABLE, f"policy asks for {one.asked}, but {why}")


def standing_of(
    notes: Iterable[bytes], ticket: Ticket, asked: Needed, groups: Groups, now_ms: int, *, strict: bool
) -> Standing:
    """Return what approvals (as received) add up to for a ticket.

    Args:
        notes: signed notes.
        ticket: of the call.
        asked: what the call needs.
        groups: of the policy in force.
        now_ms: Unix time, ms.
        strict: refuse what does not verify; else it does not count.

    Raises:
        EvidenceError: APPROVAL_INVALID, if `strict`.
    """
    keys = members_of(groups, asked.requirements)
    signed: list[SignedApproval] = []
    for note in notes:
        try:
            one = open_approval(note, keys, trust_domain=ticket.trust_domain)
            if strict and one.approval.ticket != ticket:
                raise EvidenceError(
                    Reason.APPROVAL_INVALID, "an approval of another request came with the call"
                )
        except EvidenceError:
            if strict:
                raise
            continue
        signed.append(one)
    return judge(signed, ticket, asked.requirements, groups, now_ms)


def refusal(standing: Standing, ticket: Ticket) -> MeshError:
    """Return why a call does not go on, and what to do; safe to show the caller."""
    error: MeshError
    if standing.denied is not None:
        said = standing.denied.approval
        error = StateError(
            Reason.APPROVAL_DENIED,
            f"{standing.denied.name} denied this request: {said.reason} (ticket {ticket.id[:16]})",
        )
    elif standing.expired:
        error = StateError(
            Reason.APPROVAL_EXPIRED,
            f"what approvers signed for ticket {ticket.id[:16]} has ended; missing: {_missing(standing)}. Ask them to "
            "sign again (egm approvals approve), then make the same call again",
        )
    else:
        error = StateError(
            Reason.APPROVAL_REQUIRED,
            f"approvers must sign this request first: {_missing(standing)}; ticket {ticket.id[:16]} "
            f"(egm approvals show {ticket.id[:16]}). Make the same call again once it is approved",
        )
    error.about = (("ticket", ticket.id),)
    return error


def proof_of(one: Requirement, ticket: Ticket, used: Iterable[SignedApproval], groups: Groups) -> list[str]:
    """Return what a record says of a requirement that was met: per approver, ticket, name and digest of the text."""
    members = groups.get(one.group, {})
    return [f"{ticket.id} {said.name} {said.sha256}" for said in used if said.name in members]


class SpentApprovals:
    """What was used up. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        held: Mapping[str, int] | None = None,
        *,
        floor_ms: int = 0,
        doubted_ms: int = 0,
        capacity: int = limits.MAX_SPENT_APPROVALS,
    ) -> None:
        """Start with what an earlier run remembered.

        Args:
            held: key -> until when it is remembered, Unix ms.
            floor_ms: no clock counts as earlier: what was forgotten had ended by then.
            doubted_ms: what was used up by approvals signed at or before this is not known.
            capacity: how many are remembered at most.
        """
        self._held = dict(held or {})
        self._ends = [(until_ms, key) for key, until_ms in self._held.items()]
        heapq.heapify(self._ends)
        self.floor_ms, self.doubted_ms, self._capacity = floor_ms, doubted_ms, capacity

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> Mapping[str, int]:
        """What is remembered: key -> until when."""
        return self._held

    def now_ms(self, now_ms: int) -> int:
        """Return the time that approvals are judged at: never before what was forgotten had ended."""
        return max(now_ms, self.floor_ms)

    def is_spent(self, key: str) -> bool:
        """Whether `key` was used up, as far as is remembered."""
        return key in self._held

    def spend(self, key: str, *, signed_ms: int, now_ms: int) -> int:
        """Use up `key`; it must be written down durably before the call goes on.

        Args:
            key: side and ticket.
            signed_ms: when the first of its approvals was signed, Unix ms.
            now_ms: Unix ms.

        Returns:
            Until when it is remembered, Unix ms.

        Raises:
            StateError: APPROVAL_SPENT; APPROVAL_UNAVAILABLE, if it cannot be told whether it was used.
            CapacityError: APPROVAL_UNAVAILABLE, if there is no room.
        """
        self._forget(now_ms)
        if key in self._held:
            raise StateError(
                Reason.APPROVAL_SPENT, "this approval served a call already; every call needs one of its own"
            )
        if signed_ms <= self.doubted_ms:
            raise StateError(
                Reason.APPROVAL_UNAVAILABLE,
                "this node lost its memory of used approvals, and this one was signed before; approve the call again",
            )
        if len(self._held) >= self._capacity:
            raise CapacityError(
                Reason.APPROVAL_UNAVAILABLE,
                f"this sidecar remembers as many used approvals as it will hold ({self._capacity}); try again later",
            )
        # whatever was signed until now has ended by then
        until_ms = now_ms + limits.MAX_APPROVAL_LIFETIME_S * 1000 + limits.MAX_CLOCK_SKEW_MS
        self._held[key] = until_ms
        heapq.heappush(self._ends, (until_ms, key))
        return until_ms

    def _forget(self, now_ms: int) -> None:
        while self._ends and self._ends[0][0] <= now_ms:
            until_ms, key = heapq.heappop(self._ends)
            self.floor_ms = max(self.floor_ms, until_ms)
            self._held.pop(key, None)


class Windows:
    """Approvals that cover further calls, by the call they are for; bounded, the oldest leave first."""

    def __init__(self, most: int = limits.MAX_APPROVAL_WINDOWS) -> None:
        """Start empty."""
        self._most = most
        self._held: dict[tuple[str, ...], tuple[Ticket, tuple[bytes, ...]]] = {}

    def get(self, call: tuple[str, ...]) -> tuple[Ticket, tuple[bytes, ...]] | None:
        """Return the ticket and its approvals; they must be verified again under the policy in force."""
        return self._held.get(call)

    def put(self, ticket: Ticket, notes: tuple[bytes, ...]) -> None:
        """Keep them."""
        self._held.pop(ticket.call, None)
        while len(self._held) >= self._most:
            del self._held[next(iter(self._held))]
        self._held[ticket.call] = (ticket, notes)

    def drop(self, call: tuple[str, ...]) -> None:
        """Forget what is not enough any more."""
        self._held.pop(call, None)


def _missing(standing: Standing) -> str:
    return ", ".join(standing.missing) or "nobody"
