"""Each level's behaviour, call by call, and open streams that lose their right."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.core.call import Decision, Direction, RefusedError
from sidecar.core.gate import Gate, Shape
from tests.support.sidecar_core import (
    ALICE,
    ALLOW,
    BROKEN,
    FORBID,
    OBLIGED,
    PAY,
    WATCH,
    Core,
    Kind,
    RuleDecider,
    attempt,
    mesh,
)
from trust import limits
from trust.errors import Reason
from trust.policy.types import Authn, Verdict

ROOT = Path(__file__).parents[4]
ALONE = replace(ALLOW, method_alone=True)


def decided(core: Core, **kwargs: object) -> Decision:
    """Return the decision on one call, refused or not."""
    try:
        call = attempt(**kwargs)  # type: ignore[arg-type]
        return core.pipeline.authorize(call, None, now_ms=core.clock.wall).decision
    except RefusedError as refused:
        return refused.decision


def _may_mint(node: ast.AST) -> bool:
    """Return whether an import statement brings the minting function, or the module that holds it, in reach."""
    if isinstance(node, ast.Import):
        return any(alias.name == "sidecar.core.call" for alias in node.names)
    if not isinstance(node, ast.ImportFrom):
        return False
    names = {alias.name for alias in node.names}
    if node.module == "sidecar.core":
        return bool(names & {"call", "*"})
    return node.module == "sidecar.core.call" and bool(names & {"permitted", "_SEAL", "*"})


def test_only_the_pipeline_mints_permitted() -> None:
    """Whoever could import `permitted` could skip the decision."""
    importers = set()
    for package in ("sidecar", "control_plane", "trust"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if _may_mint(node):
                    importers.add(path.relative_to(ROOT).as_posix())
    assert importers == {"sidecar/core/pipeline.py"}


def test_without_policy_everything_is_refused_whatever_the_local_level() -> None:
    """A sidecar that starts before its policy must not be an open door."""
    for local in (None, 0, 1, 2, 3, 4):
        decision = decided(Core.new(local_level=local))
        assert (decision.allowed, decision.reason) == (False, Reason.POLICY_MISSING)
        assert (decision.level, decision.policy_version) == (4, 0)


def test_level_4_allows_an_explicit_permit_and_names_it() -> None:
    """A person must be able to ask which policy decided."""
    core = Core.new()
    core.adopt(RuleDecider(rules={(ALICE, PAY): ALLOW}), version=7)
    decision = decided(core)
    assert decision == Decision("boot-1", True, Reason.ALLOWED, 4, 7, ("may",))


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (FORBID, Reason.POLICY_DENIED),
        (BROKEN, Reason.POLICY_ERROR),
        (OBLIGED, Reason.OBLIGATION_UNSUPPORTED),
        (Verdict(False, Reason.REQUEST_UNREPRESENTABLE, ()), Reason.REQUEST_UNREPRESENTABLE),
    ],
)
def test_level_4_refuses_with_the_engine_s_reason(verdict: Verdict, reason: Reason) -> None:
    """Fail closed, and say why."""
    core = Core.new()
    core.adopt(RuleDecider(rules={(ALICE, PAY): verdict}))
    decision = decided(core)
    assert (decision.allowed, decision.reason) == (False, reason)
    assert decision.detail


def test_level_4_default_deny_names_caller_method_and_service() -> None:
    """The commonest refusal must be enough to write the missing policy from."""
    core = Core.new()
    core.adopt(RuleDecider())
    decision = decided(core)
    assert decision.reason is Reason.NO_POLICY_PERMITS
    for part in (ALICE, PAY, "payments"):
        assert part in decision.detail


@pytest.mark.parametrize("why", [Reason.CALLER_UNIDENTIFIED, Reason.CALLER_CERTIFICATE_EXPIRED])
def test_level_4_refuses_an_unidentified_caller_for_the_door_s_reason(why: Reason) -> None:
    """The engine is not even asked."""
    core = Core.new()
    engine = RuleDecider(rules={("spiffe://mesh.local/anonymous", PAY): ALLOW})
    core.adopt(engine)
    assert decided(core, principal=None, unidentified=why).reason is why
    assert engine.seen == []


def test_level_3_decides_an_unidentified_caller_as_anonymous() -> None:
    """A forbid of the anonymous principal must be possible."""
    core = Core.new()
    engine = RuleDecider(mesh(level=3), rules={("spiffe://mesh.local/anonymous", PAY): FORBID})
    core.adopt(engine)
    decision = decided(core, principal=None, unidentified=Reason.CALLER_UNIDENTIFIED)
    assert decision.reason is Reason.POLICY_DENIED
    assert engine.seen[0].authn is Authn.NONE


def test_level_3_passes_what_no_policy_governs() -> None:
    """Enforced where a policy exists."""
    core = Core.new()
    core.adopt(RuleDecider(mesh(level=3), governed=False))
    decision = decided(core)
    assert (decision.allowed, decision.reason) == (True, Reason.PASSED_UNGOVERNED)
    assert decision.would_deny is Reason.NO_POLICY_PERMITS


def test_level_3_continues_when_the_lease_is_over() -> None:
    """With a reason, so that nobody mistakes it for governance."""
    core = Core.new()
    core.adopt(RuleDecider(mesh(level=3), rules={(ALICE, PAY): FORBID}))
    core.clock.pass_ms(180_000)
    decision = decided(core)
    assert (decision.allowed, decision.reason) == (True, Reason.GOVERNANCE_UNAVAILABLE)


def test_level_1_blocks_nothing_and_counts_what_level_4_would_refuse() -> None:
    """The first step of the ladder is to look."""
    core = Core.new()
    core.adopt(RuleDecider(mesh(level=1), rules={(ALICE, PAY): FORBID}))
    decision = decided(core, direction=Direction.OUTBOUND)
    assert (decision.allowed, decision.would_deny) == (True, Reason.POLICY_DENIED)
    assert core.pipeline.counters.decisions() == {
        "outbound.PASSED_UNGOVERNED": 1,
        "outbound.would_deny.POLICY_DENIED": 1,
    }


def test_level_0_does_not_ask_the_policies() -> None:
    """Nothing is decided at level 0."""
    core = Core.new()
    engine = RuleDecider(mesh(level=0), reads=True)
    core.adopt(engine)
    assert decided(core).reason is Reason.PASSED_UNGOVERNED
    assert engine.seen == []
    assert not core.pipeline.needs_request(attempt())


def test_local_level_raises_a_signed_lower_level() -> None:
    """One node may be stricter than the mesh."""
    core = Core.new(local_level=4)
    core.adopt(RuleDecider(mesh(level=1)))
    assert decided(core).reason is Reason.NO_POLICY_PERMITS


def test_local_level_cannot_lower_a_signed_level() -> None:
    """Whoever edits the node's file must not open the door."""
    core = Core.new(local_level=0)
    core.adopt(RuleDecider(mesh(level=4)))
    assert decided(core).allowed is False


