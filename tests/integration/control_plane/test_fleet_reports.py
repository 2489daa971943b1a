"""What nodes say of themselves, written to the store: one of them cannot keep it from taking what the others say."""

from control_plane.edge.fleet import NodeReports
from control_plane.edge.store import fleet
from control_plane.edge.store.database import Database
from egm.v1 import operator_pb2


async def test_a_node_that_reports_what_no_database_takes_is_kept_as_far_as_it_can_be(
    database: Database,
) -> None:
    """Its report waits with those of all others: a write that failed for it would fail for them, again and again."""
    reports = NodeReports(database)
    hostile = operator_pb2.NodeStatus(node="mallory", state="RE\0ADY\x1b[2J" + "x" * 40, lease="\0" * 20)
    reports.take(hostile, at_ms=5, certificate_not_after_ms=9)
    reports.take(
        operator_pb2.NodeStatus(node="a", state="READY", lease="FRESH"), at_ms=6, certificate_not_after_ms=9
    )
    assert [one.node for one in await reports.records()] == ["a", "mallory"]
    async with database.read() as connection:
        assert await fleet.history(connection, "a") == [(6, "READY", 0, "FRESH")]
        [(_, state, _, lease)] = await fleet.history(connection, "mallory")
    assert state == "RE?ADY?[2J" + "x" * 22
    assert lease == "?" * 16
