"""Reports of nodes: whose they may be and which are kept."""

import pytest

from control_plane.core.fleet import Change, check_report, check_room, is_change
from trust import limits
from trust.errors import CapacityError, EvidenceError, Reason
from trust.spiffe import SpiffeId

NODE = SpiffeId.parse("spiffe://mesh.local/node/a")


def test_a_node_reports_as_itself() -> None:
    """The honest case, up to the limit."""
    check_report(NODE, "a", size_bytes=limits.MAX_NODE_STATUS_BYTES)


@pytest.mark.parametrize(
    ("caller", "node"),
    [
        (NODE, "b"),
        (NODE, ""),
        (SpiffeId.parse("spiffe://mesh.local/workload/a"), "a"),
        (SpiffeId.parse("spiffe://mesh.local/node/a/b"), "a"),
    ],
)
def test_nobody_reports_as_another(caller: SpiffeId, node: str) -> None:
    """The name comes from the certificate."""
    with pytest.raises(EvidenceError) as caught:
        check_report(caller, node, size_bytes=1)
    assert caught.value.reason is Reason.NOT_AUTHORIZED


def test_too_large_reports_and_too_many_nodes_are_refused() -> None:
    """Both are named limits."""
    with pytest.raises(CapacityError):
        check_report(NODE, "a", size_bytes=limits.MAX_NODE_STATUS_BYTES + 1)
    check_room(limits.MAX_NODES, is_new=False)
    with pytest.raises(CapacityError):
        check_room(limits.MAX_NODES, is_new=True)


def test_the_history_keeps_changes_only() -> None:
    """A steady node writes no history."""
    steady = Change("READY", 3, "FRESH")
    assert is_change(None, steady)
    assert not is_change(steady, Change("READY", 3, "FRESH"))
    assert is_change(steady, Change("READY", 4, "FRESH"))
