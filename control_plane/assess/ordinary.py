"""Whether records of ordinary calls contradict what probes were told: executed without a permit, though refused. Pure.

A sidecar that knows a probe when it sees one can behave for it. What it lets through otherwise, it has to leave out of
its ledger, or to write down; and callers' sidecars write down the same calls.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from control_plane.assess.model import Basis, Check, Outcome
from control_plane.core.replay import Change, Recorded, replay
from trust.errors import Reason
from trust.execution import id_text
from trust.policy.engine import Engine
from trust.record import Ending, Intent, Side
from trust.record import Outcome as Ended

GOVERNED: Final = 4
CRYPTOGRAPHIC: Final = 5
SHIPPED_AFTER_MS: Final = 60_000  # by then the other side's record of a call has reached the index, too
_EXAMPLES: Final = 3
_OK: Final = "OK"


@dataclass(frozen=True, slots=True)
class Seen:
    """One side of one execution, as the index has it; `outcome` None while none has arrived."""

    intent: Intent
    outcome: Ended | None = None

    @property
    def executed(self) -> bool:
        """Whether the service's answer was passed on, and was a good one."""
        return (
            self.outcome is not None
            and self.outcome.ending is Ending.COMPLETED
            and self.outcome.status == _OK
        )


@dataclass(frozen=True, slots=True)
class Past:
    """What the index says of a service.

    Args:
        seen: the newest records of calls to it, of anybody.
        problem: why they could not be had; "" when they could.
        unknown: nodes of which records are missing since the control plane does not hear of them.
    """

    seen: Sequence[Seen] = ()
    problem: str = ""
    unknown: Sequence[str] = ()


@dataclass(slots=True)
class _Found:
    """What contradicts, by kind."""

    examples: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, intent: Intent) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        kept = self.examples.setdefault(what, [])
        if len(kept) < _EXAMPLES:
            kept.append(id_text(intent.execution_id))


def judge(service: str, level: int | None, engine: Engine | None, past: Past, *, now_ms: int) -> Check:
    """Hold ordinary records against the signed level and policy.

    Args:
        service: that was called.
        level: signed for it; None: not known.
        engine: of the published policy; records made under another version are not looked at.
        past: from the index.
        now_ms: Unix ms.
    """
    tried = "read the records of ordinary calls, of both sides, and decided them again"

    def check(outcome: Outcome, answered: str, evidence: Mapping[str, str] | None = None) -> Check:
        return Check("records-agree", service, outcome, Basis.OBSERVED, tried, answered, evidence or {})

    if level is None or engine is None:
        return check(Outcome.UNKNOWN, "the signed level is not known")
    if level < GOVERNED:
        return check(Outcome.FAILED, f"level {level} is signed: calls execute without a permit by policy")
    if past.problem:
        return check(Outcome.UNKNOWN, past.problem)
    if not past.seen:
        return check(Outcome.UNKNOWN, "the index has no record of a call to it under the policy in force")
    found = _Found()
    for what, intent in _contradictions(level, past.seen):
        found.add(what, intent)
    for what, intent in _unrecorded(level, past, now_ms):
        found.add(what, intent)
    settings = engine.mesh.services.get(service)
    if settings is None or settings.namespace is None:  # a namespace's version is on no record
        _denied(engine, past.seen, found)
    evidence = {"records": str(len(past.seen))}
    if found.counts:
        evidence |= {what: ", ".join(examples) for what, examples in found.examples.items()}
        return check(Outcome.FAILED, "; ".join(f"{n} {what}" for what, n in found.counts.items()), evidence)
    return check(Outcome.HELD, f"none of {len(past.seen)} contradicts the policy", evidence)


def _contradictions(level: int, seen: Iterable[Seen]) -> Iterator[tuple[str, Intent]]:
    for one in seen:
        intent = one.intent
        if intent.level < level:
            yield f"decided at a lower level than {level}", intent
        elif not intent.allowed:
            if one.executed:
                yield "answered by the service though refused", intent
        elif intent.would_deny or intent.reason != Reason.ALLOWED:
            yield "let through without a permit by policy", intent
        elif level >= CRYPTOGRAPHIC and intent.side is Side.INBOUND and not intent.permit_sha256:
            yield "executed without a cryptographic permit", intent


def _unrecorded(level: int, past: Past, now_ms: int) -> Iterator[tuple[str, Intent]]:
    """Yield calls that a caller's sidecar saw answered, and the callee's never wrote down.

    From level 5 on both know an execution by one id, which its permit carries.
    """
    if level < CRYPTOGRAPHIC or past.unknown:
        return
    inbound = {one.intent.execution_id for one in past.seen if one.intent.side is Side.INBOUND}
    for one in past.seen:
        intent = one.intent
        old = now_ms - intent.wall_ms > SHIPPED_AFTER_MS
        if intent.side is Side.OUTBOUND and one.executed and old and intent.execution_id not in inbound:
            yield "answered, and on no record of the service's own sidecar", intent


def _denied(engine: Engine, seen: Iterable[Seen], found: _Found) -> None:
    allowed = [one.intent for one in seen if one.intent.allowed]
    for intent in allowed:
        if replay(None, engine, [Recorded(intent)]).counts.get(Change.NEWLY_DENIED):
            found.add("allowed though policy denies it", intent)
