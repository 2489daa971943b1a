"""Limits in the pipeline: taken once per execution, enforced as the level says; restrictions by incident response."""

from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.bundle_state import BundleState, Record
from sidecar.core.call import Decision, Permitted, RefusedError
from sidecar.core.pipeline import Pipeline
from tests.support.emergency import FIRST, TD, rules
from tests.support.sidecar_core import (
    ALICE,
    ALLOW,
    PAY,
    WATCH,
    ManualClock,
    RuleDecider,
    attempt,
    mesh,
    verified,
)
from tests.support.sidecar_core import (
    Kind as Shape,
)
from trust.denials import Denials
from trust.errors import EvidenceError, Reason
from trust.policy.controls import controls_of
from trust.policy.types import Verdict
from trust.revocation import Kind

BOB = f"spiffe://{TD}/workload/bob"
TEN = 100_000  # in units, as the stand-in reads it


def allowing(*obligations: tuple[str, str], policy: str = "may") -> Verdict:
    """Return what an engine says of a permit with these annotations."""
    return replace(ALLOW, obligations=obligations, controls=controls_of(obligations, policy))


class Denier(Denials):
    """Denials that restrict as the test says."""

    asked: tuple[tuple[str, str], ...] = ()

    def restrictions(self, principal: str, now_ms: int) -> tuple[tuple[str, str], ...]:
        """Restrict alice alone."""
        return self.asked if principal == ALICE else ()


class Node:
    """A pipeline under a policy that the test gives."""

    def __init__(self, level: int, verdict: Verdict, *restrictions: tuple[str, str]) -> None:
        self.clock = ManualClock()
        self.denials = Denier(TD)
        self.denials.asked = restrictions
        self.denials.govern(rules(), now_ms=self.clock.wall, monotonic_ms=self.clock.mono)
        self.state = BundleState(Record(), monotonic_ms=self.clock.mono)
        self.pipeline = Pipeline(
            node="n1", trust_domain=TD, boot_id="b", state=self.state, clock=self.clock, denials=self.denials
        )
        self.version = 0
        self.adopt(level, verdict)

    def adopt(self, level: int, verdict: Verdict) -> None:
        """Take up a policy."""
        self.version += 1
        table = {(who, method): verdict for who in (ALICE, BOB) for method in (PAY, WATCH)}
        methods = {PAY: Shape(), WATCH: Shape(client_streaming=True)}
        decider = RuleDecider(mesh=mesh(level), rules=table, methods=methods)
        policy = verified(self.version, timestamp=self.version, lease_expires_ms=self.clock.wall + 60_000)
        self.state.offer(policy, decider, now_ms=self.clock.wall, monotonic_ms=self.clock.mono)
        self.pipeline.governance_changed()

    def call(self, request: bytes = b"", **more: Any) -> Permitted | Decision:
        """Ask for one call; the refusal is returned."""
        try:
            return self.pipeline.authorize(attempt(**more), request, now_ms=self.clock.wall)
        except RefusedError as refused:
            return refused.decision

    def decision(self, request: bytes = b"", **more: Any) -> Decision:
        """Return what became of one call."""
        made = self.call(request, **more)
        return made.decision if isinstance(made, Permitted) else made


RATE = allowing(("rate", "1/m"))
BUDGET = allowing(("budget", "10 per day of amount"))


