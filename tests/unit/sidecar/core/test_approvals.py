"""What a call needs of approvers at each level, and the memory of what was used up."""

import pytest

from sidecar.core.approvals import SpentApprovals, Windows, goes_on_without, needed
from sidecar.core.call import Decision
from tests.support.approvers import ANN, NOW_MS, ticket
from trust import limits
from trust.errors import MeshError, Reason

OPS, FINANCE = ("require_approval", "2 of ops, wait 30s"), ("require_approval", "1 of finance")
KEEP_MS = limits.MAX_APPROVAL_LIFETIME_S * 1000


def decision(
    level: int, *obligations: tuple[str, str], restrictions: tuple[tuple[str, str], ...] = ()
) -> Decision:
    """Return an allowed decision."""
    return Decision(
        "d-1", True, Reason.ALLOWED, level, 1, ("p",), obligations=obligations, restrictions=restrictions
    )


def test_policy_asks_from_level_three_and_incident_response_from_level_two() -> None:
    """Levels 0 and 1 block nothing; what would be asked is still known."""
    for level in (0, 1, 2):
        found = needed(decision(level, OPS))
        assert found is not None and not found.binds
    for level in (3, 4, 5):
        found = needed(decision(level, OPS))
        assert found is not None and found.binds and found.wait_s == 30
    restricted = needed(decision(2, FINANCE, OPS, restrictions=(FINANCE,)))
    assert restricted is not None and restricted.binds and restricted.obligations == (FINANCE,)
    assert needed(decision(1, FINANCE, restrictions=(FINANCE,))) is not None
    assert needed(decision(5, ("audit", "payload"))) is None


def test_only_level_three_goes_on_when_nobody_can_be_asked_and_never_against_incident_response() -> None:
    """An attacker who cuts the control plane off must not shake off what it asked for."""
    policy = needed(decision(3, OPS))
    restricted = needed(decision(3, OPS, FINANCE, restrictions=(FINANCE,)))
    assert policy is not None and restricted is not None
    assert goes_on_without(policy, 3) and not goes_on_without(policy, 4)
    assert not goes_on_without(restricted, 3) and not goes_on_without(restricted, 2)


def test_a_call_is_held_for_less_than_its_deadline() -> None:
    """Its caller must learn the ticket."""
    found = needed(decision(4, OPS))
    assert found is not None
    assert found.hold_s(None) == 30
    assert found.hold_s(10) == pytest.approx(8)


def test_what_was_used_up_is_refused_until_no_approval_for_it_can_be_in_time() -> None:
    """Whatever the wall clock does in between: what is forgotten has ended for good."""
    memory = SpentApprovals()
    until_ms = memory.spend("inbound:x", signed_ms=NOW_MS, now_ms=NOW_MS)
    assert until_ms >= NOW_MS + KEEP_MS
    with pytest.raises(MeshError) as caught:
        memory.spend("inbound:x", signed_ms=NOW_MS, now_ms=NOW_MS + 1)
    assert caught.value.reason is Reason.APPROVAL_SPENT
    memory.spend(
        "outbound:x", signed_ms=NOW_MS, now_ms=NOW_MS
    )  # the other side of the call, on the same node
    memory.spend("inbound:y", signed_ms=until_ms, now_ms=until_ms)  # the clock jumps ahead: x is forgotten
    assert not memory.is_spent("inbound:x")
    assert memory.now_ms(NOW_MS) == until_ms, "and jumps back: every approval of then has ended"


def test_the_memory_is_bounded_and_full_means_refused() -> None:
    """Room is made by time alone."""
    memory = SpentApprovals(capacity=2)
    for name in ("a", "b"):
        memory.spend(name, signed_ms=NOW_MS, now_ms=NOW_MS)
    with pytest.raises(MeshError) as caught:
        memory.spend("c", signed_ms=NOW_MS, now_ms=NOW_MS)
    assert caught.value.reason is Reason.APPROVAL_UNAVAILABLE
    memory.spend("c", signed_ms=NOW_MS, now_ms=NOW_MS + 2 * KEEP_MS)


def test_windows_are_bounded() -> None:
    """The oldest leaves; it is asked for again."""
    held = Windows(2)
    tickets = [ticket(window=True, service=f"s{number}") for number in range(3)]
    for one in tickets:
        held.put(one, (ANN.say(one),))
    assert held.get(tickets[0].call) is None
    assert held.get(tickets[2].call) == (tickets[2], (ANN.say(tickets[2]),))
