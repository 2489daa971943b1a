"""What a proposed bundle would decide differently, for the calls that this node really decides.

Compared is what the policies say, each under its own signed level: what is refused for other reasons (a lease that
is over, a revocation, an attestation) is refused under both, and counted as not comparable.
"""

import enum
from collections import Counter
from dataclasses import dataclass
from typing import Final

from sidecar.core.bundle_state import Lease
from sidecar.core.call import Decision, Direction
from sidecar.core.decider import Decider
from sidecar.core.levels import Effect, effect_of, finding_of, level_in_force
from trust import limits
from trust.errors import Reason
from trust.policy.panics import is_panic
from trust.policy.types import Call
from trust.record_rules import plain

# Decided by something else than the policies.
_ELSEWHERE: Final = frozenset(
    {
        Reason.POLICY_MISSING,
        Reason.POLICY_STALE,
        Reason.POLICY_EXPIRED,
        Reason.GOVERNANCE_UNAVAILABLE,
        Reason.REVOKED,
        Reason.NODE_QUARANTINED,
        Reason.NODE_NOT_ATTESTED,
        Reason.LIMIT_EXCEEDED,
    }
)


@enum.unique
class Change(enum.StrEnum):
    """How the candidate's answer differs; told to people and programs, so never renamed."""

    DENIES = "newly-denied"
    ALLOWS = "newly-allowed"
    OBLIGES = "newly-obliged"  # still allowed, and more is asked for
    WOULD_DENY = "newly-would-deny"  # still goes on, but level 4 would now refuse it
    WOULD_ALLOW = "no-longer-would-deny"
    UNKNOWN = "cannot-tell"  # the candidate reads a request that the policy in force has no need to wait for


@dataclass(frozen=True, slots=True)
class Kind:
    """Calls that differ in the same way."""

    change: Change
    direction: Direction
    caller: str
    service: str
    method: str
    before: Reason
    after: Reason


@dataclass(slots=True)
class Tally:
    """How often, and when, in Unix ms; the policies that the candidate's answer rests on, and one decision's id."""

    policies: tuple[str, ...]
    example: str
    first_ms: int
    last_ms: int
    count: int = 0


class Comparison:
    """One shadow run on one node. Not thread-safe: owned by the event loop."""

    def __init__(self, candidate: Decider, local_level: int | None) -> None:
        """Start from nothing.

        Args:
            candidate: decides as the proposal would; replaced when it is compiled anew.
            local_level: raises its signed levels as it does the real ones.
        """
        self.candidate, self._local_level = candidate, local_level
        self.compared = self.incomparable = self.omitted = 0
        self.problem = ""  # why the candidate last had no answer; empty while it has had one for every call
        self.tallies: dict[Kind, Tally] = {}
        self._of: Counter[str] = Counter()  # kinds, by caller

    def compare(
        self, call: Call, direction: Direction, decision: Decision, *, identified: bool, now_ms: int
    ) -> None:
        """Take one decided call. Whatever a candidate breaks in here, the call goes on as it was decided.

        Args:
            call: as the policies in force saw it.
            direction: of the call.
            decision: what was decided.
            identified: whether the caller was.
            now_ms: trusted time, Unix ms.
        """
        if decision.reason in _ELSEWHERE or decision.would_deny in _ELSEWHERE:
            self.incomparable += 1
            return
        try:
            found = self._changed(call, decision, identified, now_ms)
        except BaseException as error:
            # A panic is no Exception. The problem is reported, and with it that the run is not complete.
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            self.incomparable += 1
            self.problem = (
                f"the candidate failed on {plain(call.method, limits.MAX_SHADOW_TEXT_BYTES)}: "
                + plain(f"{type(error).__name__}: {error}", limits.MAX_SHADOW_TEXT_BYTES)
            )
            return
        self.compared += 1
        if found is not None:
            self._count(found, call, direction, decision, now_ms)

    def _count(
        self,
        found: tuple[Change, Reason, tuple[str, ...]],
        call: Call,
        direction: Direction,
        decision: Decision,
        now_ms: int,
    ) -> None:
        change, after, policies = found
        method = plain(call.method, limits.MAX_SHADOW_TEXT_BYTES)
        kind = Kind(change, direction, call.principal, call.service, method, _word(decision), after)
        tally = self.tallies.get(kind)
        if tally is None:
            full = len(self.tallies) >= limits.MAX_SHADOW_DIFFERENCES
            if full or self._of[call.principal] >= limits.MAX_CALLER_SHADOW_DIFFERENCES:
                self.omitted += 1
                return
            self._of[call.principal] += 1
            tally = self.tallies[kind] = Tally(policies, decision.id, now_ms, now_ms)
        tally.count += 1
        tally.last_ms = now_ms

    def _changed(
        self, call: Call, decision: Decision, identified: bool, now_ms: int
    ) -> tuple[Change, Reason, tuple[str, ...]] | None:
        candidate = self.candidate
        if call.request is None and candidate.reads_request(call.principal, call.method, call.service):
            return Change.UNKNOWN, Reason.REQUEST_UNREPRESENTABLE, ()
        level = level_in_force(candidate.mesh, self._local_level, call.service)
        asked = Call(
            call.principal,
            call.method,
            call.service,
            call.authn,
            call.node,
            level,
            call.request,
            call.metadata,
        )
        verdict = candidate.decide(asked, now_ms=now_ms)
        governs = verdict.allowed or candidate.governs(call.method, call.service)
        effect = effect_of(level, Lease.FRESH, identified, finding_of(verdict, governs=governs))
        change = _change(decision, effect)
        if change is None and effect.allow and not set(verdict.obligations) <= set(decision.obligations):
            change = Change.OBLIGES
        return None if change is None else (change, effect.would_deny or effect.reason, verdict.policies)


def _change(before: Decision, after: Effect) -> Change | None:
    if before.allowed != after.allow:
        return Change.ALLOWS if after.allow else Change.DENIES
    if not after.allow or (before.would_deny is None) == (after.would_deny is None):
        return None
    return Change.WOULD_ALLOW if after.would_deny is None else Change.WOULD_DENY


def _word(decision: Decision) -> Reason:
    return decision.would_deny or decision.reason