@pytest.mark.parametrize("level", [3, 4, 5])
@pytest.mark.parametrize(
    ("verdict", "reason", "words"),
    [
        (RATE, Reason.RATE_EXCEEDED, 'policy may allows spiffe://mesh.local/workload/alice @rate("1/m")'),
        (BUDGET, Reason.BUDGET_EXCEEDED, "of which 3 is left; ask for less, or call again after "),
    ],
    ids=["rate", "budget"],
)
def test_from_level_three_on_what_is_used_up_is_refused_and_says_when_to_call_again(
    level: int, verdict: Verdict, reason: Reason, words: str
) -> None:
    """Another caller is not concerned."""
    node = Node(level, verdict)
    assert node.decision(b"70000").allowed
    refused = node.decision(b"70000")
    assert (refused.allowed, refused.reason, refused.obligations) == (False, reason, ())
    assert words in refused.detail and refused.retry_ms > 0
    assert node.decision(b"70000", principal=BOB).allowed
    node.clock.pass_ms(refused.retry_ms)
    node.adopt(level, verdict)  # a budget's next window is far behind the lease
    assert node.decision(b"70000").allowed


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    ("verdict", "reason"), [(RATE, Reason.RATE_EXCEEDED), (BUDGET, Reason.BUDGET_EXCEEDED)]
)
def test_below_level_three_what_is_used_up_is_said_and_passes(
    level: int, verdict: Verdict, reason: Reason
) -> None:
    """A person sees what enforcing would do, before it does."""
    node = Node(level, verdict)
    assert node.decision(b"70000").would_deny is None
    passed = node.decision(b"70000")
    assert (passed.allowed, passed.reason, passed.would_deny) == (True, Reason.ALLOWED, reason)
    assert passed.detail and passed.retry_ms == 0
    assert node.pipeline.counters.decisions()[f"inbound.would_deny.{reason}"] == 1


def test_at_level_zero_nothing_is_counted() -> None:
    """It decides nothing."""
    node = Node(0, RATE, ("rate", "1/m"))
    assert all(node.decision().reason is Reason.PASSED_UNGOVERNED for _ in range(3))
    assert len(node.pipeline.meters) == 0


def test_when_the_lease_is_over_level_three_goes_on_uncounted_and_level_four_refuses() -> None:
    """Without governance there is nobody whose limits could be in force; what incident response took stays taken."""
    three, four = Node(3, RATE), Node(4, RATE)
    for node in (three, four):
        node.clock.pass_ms(10**7)
    for _ in range(3):
        passed = three.decision()
        assert (passed.allowed, passed.reason) == (True, Reason.GOVERNANCE_UNAVAILABLE)
        assert passed.would_deny is Reason.POLICY_STALE
    assert four.decision().reason is Reason.POLICY_STALE
    restricted = Node(3, RATE, ("rate", "2/m"))
    restricted.clock.pass_ms(10**7)
    reasons = [restricted.decision().reason for _ in range(3)]
    assert reasons == [*[Reason.GOVERNANCE_UNAVAILABLE] * 2, Reason.RATE_EXCEEDED]


def test_an_execution_is_counted_once_however_often_it_is_decided() -> None:
    """A policy that changes while the disk is waited for decides again; that is not another call."""
    node = Node(4, allowing(("rate", "2/m")))
    permitted = node.call()
    assert isinstance(permitted, Permitted)
    for _ in range(5):
        node.adopt(4, allowing(("rate", "2/m")))
        assert node.pipeline.withdrawn(permitted, b"", now_ms=node.clock.wall) is None
        assert node.pipeline.preview(attempt(), b"", now_ms=node.clock.wall).allowed
        assert node.pipeline.decide(attempt(), b"", now_ms=node.clock.wall).allowed
    assert node.decision().allowed
    assert node.decision().reason is Reason.RATE_EXCEEDED
    assert node.pipeline.preview(attempt(), b"", now_ms=node.clock.wall).reason is Reason.RATE_EXCEEDED


def test_what_is_left_is_told_without_taking_any() -> None:
    """`egm check` asks; a fraction of a call is not left."""
    node = Node(4, allowing(("rate", "6/m"), ("budget", "10 per day of amount")))
    rate, budget = (
        one for name in ("rate", "budget") for one in node.decision(b"25000").controls if one.name == name
    )

    def left() -> tuple[str, str]:
        ask = attempt()
        return (
            node.pipeline.left(rate, ask, now_ms=node.clock.wall),
            node.pipeline.left(budget, ask, now_ms=node.clock.wall),
        )

    assert left() == ("4", "5")
    node.clock.pass_ms(9_000)
    assert left() == ("4", "5")
    node.clock.pass_ms(1_000)
    assert left() == left() == ("5", "5")


