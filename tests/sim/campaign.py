"""Seeds one after another on several processes, until it is told to stop or has done what it was asked to."""

import multiprocessing
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult, Pool
from types import FrameType

from tests.sim.runs import Outcome, one_seed

_PROGRESS_S = 10.0
_AHEAD = 2  # seeds handed out per process, so that none waits for work


@dataclass(frozen=True)
class Bounds:
    """When to stop; None: not for this reason."""

    seconds: float | None = None
    events: int | None = None
    seeds: int | None = None


@dataclass
class Sums:
    """What a campaign did so far."""

    jobs: int
    started_s: float = field(default_factory=time.monotonic)
    seeds: int = 0
    events: int = 0
    violations: list[int] = field(default_factory=list)
    saw: Counter[str] = field(default_factory=Counter)  # in how many seeds something happened

    @property
    def elapsed_s(self) -> float:
        """How long it runs by now."""
        return max(time.monotonic() - self.started_s, 1e-3)

    def __str__(self) -> str:
        """Return the line that a person reads."""
        fell = ", ".join(map(str, self.violations))
        found = f"{len(self.violations)} violations (seeds {fell})" if fell else "no violation"
        return (
            f"{self.seeds} seeds, {self.events} events, {self.elapsed_s:.0f} s, "
            f"{self.events / self.elapsed_s:.0f} events/s on {self.jobs} processes, {found}"
        )

    def as_object(self) -> dict[str, object]:
        """Return what a program reads."""
        return {
            "seeds": self.seeds,
            "events": self.events,
            "seconds": round(self.elapsed_s, 1),
            "events_per_second": round(self.events / self.elapsed_s),
            "jobs": self.jobs,
            "violations": self.violations,
            "seeds_in_which": dict(sorted(self.saw.items())),
        }


class Campaign:
    """One run over many seeds. SIGINT and SIGTERM end it within a moment, with its sums of what was finished."""

    def __init__(self, bounds: Bounds, *, first: int, jobs: int, trouble_ms: int, keep_going: bool) -> None:
        self._bounds, self._first, self._jobs, self._keep_going = bounds, first, jobs, keep_going
        self._work: Iterator[tuple[int, int]] = ((seed, trouble_ms) for seed in iter(range(first, 2**53)))
        self._told_to_stop = False
        self.sums = Sums(jobs)

    def run(self) -> Sums:
        """Run seeds; print what falls, and now and then how far it is. Return the sums."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._stop) for number in signals]
        pool = multiprocessing.get_context("spawn").Pool(self._jobs, _deaf)
        try:
            self._run(pool)
        finally:
            pool.terminate()
            pool.join()
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)
        return self.sums

    def _run(self, pool: Pool) -> None:
        sys.stderr.write(
            f"seeds from {self._first} on, {self._jobs} processes; Ctrl-C ends it with a summary\n"
        )
        sys.stderr.flush()
        pending: deque[AsyncResult[Outcome]] = deque()
        shown_s = self.sums.started_s
        while True:
            while not self._over(len(pending)) and len(pending) < _AHEAD * self._jobs:
                pending.append(pool.apply_async(one_seed, (next(self._work),)))
            if not pending or (self._told_to_stop and not pending[0].ready()):
                return
            self._take(pending)
            if time.monotonic() - shown_s > _PROGRESS_S:
                shown_s = time.monotonic()
                sys.stderr.write(f"{self.sums}\n")

    def _take(self, pending: "deque[AsyncResult[Outcome]]") -> None:
        pending[0].wait(0.2)
        if not pending[0].ready():
            return
        outcome = pending.popleft().get()
        self.sums.seeds += 1
        self.sums.events += outcome.events
        self.sums.saw.update(what for what, often in outcome.saw.items() if often)
        if outcome.fell:
            self.sums.violations.append(outcome.seed)
            sys.stdout.write(f"{outcome.fell}\n\n")
            sys.stdout.flush()

    def _over(self, pending: int) -> bool:
        bounds, sums = self._bounds, self.sums
        return (
            self._told_to_stop
            or (bool(sums.violations) and not self._keep_going)
            or (bounds.seconds is not None and sums.elapsed_s >= bounds.seconds)
            or (bounds.events is not None and sums.events >= bounds.events)
            or (bounds.seeds is not None and sums.seeds + pending >= bounds.seeds)
        )

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_stop = True


def _deaf() -> None:
    """A worker ends when its campaign says so: Ctrl-C reaches the whole group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
