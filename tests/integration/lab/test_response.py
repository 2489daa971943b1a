"""From a caller's probing to the sidecar that slows it down, with nobody asked, on real processes."""

import time
from collections.abc import Iterator

import pytest
import yaml

from control_plane.lab.mesh_sync import Mesh
from control_plane.lab.plan import LabPlan, Node, Service
from tests.support.cli import egm

GET = "egm.sample.v1.Accounts/GetBalance"
WITHIN_S = 40.0
pytestmark = [pytest.mark.xdist_group("response"), pytest.mark.timeout(280)]
SETTINGS = {
    "name": "watched",
    "description": "Alice may ask for balances; who tries many doors is slowed down.",
    "trust_domain": "mesh.local",
    "level": 4,
    "lease": {"ttl_s": 30, "grace_s": 30},
    "services": {"bank": {"grpc_services": ["egm.sample.v1.Accounts", GET]}},
    "roles": {"asker": ["alice", "bob"]},
    "detection": {
        "respond": True,
        "responses": [{"on": "EGM-T003", "do": ["alert", "throttle"], "rate": "1/h", "ttl_s": 120}],
    },
}
POLICY = {
    "bundle.yaml": yaml.safe_dump(SETTINGS),
    "policies/bank.cedar": (
        '@id("askers-ask")\n'
        f'permit (principal in Role::"asker", action == Action::"{GET}", resource == Service::"bank");\n'
    ),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    nodes = {"server": Node({"bank": Service()}), "clients": Node(workloads=("alice", "bob"))}
    with Mesh(LabPlan(nodes, policy=POLICY), tmp_path_factory.mktemp("response")) as running:
        yield running


def test_a_caller_that_tries_many_methods_is_slowed_down_by_every_sidecar_and_no_other_is(mesh: Mesh) -> None:
    """Refusals become an incident, the incident a directive, the directive RATE_EXCEEDED; it names its evidence."""
    assert mesh.call("alice", GET, to="bank").ok
    for number in range(6):
        assert (
            mesh.call("alice", f"egm.sample.v1.Accounts/Door{number}", to="bank").reason
            == "NO_POLICY_PERMITS"
        )
    refused = None
    deadline = time.monotonic() + WITHIN_S
    while refused is None or refused.ok:
        assert time.monotonic() < deadline, mesh.log("control-plane")
        time.sleep(0.25)
        refused = mesh.call("alice", GET, to="bank")
    assert refused.reason == "RATE_EXCEEDED", refused
    assert mesh.call("bob", GET, to="bank").ok

    listed = egm("incidents", "list", "--json", mesh=mesh.directory)
    incident = next(one for one in listed.data["incidents"] if one["rule"] == "EGM-T003")
    assert incident["subject"].endswith("/workload/alice")
    denied = egm("revoke", "list", mesh=mesh.directory)
    assert "throttle alice 1/h" in denied.stdout
