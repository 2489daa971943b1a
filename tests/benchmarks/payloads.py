"""What keeping a payload for auditors costs a sidecar, and an auditor who reads it.

    python -m tests.benchmarks.payloads

CPU of the process, since large payloads are sealed in a thread. "bytes": of the sealed payload in the record.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from sidecar.edge.payload_sealer import auditor_recipients, seal
from tests.support.auditing import BINDING, Auditor
from trust import limits
from trust.payload import open_sealed

ROUNDS = 200
SIZES = (200, 4096, limits.MAX_AUDITED_PAYLOAD_BYTES)
AUDITORS = (1, 2, limits.MAX_AUDITORS)


def _median_us(step: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        started = time.process_time_ns()
        step()
        taken.append((time.process_time_ns() - started) / 1000)
    return round(statistics.median(taken))


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure and return one row per size and number of auditors."""
    auditors = [Auditor(f"a{number}") for number in range(max(AUDITORS))]
    rows = []
    for size in SIZES:
        payload = os.urandom(size)
        for count in AUDITORS:
            keys = auditor_recipients(tuple(auditor.key for auditor in auditors[:count]))
            sealed = seal(payload, BINDING, keys)
            rows.append(
                {
                    "payload_bytes": size,
                    "auditors": count,
                    "seal_us": _median_us(lambda: seal(payload, BINDING, keys), rounds),  # noqa: B023  # called at once
                    "open_us": _median_us(
                        lambda: open_sealed(sealed, BINDING, auditors[0].private),  # noqa: B023
                        rounds,
                    ),
                    "sealed_bytes": len(sealed),
                }
            )
    return rows


def main() -> int:
    """Print the table."""
    rows = run()
    names = list(rows[0])
    lines = ["  ".join(name.rjust(13) for name in names)]
    lines += ["  ".join(str(row[name]).rjust(13) for name in names) for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
