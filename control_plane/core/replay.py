"""What another policy would have made of past executions: recorded decisions, decided again.

Records hold no content of requests and no metadata. A decision that can depend on either is "cannot tell" unless the
request is at hand; never a guess. Nor is one whose names were too long or unprintable to be recorded as they were, or
that depends on the moment within which it was made and written down. What was refused for another reason than policy
(a replayed permit, a lapsed lease) would be refused again, so it is counted apart.
"""

import enum
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from trust import limits
from trust.errors import Reason
from trust.levels import GOVERNED, POLICY_AWARE
from trust.policy.engine import Engine
from trust.policy.types import Authn, Call, Verdict
from trust.record import Intent, Side

# What `trust.record_rules.plain` puts in the place of a text that no record can hold.
_SHORTENED: Final = re.compile(r"~[0-9a-f]{16}\Z")
_WRITTEN_MS: Final = 5_000  # a decision was made at most so long before its record was written
_BY_POLICY: Final = frozenset(
    {
        Reason.POLICY_DENIED.value,
        Reason.NO_POLICY_PERMITS.value,
        Reason.POLICY_ERROR.value,
        Reason.REQUEST_UNREPRESENTABLE.value,
        Reason.OBLIGATION_UNSUPPORTED.value,
    }
)
_ALLOWED: Final = frozenset({Reason.ALLOWED.value, Reason.PASSED_UNGOVERNED.value})


@enum.unique
class Answer(enum.StrEnum):
    """What becomes of a call."""

    ALLOW = "allow"
    WOULD_DENY = "would-deny"  # goes on; level 4 would refuse it
    DENY = "deny"


@enum.unique
class Change(enum.StrEnum):
    """How an execution would differ."""

    NEWLY_DENIED = "newly-denied"
    NEWLY_ALLOWED = "newly-allowed"
    NEWLY_DOUBTED = "newly-would-deny"
    NO_LONGER_DOUBTED = "no-longer-would-deny"
    MORE_ASKED = "more-asked"  # still allowed, if it meets an obligation that was not asked for
    CANNOT_TELL = "cannot-tell"
    NOT_BY_POLICY = "not-by-policy"
    UNCHANGED = "unchanged"


