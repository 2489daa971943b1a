"""Recall, precision and false alarms of detection on generated traffic with labelled attacks.

    python -m tests.benchmarks.detection --seed 1 --strength 1.0

`--strength` scales the attacks that are a matter of degree (bursts, latency, sizes, probes, fan-out, depth).
"""

import argparse
import json
import sys
import time
from collections import Counter

from tests.support.detection_score import Score, score
from tests.support.traffic import Traffic
from trust.detection import RULES, DetectionSettings


def shown(result: Score, seconds: float, what: Traffic) -> dict[str, object]:
    """Return the figures of docs/detection.md."""
    false = Counter(finding.rule for finding in result.false)
    return {
        "seed": what.seed,
        "strength": what.strength,
        "days": what.days,
        "ordinary_calls": result.calls,
        "attacks": result.attacks.total(),
        "recall": round(result.recall, 3),
        "recall_by_kind": {
            kind: f"{result.caught[kind]} of {count}" for kind, count in sorted(result.attacks.items())
        },
        "precision": round(result.precision, 3),
        "false_alarms": len(result.false),
        "false_alarms_per_million_calls": round(result.false_per_million, 2),
        "false_alarms_by_rule": {rule: false[rule] for rule in RULES if false[rule]},
        "incidents": result.incidents,
        "false_incidents": result.false_incidents,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Generate, detect, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--quiet-days", type=int, default=8)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--attacks", type=int, default=76)
    parser.add_argument("--rate", type=float, default=6.0)
    parser.add_argument("--strength", type=float, default=1.0)
    given = parser.parse_args()
    what = Traffic(
        seed=given.seed,
        days=given.days,
        callers=given.callers,
        quiet_days=given.quiet_days,
        attacks=given.attacks,
        rate=given.rate,
        strength=given.strength,
    )
    began = time.perf_counter()
    result = score(what, DetectionSettings())
    report = shown(result, time.perf_counter() - began, what)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
