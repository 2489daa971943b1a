"""`python -m tests.sim`: run one seed, or seeds one after another until told to stop."""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator

from tests.sim.kernel import Violation
from tests.sim.runs import one_seed, run_seed
from tests.sim.trouble import TROUBLE_MS


def _until(first: int, deadline: float, trouble_ms: int) -> Iterator[tuple[int, int]]:
    seed = first
    while time.monotonic() < deadline:
        yield seed, trouble_ms
        seed += 1


def _many(options: argparse.Namespace) -> int:
    started = time.monotonic()
    seeds = events = 0
    work = _until(options.first, started + options.seconds, options.trouble_ms)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        pending: list[multiprocessing.pool.AsyncResult[tuple[int, int, str]]] = []
        for one in work:
            pending.append(pool.apply_async(one_seed, (one,)))
            while len(pending) >= 2 * options.processes:
                _, count, fell = pending.pop(0).get()
                seeds, events = seeds + 1, events + count
                if fell:
                    sys.stdout.write(f"{fell}\n")
                    return 1
        for left in pending:
            _, count, fell = left.get()
            seeds, events = seeds + 1, events + count
            if fell:
                sys.stdout.write(f"{fell}\n")
                return 1
    elapsed = time.monotonic() - started
    sys.stdout.write(
        f"{seeds} seeds, {events} events, {events / elapsed:.0f} events/s on {options.processes} processes, "
        "no violation\n"
    )
    return 0


def main() -> int:
    """Return 0 if no invariant fell, 1 if one did."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed")
    parser.add_argument(
        "--keep", help="with --seed: numbers of the schedule's steps to carry out; - for none"
    )
    parser.add_argument(
        "--trouble-ms", type=int, default=TROUBLE_MS, help="how long things go wrong, simulated"
    )
    parser.add_argument("--first", type=int, default=0, help="first seed of a run")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to try seeds")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    if options.seed is None:
        return _many(options)
    keep = None
    if options.keep is not None:
        keep = [int(number) for number in options.keep.split(",") if number != "-"]
    try:
        mesh = run_seed(options.seed, trouble_ms=options.trouble_ms, keep=keep)
    except Violation as error:
        sys.stdout.write(f"{error}\n")
        return 1
    seen = mesh.observer
    sys.stdout.write(
        f"seed {options.seed}: {mesh.events} events, {seen.forwards} calls forwarded, {seen.executions} executed, "
        "no violation\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
