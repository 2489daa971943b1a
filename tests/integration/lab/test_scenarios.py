"""Every scenario that egm ships, on real processes, as a person runs it."""

import json
from pathlib import Path

import psutil
import pytest

from control_plane.lab.scenario import shipped_scenarios
from tests.support.cli import egm

TIMEOUT_S = 280.0
pytestmark = pytest.mark.timeout(300)  # seconds on a quiet machine; the limits of the steps themselves decide
# What every change must keep; `make lab` runs the others. A member that lies is caught in tests/e2e/test_demo.py, too.
ALWAYS = frozenset({"minority-seals", "crash-under-load"})
SCENARIOS = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.lab) for name in shipped_scenarios()
]


def left_running(directory: Path) -> list[str]:
    """Return the command lines of processes that belong to a mesh below `directory`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(directory) in line:
            found.append(line)
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_shipped_scenario_holds_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    """Exit 0, every step ok, and no process of the mesh survives."""
    outcome = egm("lab", "run", name, "--dir", tmp_path / "mesh", "--json", timeout_s=TIMEOUT_S)
    steps = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert outcome.code == 0, (steps[-1:], outcome.stderr[-3000:])
    assert all(step["ok"] for step in steps)
    assert steps[0]["step"] == "mesh"
    assert left_running(tmp_path) == []


def test_the_scenarios_that_always_run_are_shipped() -> None:
    """One that is renamed must not fall out of `make test`."""
    assert set(shipped_scenarios()) >= ALWAYS


def test_an_expectation_that_does_not_hold_ends_the_run_and_says_where(tmp_path: Path) -> None:
    """Exit 1, the line of the step, what was seen, and the logs of the members."""
    file = tmp_path / "wrong.yaml"
    file.write_text(
        "name: wrong\nmesh: {nodes: [a, b]}\nsteps:\n"
        "  - call: {from: a, to: b, method: egm.sample.v1.Accounts/GetBalance, expect: {reason: POLICY_STALE}}\n"
        "  - heal\n"
    )
    outcome = egm("lab", "run", file, "--dir", tmp_path / "mesh", timeout_s=TIMEOUT_S)
    assert outcome.code == 1
    assert f"{file}:4" in outcome.stdout
    assert "expected a refusal POLICY_STALE" in outcome.stdout
    assert "log of control-plane" in outcome.stderr
    assert left_running(tmp_path) == []


def test_a_mistake_in_a_file_is_told_before_anything_starts(tmp_path: Path) -> None:
    """Exit 2 and the line, for run and check."""
    file = tmp_path / "bad.yaml"
    file.write_text("name: bad\nmesh: {nodes: [a]}\nsteps:\n  - explode: a\n")
    for verb in ("run", "check"):
        outcome = egm("lab", verb, file)
        assert (outcome.code, f"{file}:4" in outcome.stderr) == (2, True), outcome
    unknown = egm("lab", "run", "no-such", "--json")
    assert (unknown.code, unknown.data["error"]) == (2, "NOT_FOUND")


def test_a_mesh_that_cannot_start_is_could_not_tell(tmp_path: Path) -> None:
    """Exit 3, with the end of the log of what did not start; nothing is left running."""
    file = tmp_path / "sick.yaml"
    file.write_text(
        "name: sick\nmesh:\n  nodes:\n    a:\n      services:\n"
        "        s: {command: [python3, -c, 'import sys; sys.exit(\"no disk\")']}\n"
        "steps: [heal]\n"
    )
    outcome = egm("lab", "run", file, "--dir", tmp_path / "mesh", timeout_s=TIMEOUT_S)
    assert (outcome.code, "no disk" in outcome.stderr) == (3, True), outcome
    assert left_running(tmp_path) == []


def test_the_scenarios_are_listed() -> None:
    """With what each of them shows."""
    listed = egm("lab", "list", "--json").data["scenarios"]
    assert {one["name"] for one in listed} == set(shipped_scenarios())
    assert egm("lab", "check", "old-disk", "--json").data["members"] == [
        "a",
        "b",
        "c",
        "control-plane",
        "broker",
    ]