def test_services_have_their_own_level() -> None:
    """A mesh climbs service by service."""
    core = Core.new()
    core.adopt(RuleDecider(mesh(level=4, quotes=1)))
    assert decided(core, service="payments").allowed is False
    assert decided(core, service="quotes").allowed is True


def test_lease_is_checked_at_every_call_without_a_tick() -> None:
    """Sealing must not wait for a timer."""
    core = Core.new()
    core.adopt(RuleDecider(rules={(ALICE, PAY): ALLOW}))
    core.clock.pass_ms(179_999)
    assert decided(core).allowed
    core.clock.pass_ms(1)
    assert decided(core).reason is Reason.POLICY_STALE


def test_shapes_come_from_descriptors_and_unknown_methods_are_streams() -> None:
    """An unknown method must pass unchanged, which only the stream path can promise."""
    core = Core.new()
    gate: Gate = core.pipeline
    assert gate.shape("payments", PAY) is Shape.STREAM
    core.adopt(RuleDecider(methods={PAY: Kind(), WATCH: Kind(False, True), "a.B/C": Kind(True, False)}))
    assert gate.shape("payments", PAY) is Shape.UNARY
    assert gate.shape("payments", WATCH) is Shape.SERVER_STREAM
    assert gate.shape("payments", "a.B/C") is Shape.STREAM
    assert gate.shape("payments", "no.Such/Method") is Shape.STREAM


def test_a_message_of_a_client_stream_is_never_shown_as_the_request() -> None:
    """The schema has no request there; one message among many would be a lie."""
    core = Core.new()
    engine = RuleDecider(methods={PAY: Kind(True, True)}, reads=True)
    core.adopt(engine)
    assert not core.pipeline.needs_request(attempt())
    with pytest.raises(RefusedError):
        core.pipeline.authorize(attempt(), b"x", now_ms=core.clock.wall)
    assert engine.seen[-1].request is None


def test_a_new_policy_changes_shapes_and_levels() -> None:
    """Nothing learned from the old policy may outlive it."""
    core = Core.new()
    core.adopt(RuleDecider(mesh(level=1)))
    assert core.pipeline.level("payments") == 1
    core.adopt(RuleDecider(mesh(level=4), methods={}), version=2)
    assert core.pipeline.level("payments") == 4
    assert core.pipeline.shape("payments", PAY) is Shape.STREAM


def open_stream(core: Core, cuts: list[Decision], request: bytes | None = b"r") -> int:
    """Authorise and register one server stream."""
    permit = core.pipeline.authorize(attempt(method=WATCH), request, now_ms=core.clock.wall)
    return core.pipeline.opened(permit, cuts.append)


