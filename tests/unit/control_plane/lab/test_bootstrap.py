"""What a development mesh adds to the policy that it publishes."""

from pathlib import Path

from control_plane.lab.bootstrap import DETECTION, completed, deny_all, prepare
from control_plane.lab.mesh import DevelopmentMesh, Plan
from trust.bundle import read_bundle
from trust.mesh import MeshSettings
from trust.verified import BASE_ROLE


def published(directory: Path, level: int, services: dict[str, str]) -> MeshSettings:
    """Return the settings that a mesh with these services would publish."""
    prepare(directory, "mesh.local")
    mesh = DevelopmentMesh(directory, Plan("mesh.local", services), detection=DETECTION)
    found = read_bundle(completed(mesh, deny_all("mesh.local", list(services), level)), role=BASE_ROLE).mesh
    assert found is not None
    return found


def test_level_5_without_a_node_has_no_roster_yet_and_is_no_error(tmp_path: Path) -> None:
    """`egm up --level 5` before the first service: nobody is there who could vouch."""
    assert published(tmp_path / "empty", 5, {}).attestation is None


def test_level_5_brings_roster_emergency_key_and_responses_and_level_1_the_key_alone(tmp_path: Path) -> None:
    """What `egm assess` wants of a fresh mesh of `egm up --level 5`."""
    full = published(tmp_path, 5, {"shop": "127.0.0.1:1"})
    assert full.attestation is not None
    assert list(full.attestation.witnesses) == ["shop"]
    assert full.emergency_keys and full.detection is not None and full.detection.respond
    low = published(tmp_path, 1, {"shop": "127.0.0.1:1"})
    assert (low.attestation, low.detection, set(low.emergency_keys)) == (None, None, set(full.emergency_keys))
