"""Readiness says why."""

from dataclasses import replace

import pytest

from sidecar.core.bundle_state import Lease
from sidecar.core.readiness import Alarms, Facts, NodeState, assess
from trust import limits

READY = Facts(lease=Lease.FRESH, levels={"payments": 4, "quotes": 1}, listening=True)


def test_ready_only_with_policy_identity_and_listeners() -> None:
    """The good case, and each thing missing from it."""
    assert assess(READY).state is NodeState.READY
    assert assess(READY).not_ready == ()
    for facts, word in [
        (replace(READY, lease=Lease.NONE), "POLICY_MISSING"),
        (replace(READY, lease=Lease.SEALED), "POLICY_STALE"),
        (replace(READY, lease=Lease.EXPIRED), "POLICY_EXPIRED"),
        (replace(READY, listening=False), "listeners"),
        (replace(READY, identity_problem="no SVID"), "IDENTITY_UNAVAILABLE"),
    ]:
        readiness = assess(facts)
        assert readiness.state is NodeState.NOT_READY
        assert word in readiness.not_ready[0]


def test_zero_policies_is_never_ready_even_without_services() -> None:
    """A sidecar that reports ready with zero policies is what others got wrong."""
    assert assess(Facts(lease=Lease.NONE, levels={}, listening=True)).state is NodeState.NOT_READY


def test_stale_lease_still_serves() -> None:
    """Within the grace calls are enforced, so they may come."""
    assert assess(replace(READY, lease=Lease.STALE)).state is NodeState.READY


@pytest.mark.parametrize("lease", [Lease.SEALED, Lease.EXPIRED])
def test_services_below_level_4_keep_serving_when_the_lease_is_over(lease: Lease) -> None:
    """Their calls continue, so load balancers must not take them away."""
    assert assess(replace(READY, lease=lease)).serving == {"quotes"}
    only_low = replace(READY, lease=lease, levels={"quotes": 3})
    assert assess(only_low).state is NodeState.READY


def test_draining_serves_nothing_new() -> None:
    """In-flight calls finish; the health check turns clients away."""
    readiness = assess(replace(READY, draining=True))
    assert (readiness.state, readiness.serving) == (NodeState.DRAINING, frozenset())


def test_starting_is_told_apart_from_not_ready() -> None:
    """So that a probe can be patient."""
    assert assess(replace(READY, listening=False, starting=True)).state is NodeState.STARTING


def test_alarms_replace_clear_and_are_bounded() -> None:
    """The newest text of a kind is what a person needs."""
    alarms = Alarms()
    assert alarms.set("bundle", "one")
    assert not alarms.set("bundle", "one")
    assert alarms.set("bundle", "two")
    assert alarms.texts() == ("two",)
    alarms.clear("bundle", "never-raised")
    assert alarms.texts() == ()
    for number in range(limits.MAX_ALARMS + 5):
        alarms.set(str(number), "x")
    assert len(alarms.texts()) == limits.MAX_ALARMS
