"""What `egm node show` says of the last report."""

import pytest

from control_plane.cli import node, status
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


@pytest.mark.parametrize(
    ("standing", "remaining_ms", "ago_s"),
    [("NOT_ATTESTED", 0, 1), ("ATTESTED", 42_000, 43)],
    ids=["it says so", "its report is older than its credential"],
)
def test_nobody_vouches_by_a_credential_that_has_ended(
    standing: str, remaining_ms: int, ago_s: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its witnesses did vouch once; shown now, that would say that they do."""
    now_ms = 1_800_000_000_000
    said = operator_pb2.Attestation(
        standing=standing,
        remaining_ms=remaining_ms,
        quorum=2,
        witnesses=["a", "b", "c"],
        vouched=["a", "b"],
        not_vouched={"c": "NONCE_UNKNOWN: too late"},
    )
    record = operator_pb2.NodeRecord(
        node="a",
        last_seen_ms=now_ms - ago_s * 1000,
        status=operator_pb2.NodeStatus(node="a", attestation=said),
    )
    (view,) = fleet_view(operator_pb2.ControlPlaneStatus(now_ms=now_ms), [record]).nodes
    node._print(view)
    shown = capsys.readouterr().out
    assert "vouched by" not in shown
    assert f"says {standing}; 2 of 3 witnesses are needed, nobody vouches for it now" in shown
    assert "not by c" in shown
    assert (view.vouched, view.attestation_remaining_s) == ((), 0)


@pytest.mark.parametrize("verified", [True, False])
def test_a_nodes_own_word_is_not_shown_as_a_fact(verified: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Attested means that the control plane verified it; else the node says so."""
    now_ms = 1_800_000_000_000
    said = operator_pb2.Attestation(
        standing="ATTESTED", remaining_ms=42_000, quorum=2, witnesses=["a", "b", "c"], vouched=["a", "b"]
    )
    record = operator_pb2.NodeRecord(
        node="a", last_seen_ms=now_ms, status=operator_pb2.NodeStatus(node="a", attestation=said)
    )
    if verified:
        record.attested_until_ms = now_ms + 30_000
        record.attested_by.extend(["b", "c"])
    else:
        record.attested_problem = "the reason"
    (view,) = fleet_view(operator_pb2.ControlPlaneStatus(now_ms=now_ms), [record]).nodes
    node._print(view)
    shown = capsys.readouterr().out
    assert ("verified by the control plane, 30 s left" in shown) is verified
    assert ("vouched by b, c" in shown) is verified
    assert ("says ATTESTED" in shown and "the reason" in shown) is not verified
    assert (node._attested(view), status._attested(view)) == (
        ("yes", "by 2, 30 s") if verified else ("says so", "says so")
    )


def test_a_long_reason_does_not_run_into_its_count(capsys: pytest.CaptureFixture[str]) -> None:
    """`inbound.ATTESTATION_MISSING2` is no reason, and no number."""
    said = operator_pb2.NodeStatus(node="a", decisions={"inbound.ATTESTATION_MISSING": 2})
    record = operator_pb2.NodeRecord(node="a", last_seen_ms=1, status=said)
    (view,) = fleet_view(operator_pb2.ControlPlaneStatus(now_ms=1), [record]).nodes
    node._print(view)
    assert ["inbound.ATTESTATION_MISSING", "2"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]
