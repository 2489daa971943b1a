"""What `egm node show` says of the last report."""

import pytest

from control_plane.cli import node
from control_plane.edge.fleet_view import fleet_view
from egm.v1 import operator_pb2


@pytest.mark.parametrize(
    ("ago_s", "words"),
    [(3, "3 s ago"), (150, "2 min ago"), (3 * 3600, "3 h ago"), (9 * 86_400, "9 days ago")],
)
def test_a_node_is_shown_with_the_time_of_its_last_report(
    ago_s: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a node is gone or merely quiet is the first thing that one wants to know of it."""
    now_ms = 1_800_000_000_000
    record = operator_pb2.NodeRecord(node="a", last_seen_ms=now_ms - ago_s * 1000)
    (view,) = fleet_view(operator_pb2.ControlPlaneStatus(now_ms=now_ms), [record]).nodes
    node._print(view)
    assert f"last seen               {words}" in capsys.readouterr().out
