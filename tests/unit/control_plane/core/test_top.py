"""What the live view shows, from the answers of a control plane."""

from control_plane.core.top import view
from egm.v1 import analytics_pb2 as pb
from egm.v1 import operator_pb2 as op
from tests.support.records import START_MS, workload

MINUTES = 5


def sums(calls: int) -> pb.AnalyticsSums:
    """Return the sums of so many calls."""
    return pb.AnalyticsSums(
        calls=calls,
        ended={"OK": calls - 3, "INTERNAL": 1},
        refused={"POLICY_DENIED": 2},
        would_deny={"NO_POLICY_PERMITS": 4},
        p50_ms=1.234,
        p95_ms=9.876,
    )


def test_the_view_says_rates_failures_and_which_node_is_silent() -> None:
    """A node that stopped talking is not what it last said."""
    since = START_MS - MINUTES * 60_000
    status = op.ControlPlaneStatus(trust_domain="mesh.test", now_ms=START_MS, problems=["one", "two"])
    nodes = [
        op.NodeRecord(
            node="a",
            last_seen_ms=START_MS - 2_000,
            status=op.NodeStatus(state="READY", levels={"x": 1, "y": 4}),
        ),
        op.NodeRecord(node="b", last_seen_ms=START_MS - 60_000, status=op.NodeStatus(state="READY")),
    ]
    edge = pb.AnalyticsGroup(
        caller=workload("alice"), service="payments", method="shop.Payments/Pay", sums=sums(600)
    )
    by_edge = pb.AnalyticsResponse(
        since_ms=since, until_ms=START_MS + 1, groups=[edge, edge, edge], all=sums(600)
    )
    service = pb.AnalyticsGroup(service="payments", sums=sums(600))
    by_service = pb.AnalyticsResponse(since_ms=since, until_ms=START_MS + 1, groups=[service], all=sums(600))
    alerts = pb.ListAlertsResponse(
        alerts=[pb.Alert(state="firing", rule="x", acked_by="olga")], problems=["two", "three"]
    )
    seen = view(status, nodes, by_edge, by_service, alerts, most=2)
    assert (seen.over_s, seen.all.per_s, seen.all.failed, seen.all.refused, seen.all.would_deny) == (
        300,
        2,
        1,
        2,
        4,
    )
    assert [line.name for line in seen.edges] == ["alice > payments shop.Payments/Pay"] * 2
    assert [(n.name, n.state, n.level) for n in seen.nodes] == [("a", "READY", "1-4"), ("b", "SILENT", "-")]
    assert seen.problems == ("one", "two", "three")
    assert seen.alerts[0].acknowledged
    assert seen.to_dict()["trust_domain"] == "mesh.test"
