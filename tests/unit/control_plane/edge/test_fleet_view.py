"""The fleet as an operator reads it."""

from control_plane.edge.fleet_view import fleet_view
from egm.v1 import operator_pb2
from egm.v1.operator_pb2 import Attestation

NOW_MS = 1_800_000_000_000


def status() -> operator_pb2.ControlPlaneStatus:
    return operator_pb2.ControlPlaneStatus(name="cp-1", role_versions={"targets": 5}, now_ms=NOW_MS)


def record(age_ms: int = 0, **said: object) -> operator_pb2.NodeRecord:
    node = operator_pb2.NodeStatus(**{"node": "a", "state": "READY", "policy_version": 5, **said})  # type: ignore[arg-type]
    return operator_pb2.NodeRecord(node="a", last_seen_ms=NOW_MS - age_ms, status=node)


def test_ready_nodes_on_the_published_policy_are_healthy() -> None:
    """Nothing to report."""
    view = fleet_view(status(), [record()])
    assert view.healthy and not view.problems


def test_a_silent_node_is_never_healthy_whatever_it_last_said() -> None:
    """READY is a claim about the past."""
    view = fleet_view(status(), [record(age_ms=60_000)])
    assert view.nodes[0].state == "SILENT"
    assert not view.healthy


def test_a_node_behind_on_policy_is_a_problem() -> None:
    """Ready under an old version is still behind."""
    view = fleet_view(status(), [record(policy_version=4)])
    assert not view.healthy
    assert "policy 4" in view.problems[0]


def test_a_node_that_is_not_ready_says_why() -> None:
    """Reasons are carried, not summarised away."""
    view = fleet_view(status(), [record(state="NOT_READY", not_ready=["POLICY_STALE"])])
    assert "POLICY_STALE" in view.problems[0]


def test_level_five_is_never_shown_without_what_it_lacks() -> None:
    """A grade that the installation does not deserve must not be read off the status."""
    assert fleet_view(status(), [record(levels={"payments": 5})]).missing
    assert not fleet_view(status(), [record(levels={"payments": 4})]).missing
    unwitnessed = record(levels={"payments": 5}, attestation=Attestation(standing="NO_WITNESSES"))
    assert "names no witnesses" in fleet_view(status(), [unwitnessed]).missing[0]
    witnessed = record(levels={"payments": 5}, attestation=Attestation(standing="NOT_ATTESTED"))
    assert not fleet_view(status(), [witnessed]).missing
    assert fleet_view(status(), [record(), unwitnessed]).missing


def test_who_vouches_for_a_node_is_shown() -> None:
    """By whom, for how long, and who does not."""
    said = Attestation(
        standing="ATTESTED", remaining_ms=42_000, quorum=2, vouched=["a", "b"], not_vouched={"c": "no answer"}
    )
    node = fleet_view(status(), [record(attestation=said)]).nodes[0]
    assert (node.attestation, node.attestation_remaining_s, node.quorum) == ("ATTESTED", 42, 2)
    assert (list(node.vouched), node.not_vouched) == (["a", "b"], {"c": "no answer"})


def test_a_node_is_attested_only_by_what_the_control_plane_verified() -> None:
    """A node's own word stays its word; what ended stays ended."""
    said = Attestation(standing="ATTESTED", remaining_ms=42_000, quorum=2, vouched=["x", "y"])
    claimed = record(attestation=said)
    claimed.attested_problem = "refused"
    node = fleet_view(status(), [claimed]).nodes[0]
    assert (node.attested, node.attested_problem) == (False, "refused")
    verified = record(attestation=said)
    verified.attested_until_ms = NOW_MS + 9_000
    verified.attested_by.extend(["a", "b"])
    node = fleet_view(status(), [verified]).nodes[0]
    assert (node.attested, list(node.vouched), node.attestation_remaining_s) == (True, ["a", "b"], 9)
    verified.attested_until_ms = NOW_MS
    assert not fleet_view(status(), [verified]).nodes[0].attested
