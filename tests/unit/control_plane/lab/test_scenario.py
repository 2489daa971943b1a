"""Scenario files: what is read, and that a mistake is named with its line."""

from pathlib import Path

import pytest

from control_plane.lab.scenario import (
    find_scenario,
    load_scenario,
    parse_scenario,
    shipped_scenarios,
)
from trust.errors import InputError

HEAD = "name: x\nmesh:\n  nodes: [a, b]\nsteps:\n"


def mistakes(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_scenario("s.yaml", text.encode(), base=Path())
    return caught.value.detail


def test_every_shipped_scenario_is_read_and_described() -> None:
    """What `egm lab list` shows can be run."""
    assert len(shipped_scenarios()) >= 8
    for name in shipped_scenarios():
        scenario = load_scenario(find_scenario(name))
        assert scenario.name == name
        assert scenario.description.endswith(".")


def test_steps_are_read_with_their_places() -> None:
    """A failure names FILE:LINE."""
    text = HEAD + "  - heal\n  - kill: a\n  - partition: [[a], [b]]\n  - stop_load\n  - skew: {a: +90s}\n"
    scenario = parse_scenario("s.yaml", text.encode(), base=Path())
    assert [step.kind for step in scenario.steps] == ["heal", "kill", "partition", "stop_load", "skew"]
    assert scenario.place(1) == "s.yaml:6"
    assert scenario.steps[4].skew == {"a": 90.0}
    partition = scenario.steps[2].partition
    assert partition is not None
    assert partition.groups == (("a",), ("b",))


def test_a_roster_is_named_by_its_nodes() -> None:
    """Their keys are of the mesh that is started."""
    text = HEAD.replace("[a, b]", "[a, b]\n  witnesses: [a]\n  attestation_s: 6")
    scenario = parse_scenario("s.yaml", f"{text}  - publish: {{witnesses: [b]}}\n".encode(), base=Path())
    assert (scenario.plan.witnesses, scenario.plan.attestation_s) == (("a",), 6)
    publish = scenario.steps[0].publish
    assert publish is not None
    assert publish.witnesses == ("b",)
    assert "name nodes" in mistakes(HEAD.replace("[a, b]", "[a, b]\n  witnesses: [z]") + "  - heal\n")


def test_a_reason_expects_a_refusal() -> None:
    """Nobody needs to write ok: false beside it."""
    text = HEAD + "  - call: {from: a, to: b, method: s.S/M, expect: {reason: POLICY_STALE}}\n"
    call = parse_scenario("s.yaml", text.encode(), base=Path()).steps[0].call
    assert call is not None
    assert not call.expect.ok


def test_nodes_with_services_and_workloads_make_the_plan() -> None:
    """Services of one's own, started by a command."""
    text = (
        "name: x\nmesh:\n  level: 5\n  nodes:\n    n1:\n      workloads: [alice]\n"
        "      services: {shop: {command: [serve, '{port}'], grpc_services: [shop.v1.Shop]}, other: }\n"
        "steps: [heal]\n"
    )
    plan = parse_scenario("s.yaml", text.encode(), base=Path()).plan
    assert plan.workloads == ("shop", "other", "alice")
    assert plan.services["shop"].command == ("serve", "{port}")
    assert plan.services["other"].is_sample
    assert plan.level == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "  - heal\n  - kill: a\n    heal: true\n", "s.yaml:6: steps.1"),
        (HEAD + "  - explode: a\n", "s.yaml:5: steps.0.explode"),
        (HEAD + "  - call:\n      from: a\n      metod: s.S/M\n", "s.yaml:7: steps.0.call.metod"),
        (HEAD + "  - call:\n      to: b\n      method: s.S/M\n", "'from' is missing"),
        (HEAD + "  - sleep: soon\n", "s.yaml:5: steps.0.sleep: 'soon' is not a duration"),
        (HEAD + "  - fault: {from: a, to: b, loss: 2}\n", "s.yaml:5: steps.0.fault: loss"),
        (HEAD + "  - kill:\n", "s.yaml:5"),
        ("name: x\nmesh: {nodes: [broker]}\nsteps: [heal]\n", "s.yaml:2: 'broker' is the lab's own name"),
        ("name: x\nmesh: {nodes: [a], descriptors: gone}\nsteps: [heal]\n", "gone: No such file"),
        ("name: x\nsteps: [heal]\n", "'mesh' is missing"),
        ("name: x\nmesh: {nodes: [a]}\nsteps: []\n", "s.yaml:3: steps"),
        ("name: [", "s.yaml:1: YAML"),
        ("", "s.yaml:1"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, told: str) -> None:
    """Before anything is started."""
    assert told in mistakes(text)


def test_an_unknown_scenario_names_those_there_are(tmp_path: Path) -> None:
    """And a path that does not exist is no name."""
    with pytest.raises(InputError, match="minority-seals"):
        find_scenario("minority-seal")
    with pytest.raises(InputError, match="neither"):
        find_scenario(str(tmp_path / "gone.yaml"))
    with pytest.raises(InputError):
        find_scenario("../scenarios/minority-seals")