def test_stream_is_cut_when_a_new_policy_withdraws_its_right() -> None:
    """With the reason, and the reason behind it."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW}))
    open_stream(core, cuts)
    core.adopt(RuleDecider(rules={(ALICE, WATCH): FORBID}), version=2)
    assert core.pipeline.review(now_ms=core.clock.wall) == 1
    assert cuts[0].reason is Reason.AUTHORIZATION_WITHDRAWN
    assert "POLICY_DENIED" in cuts[0].detail
    assert cuts[0].policy_version == 2
    assert core.pipeline.counters.streams_cut == 1


def test_stream_whose_right_holds_is_decided_again_with_its_request_and_kept() -> None:
    """A policy change must not cut calls that it does not concern."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW}))
    open_stream(core, cuts)
    second = RuleDecider(rules={(ALICE, WATCH): ALLOW})
    core.adopt(second, version=2)
    assert core.pipeline.review(now_ms=core.clock.wall) == 0
    assert second.seen[0].request == b"r"
    assert len(core.pipeline.streams) == 1


def test_streams_are_cut_as_stale_when_the_lease_is_sealed() -> None:
    """An open stream is an execution that never ends; the lease must bound it too."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW}))
    open_stream(core, cuts)
    core.clock.pass_ms(180_000)
    core.pipeline.governance_changed()
    core.pipeline.review(now_ms=core.clock.wall)
    assert [cut.reason for cut in cuts] == [Reason.POLICY_STALE]


def test_stream_authorised_before_and_opened_after_a_change_is_decided_again() -> None:
    """The gap between the decision and the registration must not be a loophole."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW}))
    permit = core.pipeline.authorize(attempt(method=WATCH), None, now_ms=core.clock.wall)
    core.adopt(RuleDecider(), version=2)
    core.pipeline.opened(permit, cuts.append)
    assert core.pipeline.review(now_ms=core.clock.wall) == 1


def test_ten_thousand_streams_are_reviewed_in_bounded_steps() -> None:
    """A policy change must not stall the loop."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW}))
    for _ in range(10_000):
        open_stream(core, cuts)
    engine = RuleDecider()
    core.adopt(engine, version=2)
    core.pipeline.review(now_ms=core.clock.wall)
    assert len(engine.seen) == limits.STREAMS_PER_STEP
    while core.pipeline.streams.pending:
        core.pipeline.review(now_ms=core.clock.wall)
    assert len(cuts) == 10_000
    assert len(core.pipeline.streams) == 0


def test_closed_stream_is_not_cut() -> None:
    """Closing twice, or before the review, is harmless."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW}))
    handle = open_stream(core, cuts)
    core.adopt(RuleDecider(), version=2)
    core.pipeline.closed(handle)
    core.pipeline.closed(handle)
    assert core.pipeline.review(now_ms=core.clock.wall) == 0
    assert cuts == []


