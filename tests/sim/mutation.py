"""Whether the simulation notices that a guard is gone, and how many seeds that takes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.runs import live
from tests.sim.trouble import schedule_of

MAX_SEEDS = 25


@dataclass(frozen=True)
class Noticed:
    """What became of one mutant. `seed`: the first that noticed; None when none of `seeds` did."""

    mutant: Mutant
    seeds: int
    seed: int | None
    fell: tuple[str, ...]  # everything that fell, the last being what was noticed


def look_for(mutant: Mutant, *, first: int = 0, seeds: int = MAX_SEEDS) -> Noticed:
    """Remove one guard and run seeds until the right invariant falls."""
    fell: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        mutant.remove(patch)
        for seed in range(first, first + seeds):
            # what the guard is against, every second time with nothing else that goes wrong
            others = () if mutant.extra and seed % 2 else schedule_of(seed, mutant.trouble_ms)
            schedule = sorted([*others, *mutant.extra])
            error = live(seed, schedule, mutant.trouble_ms)[1]
            if error is not None:
                fell.append(str(error))
                if re.search(mutant.fells, fell[-1]):
                    return Noticed(mutant, seed - first + 1, seed, tuple(fell))
    return Noticed(mutant, seeds, None, tuple(fell))


def look_for_all(wanted: str = "", *, first: int = 0, seeds: int = MAX_SEEDS) -> Iterator[Noticed]:
    """Yield what became of every mutant whose name holds `wanted`."""
    for mutant in MUTANTS:
        if wanted in mutant.name:
            yield look_for(mutant, first=first, seeds=seeds)
