"""`python -m tests.sim`: run one seed, or seeds one after another for some seconds."""

import argparse
import sys
import time

from tests.sim.world import run_seed


def main() -> int:
    """Return 0 if no invariant fell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed")
    parser.add_argument("--first", type=int, default=0, help="first seed of a run")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--events", type=int, default=1_500, help="events of trouble per seed")
    options = parser.parse_args()
    if options.seed is not None:
        sys.stdout.write(
            f"seed {options.seed}: {run_seed(options.seed, options.events)} events, no violation\n"
        )
        return 0
    started, seed, events = time.monotonic(), options.first, 0
    while (elapsed := time.monotonic() - started) < options.seconds:
        events += run_seed(seed, options.events)
        seed += 1
    sys.stdout.write(
        f"{seed - options.first} seeds, {events} events, {events / elapsed:.0f} events/s, no violation\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