def test_streams_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry is bounded; unary calls still pass."""
    monkeypatch.setattr(limits, "MAX_OPEN_STREAMS", 1)
    core, cuts = Core.new(), list[Decision]()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW, (ALICE, PAY): ALLOW}))
    open_stream(core, cuts)
    assert decided(core, method=WATCH).reason is Reason.LIMIT_EXCEEDED
    assert decided(core, method=PAY).allowed


def test_large_request_of_a_stream_is_not_kept() -> None:
    """Ten thousand streams must not keep ten thousand large messages."""
    core = Core.new()
    core.adopt(RuleDecider(rules={(ALICE, WATCH): ALLOW}))
    large = bytes(limits.MAX_STREAM_REQUEST_KEPT_BYTES + 1)
    assert core.pipeline.authorize(attempt(method=WATCH), large, now_ms=core.clock.wall).request is None


def test_decision_ids_are_unique_and_carry_the_boot() -> None:
    """Two runs of one node must not share an id."""
    core = Core.new()
    assert [decided(core).id for _ in range(3)] == ["boot-1", "boot-2", "boot-3"]


def test_check_counts_nothing() -> None:
    """Asking is not executing."""
    core = Core.new()
    core.pipeline.decide(attempt(), None, now_ms=core.clock.wall)
    assert core.pipeline.counters.decisions() == {}


def test_outcomes_are_counted() -> None:
    """By the gRPC code the caller saw."""
    core = Core.new()
    core.adopt(RuleDecider(rules={(ALICE, PAY): ALLOW}))
    permit = core.pipeline.authorize(attempt(), None, now_ms=core.clock.wall)
    core.pipeline.forwarded(permit, "NOT_FOUND", 0.1)
    assert core.pipeline.counters.statuses() == {"inbound.NOT_FOUND": 1}


def streaming(level: int = 5, verdict: Verdict = ALLOW, **services: int) -> RuleDecider:
    return RuleDecider(
        mesh(level, **services), rules={(ALICE, PAY): verdict}, methods={PAY: Kind(True, True)}
    )


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_below_level_five_no_stream_waits_for_its_opening_message(level: int) -> None:
    """There is no permit that could bind it."""
    core = Core.new()
    core.adopt(streaming(level))
    assert not core.pipeline.holds_opening(attempt(), now_ms=core.clock.wall)


def test_at_level_five_a_stream_waits_unless_every_permit_lets_it_go_or_it_is_refused_anyway() -> None:
    """Binding the opening message is the default; a refusal needs no message."""
    core = Core.new()
    assert not core.pipeline.holds_opening(attempt(), now_ms=core.clock.wall)
    core.adopt(streaming())
    assert core.pipeline.holds_opening(attempt(), now_ms=core.clock.wall)
    assert not core.pipeline.holds_opening(
        attempt("spiffe://mesh.local/workload/eve"), now_ms=core.clock.wall
    )
    assert not core.pipeline.holds_opening(attempt(principal=None), now_ms=core.clock.wall)
    core.adopt(streaming(verdict=ALONE), version=2)
    assert not core.pipeline.holds_opening(attempt(), now_ms=core.clock.wall)


def test_looking_whether_a_stream_must_wait_counts_no_decision() -> None:
    """Otherwise every stream would be two decisions in the telemetry."""
    core = Core.new()
    core.adopt(streaming())
    core.pipeline.holds_opening(attempt(), now_ms=core.clock.wall)
    assert core.pipeline.counters.decisions() == {}


def test_only_an_allowed_call_carries_that_its_method_alone_may_be_bound() -> None:
    """What a refused or ungoverned call's policies say of permits must not count anywhere."""
    core = Core.new()
    core.adopt(streaming(verdict=replace(FORBID, method_alone=True)))
    assert not core.pipeline.decide(attempt(), None, now_ms=core.clock.wall).method_alone
    core.adopt(streaming(verdict=ALONE), version=2)
    assert core.pipeline.decide(attempt(), None, now_ms=core.clock.wall).method_alone


def test_a_stream_that_bound_its_method_alone_is_cut_when_policy_wants_the_message_bound() -> None:
    """The annotation was taken away: what it allowed ends as any other right that is withdrawn."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(streaming(verdict=ALONE))
    permit = core.pipeline.authorize(attempt(), None, now_ms=core.clock.wall)
    core.pipeline.opened(permit, cuts.append)
    core.adopt(streaming(verdict=ALONE), version=2)
    assert core.pipeline.review(now_ms=core.clock.wall) == 0
    core.adopt(streaming(), version=3)
    assert core.pipeline.review(now_ms=core.clock.wall) == 1
    (cut,) = cuts
    assert (cut.reason, cut.policy_version) == (Reason.AUTHORIZATION_WITHDRAWN, 3)
    assert "opening message" in cut.detail


@pytest.mark.parametrize("before", [0, 1, 2, 3, 4])
def test_a_stream_that_was_opened_without_a_permit_is_cut_when_the_level_is_raised_to_five(
    before: int,
) -> None:
    """Who has a workload's certificate, and no node's key, would keep what it opened for as long as it likes."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(streaming(before))
    permit = core.pipeline.authorize(attempt(), None, now_ms=core.clock.wall)
    core.pipeline.opened(permit, cuts.append)
    core.adopt(streaming(4), version=2)
    assert core.pipeline.review(now_ms=core.clock.wall) == 0
    core.adopt(streaming(5), version=3)
    withdrawn = core.pipeline.withdrawn(permit, None, now_ms=core.clock.wall)  # one that waits for its record
    assert core.pipeline.review(now_ms=core.clock.wall) == 1
    for cut in (withdrawn, *cuts):
        assert cut is not None
        assert (cut.reason, cut.level) == (Reason.AUTHORIZATION_WITHDRAWN, 5)
        assert "raised to level 5" in cut.detail


@pytest.mark.parametrize(("before", "after"), [(5, 4), (5, 5)])
def test_a_stream_stays_open_when_only_the_level_or_nothing_of_its_binding_changed(
    before: int, after: int
) -> None:
    """One that binds its message binds enough."""
    core, cuts = Core.new(), list[Decision]()
    core.adopt(streaming(before, ALONE if before != after else ALLOW))
    permit = core.pipeline.authorize(attempt(), None, now_ms=core.clock.wall)
    core.pipeline.opened(permit, cuts.append)
    core.adopt(streaming(after), version=2)
    assert core.pipeline.review(now_ms=core.clock.wall) == 0
    assert cuts == []
