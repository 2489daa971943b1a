"""The table of who may call what."""

import pytest
from grpc_health.v1 import health_pb2

from control_plane.core.roles import ALLOWED, Kind, check_allowed
from egm.v1 import (
    analytics_pb2,
    approvals_pb2,
    distribution_pb2,
    gossip_pb2,
    incidents_pb2,
    join_pb2,
    node_pb2,
    operator_pb2,
    record_pb2,
    shadow_pb2,
)
from trust.errors import EvidenceError, Reason
from trust.spiffe import SpiffeId


def served() -> set[str]:
    """Return every RPC that the control plane serves on its mutual-TLS listener."""
    services = [
        operator_pb2.DESCRIPTOR.services_by_name["Operator"],
        analytics_pb2.DESCRIPTOR.services_by_name["Analytics"],
        analytics_pb2.DESCRIPTOR.services_by_name["Alerts"],
        distribution_pb2.DESCRIPTOR.services_by_name["Distribution"],
        node_pb2.DESCRIPTOR.services_by_name["Fleet"],
        join_pb2.DESCRIPTOR.services_by_name["Join"],
        record_pb2.DESCRIPTOR.services_by_name["Records"],
        gossip_pb2.DESCRIPTOR.services_by_name["Gossip"],
        incidents_pb2.DESCRIPTOR.services_by_name["Incidents"],
        gossip_pb2.DESCRIPTOR.services_by_name["Emergency"],
        approvals_pb2.DESCRIPTOR.services_by_name["Approvals"],
        approvals_pb2.DESCRIPTOR.services_by_name["ApprovalDesk"],
        shadow_pb2.DESCRIPTOR.services_by_name["Shadow"],
        shadow_pb2.DESCRIPTOR.services_by_name["ShadowRuns"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
    ]
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


def test_the_table_is_total_and_names_nothing_else() -> None:
    """A new RPC without a row would be refused to everybody: say so here, not in production."""
    assert set(ALLOWED) == served()


def test_only_operators_may_do_what_operators_do() -> None:
    """No row of the Operator service may ever gain a node or a workload."""
    for rpc, kinds in ALLOWED.items():
        if rpc.startswith("/egm.v1.Operator/"):
            assert kinds == {Kind.OPERATOR}, rpc
        assert Kind.WORKLOAD not in kinds, rpc


@pytest.mark.parametrize(
    ("caller", "rpc"),
    [
        ("spiffe://mesh.local/node/a", "/egm.v1.Operator/Publish"),
        ("spiffe://mesh.local/workload/alice", "/egm.v1.Distribution/GetFile"),
        ("spiffe://mesh.local/operator/olga", "/egm.v1.Fleet/Report"),
        ("spiffe://mesh.local/operator/olga", "/egm.v1.Records/Ship"),
        ("spiffe://mesh.local/workload/alice", "/egm.v1.Records/Ship"),
        ("spiffe://mesh.local/node/a", "/egm.v1.Operator/GetTree"),
        ("spiffe://mesh.local/operator/olga", "/egm.v1.Join/Enrol"),
        ("spiffe://mesh.local/operator/olga", "/egm.v1.Operator/Unlisted"),
        ("spiffe://mesh.local/operator/olga", "/egm.v1.Gossip/Exchange"),
        ("spiffe://mesh.local/workload/alice", "/egm.v1.Emergency/Revoke"),
        ("spiffe://mesh.local/operator/olga", "egm.v1.Operator/Publish"),
        ("spiffe://mesh.local/operator", "/egm.v1.Operator/Publish"),
        ("spiffe://mesh.local/operator/olga/deputy", "/egm.v1.Operator/Publish"),
        ("spiffe://mesh.local/Operator/olga", "/egm.v1.Operator/Publish"),
        ("spiffe://other.test/operator/olga", "/egm.v1.Operator/Publish"),
    ],
)
def test_what_the_table_does_not_allow_is_refused(caller: str, rpc: str) -> None:
    """Other kinds, other domains, names that only look right, and RPCs nobody listed."""
    with pytest.raises(EvidenceError) as caught:
        check_allowed(SpiffeId.parse(caller), rpc, trust_domain="mesh.local")
    assert caught.value.reason is Reason.NOT_AUTHORIZED


def test_what_the_table_allows_passes() -> None:
    """An operator publishes, a node reports."""
    for caller, rpc in (("operator/olga", "Operator/Publish"), ("node/a", "Fleet/Report")):
        check_allowed(
            SpiffeId.parse(f"spiffe://mesh.local/{caller}"), f"/egm.v1.{rpc}", trust_domain="mesh.local"
        )
