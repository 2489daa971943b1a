"""What a candidate would decide differently, and that it decides nothing."""

import contextlib
from dataclasses import dataclass, field

import pytest

from sidecar.core.call import Direction, RefusedError
from sidecar.core.shadow import Change, Comparison, Kind
from tests.support.sidecar_core import ALICE, ALLOW, FORBID, PAY, Core, RuleDecider, attempt, mesh
from trust import limits
from trust.errors import Reason
from trust.policy.types import Verdict

RULE = (ALICE, PAY)


@dataclass
class Trial:
    """A node that enforces one policy and tries another."""

    enforced: RuleDecider
    tried: RuleDecider
    core: Core = field(default_factory=Core.new)

    def __post_init__(self) -> None:
        self.core.adopt(self.enforced)
        self.comparison = Comparison(self.tried, None)
        self.core.pipeline.shadow = self.comparison

    def call(self, principal: str | None = ALICE, request: bytes | None = b"") -> None:
        """Make one call, whatever becomes of it."""
        with contextlib.suppress(RefusedError):
            self.core.pipeline.authorize(attempt(principal), request, now_ms=self.core.clock.wall)

    def found(self) -> list[Kind]:
        """Return the kinds of calls that differ."""
        return list(self.comparison.tallies)


def decider(verdict: Verdict, level: int = 4, **more: bool) -> RuleDecider:
    return RuleDecider(mesh(level), {RULE: verdict}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (ALLOW, FORBID, Change.DENIES),
        (FORBID, ALLOW, Change.ALLOWS),
        (ALLOW, ALLOW, None),
        (FORBID, FORBID, None),
    ],
    ids=["denied", "allowed", "still-allowed", "still-denied"],
)
def test_a_different_answer_is_counted_with_its_caller(
    before: Verdict, after: Verdict, change: Change | None
) -> None:
    """Twice the same call is one kind, counted twice."""
    trial = Trial(decider(before), decider(after))
    trial.call()
    trial.call()
    assert trial.comparison.compared == 2
    if change is None:
        assert trial.found() == []
        return
    kind = Kind(change, Direction.INBOUND, ALICE, "payments", PAY, before.reason, after.reason)
    assert trial.comparison.tallies[kind].count == 2


def test_the_candidate_decides_nothing() -> None:
    """What it would deny goes on; what it would allow stays refused."""
    trial = Trial(decider(ALLOW), decider(FORBID))
    assert trial.core.pipeline.authorize(attempt(), b"", now_ms=trial.core.clock.wall).decision.allowed
    trial = Trial(decider(FORBID), decider(ALLOW))
    with pytest.raises(RefusedError):
        trial.core.pipeline.authorize(attempt(), b"", now_ms=trial.core.clock.wall)


def test_a_candidate_with_a_higher_level_denies_what_only_a_level_let_pass() -> None:
    """The way from observing to enforcing is tried before it is taken."""
    trial = Trial(decider(FORBID, level=1), decider(FORBID, level=4))
    trial.call()
    assert [kind.change for kind in trial.found()] == [Change.DENIES]


def test_what_level_four_would_refuse_is_compared_below_it_too() -> None:
    """At level 1 nothing is refused, and still the answers differ."""
    trial = Trial(decider(FORBID, level=1), decider(ALLOW, level=1))
    trial.call()
    assert [kind.change for kind in trial.found()] == [Change.WOULD_ALLOW]
    trial = Trial(decider(ALLOW, level=1), decider(FORBID, level=1))
    trial.call()
    assert [kind.change for kind in trial.found()] == [Change.WOULD_DENY]


def test_new_obligations_are_a_difference() -> None:
    """The call stays allowed, but more is asked of it."""
    audited = Verdict(True, Reason.ALLOWED, ("may",), obligations=(("audit", "payload"),))
    trial = Trial(decider(ALLOW), decider(audited))
    trial.call()
    assert [kind.change for kind in trial.found()] == [Change.OBLIGES]


def test_a_request_that_only_the_candidate_reads_is_no_answer() -> None:
    """A decision without the request would be a guess."""
    trial = Trial(decider(ALLOW), decider(ALLOW, reads=True))
    trial.call(request=None)
    assert [kind.change for kind in trial.found()] == [Change.UNKNOWN]


def test_calls_that_no_policy_decided_are_not_compared() -> None:
    """With the lease over, both would refuse."""
    trial = Trial(decider(ALLOW), decider(FORBID))
    trial.core.clock.pass_ms(10**6)
    trial.call()
    assert (trial.comparison.compared, trial.comparison.incomparable) == (0, 1)
    assert trial.found() == []


def test_a_caller_who_makes_up_methods_cannot_fill_the_memory() -> None:
    """Beyond the limit differences are counted, not kept."""
    trial = Trial(RuleDecider(mesh(1), {}), RuleDecider(mesh(4), {}))
    for number in range(limits.MAX_SHADOW_DIFFERENCES + 5):
        made_up = attempt(f"spiffe://mesh.local/workload/w{number % 20}", method=f"a.B/M{number}")
        trial.core.pipeline.authorize(made_up, b"", now_ms=trial.core.clock.wall)
    assert len(trial.comparison.tallies) == limits.MAX_SHADOW_DIFFERENCES
    assert trial.comparison.omitted == 5


def test_a_caller_who_makes_up_methods_cannot_hide_what_others_lose() -> None:
    """It fills its own share, with short names; the difference of another is still counted."""
    trial = Trial(RuleDecider(mesh(1), {}), RuleDecider(mesh(4), {}))
    for number in range(limits.MAX_SHADOW_DIFFERENCES):
        made_up = attempt(method=f"a.B/M{number}" + "x" * 8_000)
        trial.core.pipeline.authorize(made_up, b"", now_ms=trial.core.clock.wall)
    trial.call("spiffe://mesh.local/workload/bob")
    assert len(trial.comparison.tallies) == limits.MAX_CALLER_SHADOW_DIFFERENCES + 1
    assert max(len(kind.method) for kind in trial.found()) == limits.MAX_SHADOW_TEXT_BYTES


Panic = type(
    "PanicException", (BaseException,), {"__module__": "pyo3_runtime"}
)  # as Cedar raises when it panics


@pytest.mark.parametrize(
    "failure", [KeyError("a.B/C"), RecursionError(), Panic("index out of bounds")], ids=repr
)
def test_a_candidate_that_fails_changes_no_decision_and_is_told(failure: BaseException) -> None:
    """The call goes on; the run says that it is not complete, and why."""

    class Broken(RuleDecider):
        def governs(self, method: str, service: str) -> bool:
            raise failure

    trial = Trial(decider(ALLOW), Broken(mesh(4), {}))
    assert trial.core.pipeline.authorize(attempt(), b"", now_ms=trial.core.clock.wall).decision.allowed
    assert (trial.comparison.compared, trial.comparison.incomparable) == (0, 1)
    assert type(failure).__name__ in trial.comparison.problem and PAY in trial.comparison.problem


def test_reasons_are_those_that_people_look_up() -> None:
    """Before and after, in the words of docs/reasons.md."""
    trial = Trial(decider(ALLOW), RuleDecider(mesh(4), {}))
    trial.call()
    (kind,) = trial.found()
    assert (kind.before, kind.after) == (Reason.ALLOWED, Reason.NO_POLICY_PERMITS)
