"""The demonstration itself: a promise that does not hold is never shown as one that does."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from control_plane.lab import demo
from control_plane.lab.calls import Outcome
from control_plane.lab.demo import Step, Tour
from control_plane.lab.demo_world import CheckError, World, expect
from trust.errors import InputError, Reason, StateError


def quiet(_line: str) -> None:
    """Say nothing."""


def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Outcome, *, executes: bool) -> World:
    """Return a world in which every call ends with `outcome`."""
    world = World(tmp_path, quiet)

    async def call(*_: object, **__: object) -> Outcome:
        world.payments.transfers += executes
        return outcome

    monkeypatch.setattr(World, "lab", SimpleNamespace(call=call))
    return world


async def test_the_tour_stops_at_the_first_step_that_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What comes after a broken promise would be shown on a broken mesh."""

    async def holds(_world: World) -> str:
        return "seen"

    async def breaks(_world: World) -> str:
        expect(False, "two of three, got one")
        return "never"

    monkeypatch.setattr(demo, "PARTS", (("one", (("a", holds), ("b", breaks), ("c", holds))),))
    seen: list[Step] = []
    assert not await Tour(tmp_path, seen.append, quiet).run()
    assert [(step.part, step.step, step.ok, step.detail) for step in seen] == [
        ("one", "a", True, "seen"),
        ("one", "b", False, "expected two of three, got one"),
    ]


async def test_an_error_of_the_mesh_is_a_step_that_failed_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A mesh that does not start is reported as a step, not as a traceback."""

    async def fails(_world: World) -> str:
        raise StateError(Reason.SOURCE_UNAVAILABLE, "control-plane ended before it was ready")

    monkeypatch.setattr(demo, "PARTS", (("one", (("a", fails),)),))
    seen: list[Step] = []
    assert not await Tour(tmp_path, seen.append, quiet).run()
    assert "control-plane ended before it was ready" in seen[0].detail


async def test_a_step_before_the_mesh_runs_is_a_failed_check(tmp_path: Path) -> None:
    """Nothing is looked at that is not there."""
    with pytest.raises(CheckError, match="not running"):
        await World(tmp_path, quiet).transfer("alice", 1)


def test_a_directory_that_holds_something_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A second tour in the directory of the first would meet the node that the first locked out."""
    (tmp_path / "mesh.json").write_text("{}")
    with pytest.raises(InputError, match="is not empty") as refused:
        Tour(tmp_path, lambda _step: None, quiet)
    assert refused.value.reason is Reason.CONFLICT


@pytest.mark.parametrize(
    ("outcome", "executes"),
    [
        (Outcome(True, "OK", reply={"id": "transfer-1"}), True),
        (Outcome(False, "PERMISSION_DENIED", "POLICY_STALE", "egm: POLICY_STALE: …"), False),
        (Outcome(False, "UNAVAILABLE", "", "nobody there"), False),
        (Outcome(False, "PERMISSION_DENIED", "POLICY_DENIED", "egm: POLICY_DENIED: …"), True),
    ],
    ids=["executed", "another reason", "no answer", "refused, yet the service was reached"],
)
async def test_only_the_promised_refusal_counts_as_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Outcome, executes: bool
) -> None:
    """A call that failed for another reason, or that the service executed after all, shows nothing."""
    world = answering(monkeypatch, tmp_path, outcome, executes=executes)
    with pytest.raises(CheckError):
        await world.refused("alice", 1, Reason.POLICY_DENIED)


async def test_the_promised_refusal_is_told_without_the_name_of_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reason comes first."""
    outcome = Outcome(False, "PERMISSION_DENIED", "POLICY_DENIED", "egm: POLICY_DENIED: a policy forbids it")
    world = answering(monkeypatch, tmp_path, outcome, executes=False)
    assert await world.refused("alice", 1, Reason.POLICY_DENIED) == "POLICY_DENIED: a policy forbids it"


async def test_a_refusal_does_not_count_as_executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A call that is to go through must have been executed."""
    outcome = Outcome(False, "PERMISSION_DENIED", "POLICY_STALE", "egm: POLICY_STALE: …")
    world = answering(monkeypatch, tmp_path, outcome, executes=False)
    with pytest.raises(CheckError):
        await world.executed("alice", 1)
