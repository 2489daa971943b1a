"""Streams whose opening message policy asks to keep: read before they are decided, cut when that comes too late."""

import pytest

from sidecar.core.call import Decision
from tests.support.sidecar_core import ALICE, ALLOW, PAY, Core, RuleDecider, attempt, mesh
from trust.errors import Reason
from trust.policy.types import Verdict

UPLOAD = "shop.Payments/Upload"  # no descriptor knows it: a stream
ASKS = Verdict(True, Reason.ALLOWED, ("may",), obligations=(("audit", "payload"),))


def decider(verdict: Verdict, level: int = 4) -> RuleDecider:
    return RuleDecider(mesh(level), {(ALICE, UPLOAD): verdict, (ALICE, PAY): verdict})


@pytest.mark.parametrize(
    ("verdict", "level", "waits"),
    [
        (ASKS, 5, True),
        (ASKS, 4, True),
        (ALLOW, 4, False),
        (ASKS, 3, False),
        (ASKS, 1, False),
        (ASKS, 0, False),
    ],
)
def test_a_stream_is_read_before_it_is_decided_if_policy_asks_to_keep_it(
    verdict: Verdict, level: int, waits: bool
) -> None:
    """Below level 4 nothing may be held up: a service that speaks first would wait for its caller for ever."""
    core = Core.new()
    core.adopt(decider(verdict, level))
    assert core.pipeline.needs_request(attempt(method=UPLOAD)) is waits


def test_the_decision_carries_what_the_permits_ask_for() -> None:
    """The door's parts act on it; a refusal asks for nothing."""
    core = Core.new()
    core.adopt(decider(ASKS))
    allowed = core.pipeline.authorize(attempt(method=UPLOAD), b"first", now_ms=core.clock.wall)
    assert allowed.decision.obligations == (("audit", "payload"),)
    assert (
        core.pipeline.decide(
            attempt("spiffe://mesh.local/workload/x"), b"", now_ms=core.clock.wall
        ).obligations
        == ()
    )


@pytest.mark.parametrize(
    ("before", "after", "level", "cut"),
    [(ALLOW, ASKS, 4, True), (ALLOW, ASKS, 3, False), (ASKS, ASKS, 4, False), (ASKS, ALLOW, 4, False)],
)
def test_a_stream_that_was_opened_unkept_is_cut_when_policy_asks(
    before: Verdict, after: Verdict, level: int, cut: bool
) -> None:
    """Its opening message is gone; below level 4 it goes on."""
    core, heard = Core.new(), list[Decision]()
    core.adopt(decider(before, level))
    permitted = core.pipeline.authorize(attempt(method=UPLOAD), b"first", now_ms=core.clock.wall)
    core.pipeline.opened(permitted, heard.append)
    core.adopt(decider(after, level), 2)
    core.pipeline.review(now_ms=core.clock.wall)
    assert [decision.reason for decision in heard] == ([Reason.AUTHORIZATION_WITHDRAWN] if cut else [])
    if cut:
        assert "open it again" in heard[0].detail


@pytest.mark.parametrize(("raised", "cut"), [(4, True), (3, False)])
def test_a_stream_that_went_on_unkept_below_level_four_is_cut_when_the_level_rises(
    raised: int, cut: bool
) -> None:
    """There its opening message was not insisted on."""
    core, heard = Core.new(), list[Decision]()
    core.adopt(decider(ASKS, 3))
    permitted = core.pipeline.authorize(attempt(method=UPLOAD), None, now_ms=core.clock.wall)
    core.pipeline.opened(permitted, heard.append)
    core.adopt(decider(ASKS, raised), 2)
    core.pipeline.review(now_ms=core.clock.wall)
    assert bool(heard) is cut
