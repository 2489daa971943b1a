"""The worked examples of docs/examples, read by the loaders that the processes use."""

from pathlib import Path

import pytest

from control_plane.config import load_config as load_control_plane
from control_plane.edge.mesh_file import MeshFile
from sidecar.config_file import load_config as load_sidecar

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def test_the_example_of_a_control_plane_loads() -> None:
    """Every key of it is known and well formed."""
    config = load_control_plane(EXAMPLES / "control-plane.yaml")
    assert (config.name, config.trust_domain) == ("cp-1", "shop.example")


@pytest.mark.parametrize(("name", "node"), [("payments", "payments-1"), ("alice", "alice-1")])
def test_the_examples_of_sidecars_load(name: str, node: str) -> None:
    """One beside a service, one beside a caller."""
    config = load_sidecar(EXAMPLES / f"sidecar-{name}.yaml")
    assert (config.node, config.trust_domain) == (node, "shop.example")


def test_the_example_of_an_address_book_names_the_nodes_of_the_others() -> None:
    """An operator's mesh.json, as written by hand."""
    mesh = MeshFile.load(EXAMPLES)
    payments = load_sidecar(EXAMPLES / "sidecar-payments.yaml")
    assert set(mesh.nodes) == {"payments-1", "alice-1"}
    assert mesh.nodes["payments-1"].inbound.keys() == {route.service for route in payments.inbound}
    assert mesh.root == str(EXAMPLES / "root.json")