@pytest.mark.parametrize(
    ("level", "method", "alone", "binds"),
    [
        (4, PAY, False, ""),
        (5, PAY, False, "request"),
        (5, PAY, True, "request"),
        (5, WATCH, False, "opening message"),
        (5, WATCH, True, "method"),
    ],
)
def test_what_a_permit_binds_is_told(level: int, method: str, alone: bool, binds: str) -> None:
    """Below level 5 there is none; a method with one request binds it, whatever policy says of streams."""
    node = Node(level, replace(ALLOW, method_alone=alone))
    decision = node.decision(method=method)
    assert node.pipeline.binds(attempt(method=method), decision) == binds
    assert node.pipeline.binds(attempt(method=method), replace(decision, allowed=False)) == ""


def test_an_open_stream_is_not_counted_again_nor_cut_when_limits_change() -> None:
    """Limits are on what is opened."""
    node = Node(4, allowing(("rate", "2/m")))
    cuts: list[Decision] = []
    permitted = node.call(method=WATCH)
    assert isinstance(permitted, Permitted)
    node.pipeline.opened(permitted, cuts.append)
    node.denials.asked = (("rate", "1/h"),)
    node.adopt(4, allowing(("rate", "1/m")))
    while node.pipeline.streams.pending:
        node.pipeline.review(now_ms=node.clock.wall)
    assert cuts == [] and len(node.pipeline.streams) == 1


def test_what_a_call_took_is_given_back_when_it_is_not_forwarded() -> None:
    """A full disk must not cost the caller its budget."""
    node = Node(4, allowing(("rate", "1/m"), ("budget", "10 per day of amount")))
    permitted = node.call(b"100000")
    assert isinstance(permitted, Permitted) and permitted.taken
    assert not node.decision(b"1").allowed
    node.pipeline.unforwarded(permitted)
    assert node.decision(b"100000").allowed


def test_a_call_that_one_limit_refuses_takes_nothing_of_the_others() -> None:
    """All or nothing."""
    node = Node(4, allowing(("rate", "2/m"), ("budget", "10 per day of amount")))
    assert node.decision(b"100001").reason is Reason.BUDGET_EXCEEDED
    assert node.decision(b"100001").reason is Reason.BUDGET_EXCEEDED
    assert node.decision(b"50000").allowed and node.decision(b"50000").allowed


def test_callers_that_nobody_identified_share_what_the_anonymous_one_has() -> None:
    """At level 3 they are decided as one; they are limited as one."""
    node = Node(3, RATE)
    decider = RuleDecider(mesh=mesh(3), rules={(f"spiffe://{TD}/anonymous", PAY): RATE})
    policy = verified(9, timestamp=9, lease_expires_ms=node.clock.wall + 60_000)
    node.state.offer(policy, decider, now_ms=node.clock.wall, monotonic_ms=node.clock.mono)
    node.pipeline.governance_changed()
    assert node.decision(principal=None).allowed
    assert node.decision(principal=None).reason is Reason.RATE_EXCEEDED


@pytest.mark.parametrize(("level", "allowed"), [(2, True), (3, False), (4, False)])
def test_an_amount_that_cannot_be_told_is_refused_where_limits_bind(level: int, allowed: bool) -> None:
    """A negative amount, a stream without a single request: nothing is counted as nothing."""

    class Unreadable(RuleDecider):
        def amount(self, method: str, service: str, request: bytes, field: tuple[str, ...]) -> int:
            raise EvidenceError(Reason.OBLIGATION_UNMET, "amount is negative")

    node = Node(level, BUDGET)
    stream = node.decision(method=WATCH)
    decider = Unreadable(mesh=mesh(level), rules={(ALICE, PAY): BUDGET})
    policy = verified(9, timestamp=9, lease_expires_ms=node.clock.wall + 60_000)
    node.state.offer(policy, decider, now_ms=node.clock.wall, monotonic_ms=node.clock.mono)
    node.pipeline.governance_changed()
    for decision, words in ((stream, "a stream has no single request"), (node.decision(b"1"), "is negative")):
        assert decision.allowed is allowed and words in decision.detail
        assert (decision.would_deny or decision.reason) is Reason.OBLIGATION_UNMET


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_a_restriction_by_incident_response_bites_from_level_two_on(level: int) -> None:
    """Whatever policy allows; it is known as such, and others go on."""
    node = Node(level, ALLOW, ("rate", "1/m"))
    first = node.decision()
    assert first.allowed and first.obligations == first.restrictions == (("rate", "1/m"),)
    refused = node.decision()
    assert (refused.allowed, refused.reason) == (False, Reason.RATE_EXCEEDED)
    assert refused.detail.startswith("incident response allows") and refused.restrictions
    assert all(node.decision(principal=BOB).allowed for _ in range(3))
    node.denials.asked = ()
    assert node.decision().allowed