SHOWN: Final = tuple(change for change in Change if change not in {Change.UNCHANGED, Change.NOT_BY_POLICY})
_MOVES: Final = {
    (Answer.ALLOW, Answer.DENY): Change.NEWLY_DENIED,
    (Answer.WOULD_DENY, Answer.DENY): Change.NEWLY_DENIED,
    (Answer.DENY, Answer.ALLOW): Change.NEWLY_ALLOWED,
    (Answer.DENY, Answer.WOULD_DENY): Change.NEWLY_ALLOWED,
    (Answer.ALLOW, Answer.WOULD_DENY): Change.NEWLY_DOUBTED,
    (Answer.WOULD_DENY, Answer.ALLOW): Change.NO_LONGER_DOUBTED,
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """An execution as one node decided it, with its request if somebody kept that."""

    intent: Intent
    request: bytes | None = None


@dataclass(slots=True)
class Group:
    """Executions of one kind that would differ in the same way."""

    change: Change
    caller: str
    service: str
    method: str
    before: str  # reason
    after: str  # reason; for CANNOT_TELL what is not recorded; for MORE_ASKED what is asked
    policies: tuple[str, ...]  # that determine the new answer
    count: int = 0
    examples: list[bytes] = field(default_factory=list)  # execution ids
    first_ms: int = 0
    last_ms: int = 0


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """Everything that would differ, the most frequent first."""

    executions: int
    groups: tuple[Group, ...]
    counts: dict[Change, int]
    truncated: bool = False  # there are more groups, or more executions than were looked at

    @property
    def differs(self) -> bool:
        """Whether any execution is known to differ."""
        return any(self.counts.get(change, 0) for change in SHOWN if change is not Change.CANNOT_TELL)


def replay(
    old: Engine | None, new: Engine, executions: Sequence[Recorded], *, truncated: bool = False
) -> ReplayReport:
    """Decide past executions again.

    Args:
        old: what they are compared with; None: with what was recorded of them.
        new: what is asked about.
        executions: in any order. One that both sidecars recorded counts once, as the callee's sidecar decided it.
        truncated: there were more than are given.
    """
    groups: dict[tuple[object, ...], Group] = {}
    counts: Counter[Change] = Counter()
    for one in _once(executions):
        change, before, after, verdict = _compare(old, new, one)
        counts[change] += 1
        if change not in SHOWN:
            continue
        intent = one.intent
        policies = () if verdict is None else verdict.policies
        key = (change, intent.caller, intent.service, intent.method, before, after, policies)
        group = groups.get(key)
        if group is None:
            if len(groups) >= limits.MAX_REPLAY_GROUPS:
                truncated = True
                continue
            group = groups[key] = Group(
                change, intent.caller, intent.service, intent.method, before, after, policies
            )
            group.first_ms = group.last_ms = intent.wall_ms
        group.count += 1
        group.first_ms, group.last_ms = (
            min(group.first_ms, intent.wall_ms),
            max(group.last_ms, intent.wall_ms),
        )
        if len(group.examples) < limits.MAX_REPLAY_EXAMPLES:
            group.examples.append(intent.execution_id)
    order = {change: place for place, change in enumerate(Change)}
    found = sorted(groups.values(), key=lambda g: (order[g.change], -g.count, g.caller, g.service, g.method))
    return ReplayReport(sum(counts.values()), tuple(found), dict(counts), truncated)


def unknown_of(engine: Engine, caller: str, method: str, service: str) -> str:
    """Return what a decision on such a call can depend on and no record holds; empty when nothing."""
    found = []
    if engine.reads_request(caller, method, service):
        found.append("request")
    if engine.mesh.metadata_keys and any(
        path[:1] in {(), ("metadata",)}
        for rule in engine.explain(caller, method, service)
        for path in rule.reads
    ):
        found.append("metadata")
    return " and ".join(found)


def _once(executions: Sequence[Recorded]) -> Iterator[Recorded]:
    """Yield each execution once: as the callee's sidecar decided it where there is one that records."""
    inbound = {one.intent.service for one in executions if one.intent.side is Side.INBOUND}
    for one in executions:
        intent = one.intent
        if intent.side is Side.INBOUND or not intent.allowed or intent.service not in inbound:
            yield one


def _compare(old: Engine | None, new: Engine, one: Recorded) -> tuple[Change, str, str, Verdict | None]:
    """Return how it would differ, the reason before, the reason after, and the new verdict if there is one."""
    intent = one.intent
    recorded = intent.would_deny or intent.reason
    if recorded not in _BY_POLICY and recorded not in _ALLOWED:
        return Change.NOT_BY_POLICY, recorded, recorded, None
    principal = intent.caller or f"spiffe://{new.mesh.trust_domain}/anonymous"
    if any(_SHORTENED.search(name) for name in (intent.caller, intent.method, intent.service)):
        return Change.CANNOT_TELL, recorded, "name", None
    for engine in (new,) if old is None else (new, old):
        lacking = unknown_of(engine, principal, intent.method, intent.service)
        if lacking and (one.request is None or lacking != "request"):
            return Change.CANNOT_TELL, recorded, lacking, None
        if _at_an_edge_of_time(engine, one, principal):
            return Change.CANNOT_TELL, recorded, "time", None
    verdict, after = _decide(new, one, principal)
    if old is None:
        asked = frozenset((name, value.rpartition("=")[0]) for name, value in intent.obligations)
        before, reason = _recorded(intent), recorded
    else:
        known, before = _decide(old, one, principal)
        asked, reason = frozenset(known.obligations), known.reason.value
    change = _MOVES.get((before, after))
    if change is not None:
        return change, reason, verdict.reason.value, verdict
    more = sorted(set(verdict.obligations) - asked) if after is Answer.ALLOW else []
    if more and new.mesh.level_of(intent.service) >= POLICY_AWARE:
        return Change.MORE_ASKED, reason, ", ".join(f'@{name}("{value}")' for name, value in more), verdict
    return Change.UNCHANGED, reason, verdict.reason.value, verdict


def _at_an_edge_of_time(engine: Engine, one: Recorded, principal: str) -> bool:
    """Whether the answer changed between the earliest moment at which it can have been made, and the record's."""
    intent = one.intent
    rules = engine.explain(principal, intent.method, intent.service)
    if not any(path[:1] in {(), ("time",)} for rule in rules for path in rule.reads):
        return False
    earlier, later = (_decide(engine, one, principal, before_ms=ms)[0] for ms in (_WRITTEN_MS, 0))
    return (earlier.allowed, earlier.reason, earlier.obligations) != (
        later.allowed,
        later.reason,
        later.obligations,
    )


def _recorded(intent: Intent) -> Answer:
    if not intent.allowed:
        return Answer.DENY
    return Answer.WOULD_DENY if intent.would_deny else Answer.ALLOW


def _decide(engine: Engine, one: Recorded, principal: str, *, before_ms: int = 0) -> tuple[Verdict, Answer]:
    """Return what an engine says of an execution, and what its level makes of that."""
    intent = one.intent
    level = engine.mesh.level_of(intent.service)
    call = Call(
        principal,
        intent.method,
        intent.service,
        Authn(intent.authn) if intent.caller and intent.authn in set(Authn) else Authn.NONE,
        intent.node,
        level,
        one.request,
    )
    verdict = engine.decide(call, now_ms=max(0, intent.wall_ms - before_ms))
    if verdict.allowed or level == 0:
        return verdict, Answer.ALLOW
    if level >= GOVERNED:
        return verdict, Answer.DENY
    spoken = verdict.reason is not Reason.NO_POLICY_PERMITS or engine.governs(intent.method, intent.service)
    return verdict, Answer.DENY if level == POLICY_AWARE and spoken else Answer.WOULD_DENY
