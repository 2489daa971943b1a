"""For whom a node's records speak."""

import pytest

from control_plane.core.standing import Standing, Weight, foreign_text
from tests.support.records import START_MS, callee_side, intent, workload
from trust import limits
from trust.record import Intent

TD = "mesh.test"


def nobody(_service: str) -> None:
    """Policy has no word of any service."""


def standing(*workloads: str, until_ms: int | None = None) -> Standing:
    """Return the standing of a node that holds `workloads`, or gave them up."""
    return Standing(TD, {"": None, **dict.fromkeys(workloads, until_ms)})


def inbound(**changes: object) -> Intent:
    """Return the callee's side of a call of alice to payments."""
    return callee_side(intent(1, **changes), "b")


def test_caller_s_side_counts_at_a_node_of_the_caller_alone() -> None:
    """Otherwise one node could make up calls of every workload of the mesh."""
    assert standing("alice").weigh(intent(1), nobody) is Weight.COUNTS
    assert standing("bob", "payments").weigh(intent(1), nobody) is Weight.FOREIGN
    assert standing().weigh(intent(1, caller=""), nobody) is Weight.COUNTS  # nobody is accused


def test_callee_s_side_counts_at_a_node_of_the_callee_alone() -> None:
    """Otherwise one node could accuse callers of what they did to services that it never served."""
    assert standing("payments").weigh(inbound(), nobody) is Weight.COUNTS
    assert standing("alice").weigh(inbound(), nobody) is Weight.FOREIGN


def test_service_that_policy_gave_to_another_workload_counts_for_nothing_and_accuses_nobody() -> None:
    """A node may pass its own service's name off as another's; or policy moved it while records were under way."""
    assert standing("payments").weigh(inbound(), lambda _service: "payments-2") is Weight.NOTHING
    assert standing("payments").weigh(inbound(), lambda _service: "payments") is Weight.COUNTS


@pytest.mark.parametrize(
    "caller",
    [
        "spiffe://other.test/workload/alice",
        "spiffe://mesh.test/node/alice",
        "spiffe://mesh.test/workload/",
        "spiffe://mesh.test/workload/alice/x",
        "alice",
    ],
)
def test_only_the_exact_identity_of_a_held_workload_is_its_own(caller: str) -> None:
    """A name that merely looks like one of its own is somebody else's."""
    assert standing("alice").weigh(intent(1, caller=caller), nobody) is Weight.FOREIGN


def test_workload_that_was_given_up_may_be_spoken_of_with_its_own_time_only() -> None:
    """What was recorded before a node joined anew may arrive after it."""
    gone = standing("alice", until_ms=START_MS)
    assert gone.weigh(intent(1, wall_ms=START_MS), nobody) is Weight.COUNTS
    late = intent(1, wall_ms=START_MS + limits.MAX_CLOCK_SKEW_MS + 1)
    assert gone.weigh(late, nobody) is Weight.FOREIGN


def test_node_that_was_removed_moves_nothing_and_one_that_never_joined_counts_as_it_is() -> None:
    """An operator removed the first; of the second nobody here knows what it holds (identities from elsewhere)."""
    removed = Standing(TD, {"": START_MS, "alice": START_MS})
    assert removed.weigh(intent(1), nobody) is Weight.NOTHING
    assert Standing(TD).weigh(intent(1), nobody) is Weight.COUNTS


def test_text_names_whom_the_node_spoke_for() -> None:
    """The operator must know whose name was used."""
    assert workload("alice") in foreign_text(intent(1))
    assert workload("payments") in foreign_text(inbound())