def test_below_level_two_a_restriction_changes_nothing() -> None:
    """Level 1 blocks nothing."""
    node = Node(1, ALLOW, ("rate", "1/m"))
    assert all(node.decision().would_deny is None for _ in range(3))


def test_a_restriction_adds_to_what_policy_asks() -> None:
    """Both are counted; at level 2 only the restriction refuses."""
    both = Node(4, allowing(("audit", "payload"), ("rate", "2/m")), ("rate", "3/m"))
    assert both.decision().obligations == (("audit", "payload"), ("rate", "2/m"), ("rate", "3/m"))
    two = Node(2, RATE, ("rate", "2/m"))
    assert [two.decision().would_deny for _ in range(2)] == [None, Reason.RATE_EXCEEDED]
    assert two.decision().reason is Reason.RATE_EXCEEDED


def test_a_restriction_that_this_version_cannot_meet_refuses() -> None:
    """What incident response asks and nobody understands is not ignored."""
    decision = Node(2, ALLOW, ("fence", "high")).decision()
    assert (decision.allowed, decision.reason) == (False, Reason.OBLIGATION_UNSUPPORTED)


@pytest.mark.parametrize(("level", "cut"), [(2, True), (3, True), (4, True)])
def test_an_open_stream_is_cut_when_incident_response_asks_for_approvers(level: int, cut: bool) -> None:
    """They have not seen what it was opened with."""
    node = Node(level, ALLOW)
    cuts: list[Decision] = []
    permitted = node.call(method=WATCH)
    assert isinstance(permitted, Permitted)
    node.pipeline.opened(permitted, cuts.append)
    node.denials.asked = (("require_approval", "1 of ops"),)
    node.pipeline.governance_changed()
    while node.pipeline.streams.pending:
        node.pipeline.review(now_ms=node.clock.wall)
    assert [one.reason for one in cuts] == [Reason.AUTHORIZATION_WITHDRAWN] * cut


def test_a_signed_directive_throttles_a_workload() -> None:
    """From the note of an emergency key to the refusal, without a stand-in."""
    node = Node(2, ALLOW)
    node.denials = Denials(TD)  # type: ignore[assignment]  # the real one
    node.denials.govern(rules(), now_ms=node.clock.wall, monotonic_ms=node.clock.mono)
    node.pipeline._denials = node.denials
    note = FIRST.revoke(Kind.THROTTLE, "alice 2/h", now_ms=node.clock.wall)
    node.denials.offer(note, now_ms=node.clock.wall, monotonic_ms=node.clock.mono)
    node.pipeline.governance_changed()
    assert [node.decision().allowed for _ in range(3)] == [True, True, False]
    assert node.decision(principal=BOB).allowed


def test_what_does_not_bind_and_is_used_up_is_not_counted_and_what_binds_is() -> None:
    """At level 2 a restriction counts though policy would refuse; the decision says which limits took something."""
    node = Node(2, RATE, ("budget", "10 per day"))
    assert {one.name for one in node.decision().controls} == {"budget", "rate"}
    second = node.decision()
    assert (second.allowed, second.would_deny) == (True, Reason.RATE_EXCEEDED)
    assert [one.name for one in second.controls] == ["budget"]
    shown = node.pipeline.preview(attempt(), b"", now_ms=node.clock.wall)
    assert {one.name for one in shown.controls} == {"budget", "rate"}, "a person asks about every limit"
