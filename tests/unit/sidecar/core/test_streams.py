"""Streams by the node that vouches for them: cut when nobody vouches for it any more, and for no other reason."""

from dataclasses import replace

import pytest

from sidecar.core.call import Attempt, Decision, Permitted
from sidecar.core.pipeline import Pipeline
from sidecar.core.trust_state import Caller
from tests.support.permits import Signing, claims
from tests.support.sidecar_core import ALICE, ALLOW, WATCH, Core, RuleDecider, attempt, mesh
from trust.errors import Reason, StateError
from trust.permit import Permit


class World:
    """A callee at `level` with streams of nodes of which some are vouched for."""

    def __init__(self, level: int = 5) -> None:
        self.lapsed: dict[Caller, Reason] = {}
        core = Core.new()
        self.asked = 0
        self.pipeline = Pipeline(
            node="n1",
            trust_domain="mesh.local",
            boot_id="boot",
            state=core.state,
            clock=core.clock,
            vouched=self._vouched,
        )
        self.core = replace(core, pipeline=self.pipeline)
        self.publish(level)
        self.cuts: list[Decision] = []

    def publish(self, level: int, version: int = 1) -> None:
        self.core.adopt(RuleDecider(mesh=mesh(level), rules={(ALICE, WATCH): ALLOW}), version)

    def _vouched(self, caller: Caller, now_ms: int) -> None:
        self.asked += 1
        reason = self.lapsed.get(caller)
        if reason is not None:
            raise StateError(reason, f"nobody vouches for {caller[0]}")

    def open(self, permit: Permit | None) -> int:
        call: Attempt = attempt(ALICE, WATCH)
        if permit is not None:
            call = call.vouched(permit)
        right: Permitted = self.pipeline.authorize(call, None, now_ms=self.core.clock.wall)
        return self.pipeline.opened(right, self.cuts.append)

    def review(self) -> list[Reason]:
        while self.pipeline.streams.pending:
            self.pipeline.review(now_ms=self.core.clock.wall)
        return [one.reason for one in self.cuts]


def permit_of(node: Signing) -> tuple[Permit, Caller]:
    """Return an accepted permit of a node, and who vouches with it."""
    key = node.public
    return Permit(claims(), key, b"\x01" * 32), (key.node, key.public_key.public_bytes_raw())


def test_streams_of_a_node_that_nobody_vouches_for_are_cut_with_the_reason() -> None:
    """Its own alone: those of others go on, even of a node of that name with another key."""
    world = World()
    (lost, who), (other, _) = permit_of(Signing()), permit_of(Signing())
    for permit in (lost, other, lost):
        world.open(permit)
    world.pipeline.caller_lapsed(who)
    assert world.review() == []
    world.lapsed[who] = Reason.ATTESTATION_EXPIRED
    world.pipeline.caller_lapsed(who)
    assert world.review() == [Reason.ATTESTATION_EXPIRED] * 2
    assert "nobody vouches for spiffe://" in world.cuts[0].detail
    assert len(world.pipeline.streams) == 1
    assert set(world.pipeline.streams.callers) == {(other.key.node, other.key.public_key.public_bytes_raw())}
    assert world.pipeline.counters.streams_cut == 2


@pytest.mark.parametrize(
    "reason",
    [
        Reason.ATTESTATION_EXPIRED,
        Reason.ATTESTATION_INVALID,
        Reason.ATTESTATION_UNKNOWN,
        Reason.MEASUREMENT_REFUSED,
    ],
    ids=str,
)
def test_a_new_policy_under_which_a_caller_s_credential_does_not_hold_cuts(reason: Reason) -> None:
    """A roster without its witnesses, or builds without its own: every stream is decided again."""
    world = World()
    permit, who = permit_of(Signing())
    world.open(permit)
    world.lapsed[who] = reason
    world.publish(5, version=2)
    assert world.review() == [reason]


def test_below_level_five_and_without_a_permit_nobody_is_asked() -> None:
    """Attestation is level 5's; a stream that was opened below it is cut for lacking a permit."""
    world = World(level=4)
    permit, who = permit_of(Signing())
    world.open(permit)
    world.open(None)
    world.lapsed[who] = Reason.ATTESTATION_EXPIRED
    world.pipeline.caller_lapsed(who)
    assert world.review() == []
    world.publish(5, version=2)
    assert world.review() == [Reason.AUTHORIZATION_WITHDRAWN] * 2
    assert world.asked == 0


def test_closed_streams_leave_nothing_behind() -> None:
    """Nor does one that is closed twice, or after it was cut."""
    world = World()
    permit, who = permit_of(Signing())
    first, second = world.open(permit), world.open(permit)
    world.pipeline.closed(first)
    world.pipeline.closed(first)
    assert set(world.pipeline.streams.callers) == {who}
    world.lapsed[who] = Reason.ATTESTATION_EXPIRED
    world.pipeline.caller_lapsed(who)
    world.review()
    world.pipeline.closed(second)
    assert not world.pipeline.streams.callers
    assert len(world.pipeline.streams) == 0
    world.pipeline.caller_lapsed(who)
    assert world.pipeline.streams.pending == 0


def test_a_call_that_waited_for_people_is_refused_when_nobody_vouches_for_its_node_any_more() -> None:
    """It is no open stream, and nothing has changed but the time: it must be looked at again before it is forwarded."""
    world = World()
    permit, who = permit_of(Signing())
    call = attempt(ALICE, WATCH).vouched(permit)
    right = world.pipeline.authorize(call, b"request", now_ms=world.core.clock.wall)
    now_ms = world.core.clock.wall
    assert world.pipeline.withdrawn(right, b"request", now_ms=now_ms, held=True) is None
    world.lapsed[who] = Reason.ATTESTATION_EXPIRED
    refused = world.pipeline.withdrawn(right, b"request", now_ms=now_ms, held=True)
    assert refused is not None and refused.reason is Reason.ATTESTATION_EXPIRED


def test_a_call_that_waited_for_people_is_refused_when_policy_says_otherwise_by_now() -> None:
    """A permit may speak of the hour, which no new policy tells anybody about."""
    world = World(4)
    right = world.pipeline.authorize(attempt(ALICE, WATCH), b"request", now_ms=world.core.clock.wall)
    assert world.core.state.in_force is not None
    decider = world.core.state.in_force.engine
    assert isinstance(decider, RuleDecider)
    decider.rules.clear()
    now_ms = world.core.clock.wall
    assert world.pipeline.withdrawn(right, b"request", now_ms=now_ms) is None, "it did not wait"
    refused = world.pipeline.withdrawn(right, b"request", now_ms=now_ms, held=True)
    assert refused is not None and refused.reason is Reason.AUTHORIZATION_WITHDRAWN
