"""`python -m tests.sim`: seeds until told to stop, one seed again, or every guard removed in turn."""

import argparse
import json
import multiprocessing
import sys

from tests.sim.campaign import Bounds, Campaign
from tests.sim.kernel import Violation
from tests.sim.mutation import MAX_SEEDS, look_for_all
from tests.sim.runs import run_seed
from tests.sim.trouble import TROUBLE_MS, schedule_of

_OK, _FELL, _USAGE = 0, 1, 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim",
        description=__doc__,
        epilog="Exit codes: 0 nothing fell (with --mutants: every one was noticed), 1 otherwise, 2 wrong usage.",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--trouble-ms", type=_positive, default=TROUBLE_MS, help="how long things go wrong, simulated"
    )
    many = parser.add_argument_group("many seeds; without a bound until SIGINT or SIGTERM")
    many.add_argument("--seconds", type=float, help="stop after so many seconds")
    many.add_argument("--events", type=_positive, help="stop after so many events")
    many.add_argument("--seeds", type=_positive, help="stop after so many seeds")
    many.add_argument("--first", type=int, default=0, help="the first seed (0)")
    many.add_argument(
        "--jobs", type=_positive, default=multiprocessing.cpu_count(), help="processes (one per core)"
    )
    many.add_argument("--keep-going", action="store_true", help="go on after a violation")
    one = parser.add_argument_group("one seed")
    one.add_argument("--seed", type=int, help="run this seed, as before")
    one.add_argument(
        "--keep", type=_numbers, help="numbers of the schedule's steps to carry out, 3,7; - for none"
    )
    one.add_argument("--schedule", action="store_true", help="print what goes wrong under the seed")
    guards = parser.add_argument_group("guards")
    guards.add_argument("--mutants", action="store_true", help="remove each guard; something must notice")
    guards.add_argument("--only", default="", help="with --mutants: those whose name holds this text")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _numbers(text: str) -> list[int]:
    return [] if text == "-" else [int(number) for number in text.split(",")]


def _one(options: argparse.Namespace) -> int:
    if options.schedule:
        for number, (at, what, drawn) in enumerate(schedule_of(options.seed, options.trouble_ms)):
            sys.stdout.write(f"{number:4d}  {at:6d} ms  {what} ({drawn})\n")
    try:
        mesh = run_seed(options.seed, trouble_ms=options.trouble_ms, keep=options.keep)
    except Violation as error:
        sys.stdout.write(
            json.dumps({"seed": options.seed, "fell": str(error)}) if options.json else str(error)
        )
        sys.stdout.write("\n")
        return _FELL
    seen = mesh.observer
    result = {
        "seed": options.seed,
        "events": mesh.events,
        "forwarded": seen.forwards,
        "executed": seen.executions,
        "saw": dict(sorted((+seen.saw).items())),
        "trace": mesh.trace,
    }
    sys.stdout.write(
        json.dumps(result)
        if options.json
        else f"seed {options.seed}: {mesh.events} events, {seen.forwards} calls forwarded, {seen.executions} executed, "
        f"no violation, trace {mesh.trace[:16]}"
    )
    sys.stdout.write("\n")
    return _OK


def _mutants(options: argparse.Namespace) -> int:
    results, missed = [], 0
    for found in look_for_all(options.only, first=options.first, seeds=options.seeds or MAX_SEEDS):
        missed += found.seed is None
        what = (
            found.fell[-1].partition("\n")[0]
            if found.seed is not None
            else "; ".join(found.fell) or "nothing"
        )
        results.append({"guard": found.mutant.name, "seeds": found.seeds, "seed": found.seed, "fell": what})
        if not options.json:
            word = "NOT NOTICED" if found.seed is None else f"{found.seeds:2d} seeds"
            sys.stdout.write(f"{found.mutant.name:36s} {word}: {what}\n")
            sys.stdout.flush()
    if not results:
        sys.stderr.write(f"no guard's name holds {options.only!r}; they are in tests/sim/mutants.py\n")
        return _USAGE
    if options.json:
        sys.stdout.write(json.dumps({"guards": results, "not_noticed": missed}) + "\n")
    else:
        sys.stdout.write(f"{len(results)} guards removed in turn, {missed} of them not noticed\n")
    return _FELL if missed else _OK


def _many(options: argparse.Namespace) -> int:
    campaign = Campaign(
        Bounds(options.seconds, options.events, options.seeds),
        first=options.first,
        jobs=options.jobs,
        trouble_ms=options.trouble_ms,
        keep_going=options.keep_going,
    )
    sums = campaign.run()
    for what, seeds in () if options.json else sorted(sums.saw.items()):
        sys.stderr.write(f"{seeds:7d} seeds: {what}\n")
    sys.stdout.write(json.dumps(sums.as_object()) if options.json else str(sums))
    sys.stdout.write("\n")
    return _FELL if sums.violations else _OK


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if no invariant fell (or every removed guard was noticed), 1 if not."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.keep is not None and options.seed is None:
        parser.error("--keep needs --seed")
    if options.mutants:
        return _mutants(options)
    return _many(options) if options.seed is None else _one(options)


if __name__ == "__main__":
    sys.exit(main())
