"""What a lab mesh may consist of."""

from pathlib import Path

import pytest

from control_plane.lab.plan import SAMPLE_SERVICES, LabPlan, Node, Service, parse_duration_ms
from trust.bundle import read_claimed_bundle
from trust.errors import EvidenceError, InputError
from trust.policy.source import build


def test_nodes_by_name_have_a_sample_service_of_that_name_each() -> None:
    """The short way to a mesh."""
    plan = LabPlan.of("a", "b")
    assert plan.workloads == ("a", "b")
    assert plan.services["a"].names == SAMPLE_SERVICES
    assert plan.members() == ("a", "b", "control-plane", "broker")


def test_the_default_policy_builds_and_names_every_service() -> None:
    """With services that the lab does not know the methods of, too."""
    nodes = {"n1": Node({"shop": Service("127.0.0.1:1")}, ("alice",)), "n2": Node({"stock": Service()})}
    bundle = read_claimed_bundle(build(LabPlan(nodes, lease_s=7).policy_files(), level_override=5))
    assert bundle.mesh is not None
    assert set(bundle.mesh.services) == {"shop", "stock"}
    assert (bundle.mesh.lease.ttl_s, bundle.mesh.level) == (7, 5)


@pytest.mark.parametrize(
    "nodes",
    [
        {},
        {"broker": Node({"x": Service()})},
        {"a": Node()},
        {"a": Node({"x": Service()}), "b": Node({"x": Service()})},
        {"a": Node({"x": Service()}, ("x",))},
        {"A B": Node({"x": Service()})},
    ],
)
def test_a_plan_that_cannot_run_is_refused(nodes: dict[str, Node]) -> None:
    """No node, a name of the lab, nothing on a node, one name twice, a name that is none."""
    with pytest.raises((InputError, EvidenceError)):
        LabPlan(nodes)


def test_witnesses_are_nodes_of_the_mesh() -> None:
    """A name that is nobody's, or no names, is told before anything starts."""
    nodes = {"a": Node({"a": Service()}), "b": Node({"b": Service()})}
    assert LabPlan(nodes, witnesses=("a",)).witnesses == ("a",)
    for names in ((), ("a", "z")):
        with pytest.raises(InputError, match="name nodes of this mesh: a, b"):
            LabPlan(nodes, witnesses=names)


def test_a_service_is_started_or_found_not_both() -> None:
    """Which of the two would be called?"""
    with pytest.raises(InputError, match="not both"):
        Service("127.0.0.1:1", ("python", "service.py"))


def test_a_policy_folder_or_its_files_replace_the_default(tmp_path: Path) -> None:
    """Both ways to give one."""
    (tmp_path / "bundle.yaml").write_text("name: mine\n")
    assert LabPlan.of("a", policy=tmp_path).starting_policy() == {"bundle.yaml": b"name: mine\n"}
    assert LabPlan.of("a", policy={"bundle.yaml": "x", "gone": ""}).starting_policy()["bundle.yaml"] == b"x"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("+90s", 90_000), ("-2m", -120_000), ("500ms", 500), ("1h", 3_600_000), (1.5, 1500), (0, 0)],
)
def test_durations_are_read(text: str | float, milliseconds: int) -> None:
    """As people write them."""
    assert parse_duration_ms(text) == milliseconds


@pytest.mark.parametrize(
    "text", ["", "90", "soon", "s", "1d", "infs", "1e400h", "nanm", float("inf"), float("nan")]
)
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    """And the message says how to write one."""
    with pytest.raises(InputError, match="90s"):
        parse_duration_ms(text)
