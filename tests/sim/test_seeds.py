"""Simulated meshes under every trouble the world has: the invariants hold after every event."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.core import bundle_state
from sidecar.core.bundle_state import BundleState, Lease
from sidecar.core.feed_state import FeedState
from tests.sim.world import Violation, World, run_seed

SEEDS = 40
_BATCH = 20


@pytest.mark.parametrize("first", range(0, SEEDS, _BATCH))
def test_no_invariant_falls_under_partitions_crashes_lies_and_wrong_clocks(first: int) -> None:
    """Seeds are fixed, so that a failure is the change's and not the dice's; `make sim` looks further."""
    for seed in range(first, first + _BATCH):
        run_seed(seed)


def test_a_seed_replays_exactly_under_another_hash_seed() -> None:
    """Nothing depends on the order of sets or on object addresses."""
    script = (
        "from tests.sim.world import World\n"
        "w = World(7)\n"
        "w.run(800)\n"
        "print(w.now_ms, w.events, [(n.accepted, n.boots, n.signed_ms) for n in w.nodes])\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in (1, 2)
    }
    assert len(seen) == 1


def test_the_world_is_as_bad_as_it_claims() -> None:
    """A simulation in which nothing happens would prove nothing."""
    worlds = [World(seed) for seed in range(5)]
    for world in worlds:
        world.run(1_500)
    assert sum(world.published.version for world in worlds) > 2 * len(worlds)
    assert sum(node.boots - 1 for world in worlds for node in world.nodes) > 2 * len(worlds)


def _no_version_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BundleState, "check", lambda *_args, **_kwargs: True)


def _endless_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BundleState, "lease", lambda self, *_: Lease.FRESH if self.in_force else Lease.NONE)


def _wall_clock_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bundle_state._deadlines

    def without_monotonic(*arguments: Any) -> Any:
        never = 2**62
        ends = real(*arguments)
        return dataclasses.replace(ends, fresh_mono_ms=never, sealed_mono_ms=never, expires_mono_ms=never)

    monkeypatch.setattr(bundle_state, "_deadlines", without_monotonic)


def _never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeedState, "tick", lambda *_args, **_kwargs: None)


@pytest.mark.parametrize(
    ("remove", "invariant"),
    [
        (_no_version_check, "invariant 3"),
        (_endless_lease, "invariant 2"),
        (_wall_clock_only, "invariant 2"),
        (_never_looks, "invariant 8"),
    ],
)
def test_removing_a_guard_is_noticed(
    monkeypatch: pytest.MonkeyPatch, remove: Callable[[pytest.MonkeyPatch], None], invariant: str
) -> None:
    """Each guard is there for an invariant; without it the simulation finds the fall."""
    remove(monkeypatch)
    with pytest.raises(Violation, match=invariant):
        for seed in range(60):
            run_seed(seed)
