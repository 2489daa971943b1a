"""Who serves a service: the policy that is in force now, whatever was asked before it."""

from pathlib import Path

from sidecar.config import SidecarConfig
from sidecar.core.bundle_state import InForce
from sidecar.edge.callees import Callees
from tests.support.sidecar_core import RuleDecider, mesh, verified
from trust.mesh import MeshSettings, ServiceSettings


def config(tmp_path: Path) -> SidecarConfig:
    return SidecarConfig.model_validate(
        {
            "node": "a",
            "trust_domain": "mesh.local",
            "data_dir": tmp_path / "data",
            "root": tmp_path / "root.json",
            "control_plane": {"addresses": ["127.0.0.1:1"]},
            "identity": {"source": "embedded", "ca": tmp_path / "ca.pem"},
            "inbound": [{"service": "pay", "listen": "127.0.0.1:0", "upstream": {"address": "127.0.0.1:1"}}],
            "services": {"shop": {"addresses": ["127.0.0.1:2"], "workload": "configured"}},
        }
    )


def signed(workload: str | None) -> InForce:
    settings: MeshSettings = mesh(shop=4) if workload else mesh()
    if workload:
        services = {"shop": ServiceSettings(level=4, workload=workload)}
        settings = settings.model_copy(update={"services": services})
    return InForce(verified(lease_expires_ms=2**50), RuleDecider(settings))


def test_the_workload_that_serves_follows_the_policy_in_force(tmp_path: Path) -> None:
    """A permit for whoever served under yesterday's policy would be one for a workload that lost the service."""
    held: list[InForce | None] = [None]
    callees = Callees(config(tmp_path), lambda: held[0])
    seen = []
    for held[0] in (None, signed("first"), signed("second"), signed(None), None):
        seen += [callees.callee("shop"), callees.callee("shop")]
    names = [text.removeprefix("spiffe://mesh.local/workload/") for text in seen]
    assert names[::2] == names[1::2] == ["configured", "first", "second", "configured", "configured"]
