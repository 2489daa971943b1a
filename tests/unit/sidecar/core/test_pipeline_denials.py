"""A revocation in the pipeline: every kind, every level that enforces, and streams in flight."""

from dataclasses import replace

import pytest

from sidecar.core.bundle_state import BundleState, Record
from sidecar.core.call import Attempt, Decision, Direction, RefusedError
from sidecar.core.pipeline import Pipeline
from tests.support.emergency import FIRST, TD, rules
from tests.support.permits import OTHER_NODE, Signing, claims
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
from trust.denials import Denials, Proven
from trust.errors import Reason
from trust.permit import Permit
from trust.revocation import Kind

KEY = b"k" * 32


class Node:
    """A pipeline under a policy that allows alice everything, with denials that the test feeds."""

    def __init__(self, level: int = 4) -> None:
        self.clock = ManualClock()
        self.denials = Denials(TD)
        self.denials.govern(rules(), now_ms=self.clock.wall, monotonic_ms=self.clock.mono)
        state = BundleState(Record(), monotonic_ms=self.clock.mono)
        self.pipeline = Pipeline(
            node="n1", trust_domain=TD, boot_id="boot", state=state, clock=self.clock, denials=self.denials
        )
        decider = RuleDecider(mesh=mesh(level), rules={(ALICE, PAY): ALLOW, (ALICE, WATCH): ALLOW})
        policy = verified(1, lease_expires_ms=self.clock.wall + 60_000)
        state.offer(policy, decider, now_ms=self.clock.wall, monotonic_ms=self.clock.mono)
        self.pipeline.governance_changed()

    def revoke(self, kind: Kind, value: str) -> None:
        """Deny, as the driver does."""
        data = FIRST.revoke(kind, value, now_ms=self.clock.wall)
        self.denials.offer(data, now_ms=self.clock.wall, monotonic_ms=self.clock.mono)
        self.pipeline.governance_changed()

    def decided(self, call: Attempt) -> Decision:
        """Decide one call."""
        try:
            return self.pipeline.authorize(call, None, now_ms=self.clock.wall).decision
        except RefusedError as refused:
            return refused.decision


@pytest.mark.parametrize("level", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.WORKLOAD, "alice"),
        (Kind.WORKLOAD, "payments"),  # who serves it
        (Kind.NODE, "n1"),  # this very node
        (Kind.KEY, KEY.hex()),
        (Kind.METHOD, PAY),
        (Kind.METHOD, "shop.Payments/*"),
    ],
)
def test_revocation_denies_at_every_level_that_enforces(level: int, kind: Kind, value: str) -> None:
    """Whatever the policies allow."""
    node = Node(level)
    call = replace(attempt(), key_sha256=KEY)
    assert node.decided(call).allowed
    node.revoke(kind, value)
    decision = node.decided(call)
    assert (decision.allowed, decision.reason) == (False, Reason.REVOKED)
    assert "stolen laptop" in decision.detail


def test_a_call_that_waits_to_be_forwarded_loses_its_right_when_it_is_revoked_meanwhile() -> None:
    """A slow disk must not carry a right past its revocation."""
    node = Node(5)
    permitted = node.pipeline.authorize(attempt(), b"request", now_ms=node.clock.wall)
    assert node.pipeline.withdrawn(permitted, b"request", now_ms=node.clock.wall) is None
    node.revoke(Kind.WORKLOAD, "bob")  # decided again, and still allowed
    assert node.pipeline.withdrawn(permitted, b"request", now_ms=node.clock.wall) is None
    node.revoke(Kind.WORKLOAD, "alice")
    decision = node.pipeline.withdrawn(permitted, b"request", now_ms=node.clock.wall)
    assert decision is not None
    assert (decision.allowed, decision.reason) == (False, Reason.REVOKED)


def test_revocation_of_another_changes_nothing() -> None:
    """Exactly what was named."""
    node = Node()
    for kind, value in ((Kind.WORKLOAD, "bob"), (Kind.NODE, "n2"), (Kind.METHOD, "shop.Payments/Refund")):
        node.revoke(kind, value)
    assert node.decided(attempt()).allowed


def test_level_1_lets_the_call_pass_and_says_that_it_is_revoked() -> None:
    """Nothing is blocked there; a person is told."""
    node = Node(1)
    node.revoke(Kind.WORKLOAD, "alice")
    decision = node.decided(attempt())
    assert (decision.allowed, decision.would_deny) == (True, Reason.REVOKED)
    assert "stolen laptop" in decision.detail


def test_level_3_denies_what_is_revoked_also_when_the_lease_is_over() -> None:
    """In a partition calls continue at level 3, but not revoked ones."""
    node = Node(3)
    node.revoke(Kind.WORKLOAD, "alice")
    node.clock.pass_ms(10**7)
    assert node.decided(attempt()).reason is Reason.REVOKED
    assert node.decided(attempt("spiffe://mesh.local/workload/bob")).allowed


def test_permit_of_a_revoked_node_does_not_help_nor_one_of_a_revoked_signing_key() -> None:
    """The caller's sidecar is what vouches for the call at level 5."""
    signing = Signing(OTHER_NODE)
    permit = Permit(claims(issuer=str(OTHER_NODE)), signing.public, b"")
    call = replace(attempt(), permit=permit)
    by_node, by_key = Node(5), Node(5)
    assert by_node.decided(call).allowed
    by_node.revoke(Kind.NODE, permit.claims.issuer.rpartition("/")[2])
    by_key.revoke(Kind.KEY, permit.key.spki_sha256.hex())
    for node in (by_node, by_key):
        assert node.decided(call).reason is Reason.REVOKED


def test_quarantined_node_is_refused_for_that_reason() -> None:
    """What a proof says is not what an emergency key says."""
    node = Node()
    proven = Proven("0" * 64, f"spiffe://{TD}/node/n1", "it signed two histories", b"")
    node.denials.accuse(proven, now_ms=node.clock.wall)
    decision = node.decided(attempt())
    assert (decision.allowed, decision.reason) == (False, Reason.NODE_QUARANTINED)
    assert "two histories" in decision.detail


def test_open_stream_of_a_revoked_workload_is_cut_with_that_reason_and_others_go_on() -> None:
    """A stream in flight must not outlive the right that opened it."""
    node = Node()
    cuts: list[Decision] = []
    for method in (WATCH, PAY):
        permitted = node.pipeline.authorize(attempt(method=method), None, now_ms=node.clock.wall)
        node.pipeline.opened(permitted, cuts.append)
    node.revoke(Kind.METHOD, WATCH)
    while node.pipeline.streams.pending:
        node.pipeline.review(now_ms=node.clock.wall)
    assert [cut.reason for cut in cuts] == [Reason.REVOKED]
    assert len(node.pipeline.streams) == 1


def test_unidentified_caller_is_refused_as_such_first() -> None:
    """Who it is comes before what is denied to it."""
    node = Node()
    node.revoke(Kind.METHOD, PAY)
    decision = node.decided(attempt(None, direction=Direction.INBOUND))
    assert decision.reason is Reason.CALLER_UNIDENTIFIED
    assert "stolen" not in decision.detail
