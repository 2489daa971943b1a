"""Killed at any moment, a node remembers what callers have spent, and which approvals were used up."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sidecar.core.meters import Charge, Meters
from sidecar.edge.meter_file import MeterFile
from sidecar.edge.spent_file import SpentFile
from trust.policy.controls import BUDGET, DAY_MS, control_of

ROOT = Path(__file__).parents[3]
NOW_MS = 20_000 * DAY_MS
ROUNDS = 3


def test_killed_at_random_nothing_that_was_promised_is_forgotten(tmp_path: Path) -> None:
    """kill -9 again and again while it writes: more may be spent than was promised, never less."""
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed={seed}\n")
    dice = random.Random(seed)
    promised: Counter[str] = Counter()
    used: set[str] = set()
    for run in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.sidecar.spending_child", str(tmp_path), str(run)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(dice.randrange(1, 150))]
        child.kill()
        lines += child.stdout.readlines()
        child.stdout.close()
        child.wait()
        for line in lines:
            if line.endswith(b"\n"):
                caller, key = line.decode().split()
                promised[caller] += 1
                used.add(key)
    assert len(used) >= ROUNDS
    meters = Meters()
    budgets = MeterFile(tmp_path / "budgets", meters, lambda: NOW_MS)
    budgets.load()
    assert not budgets.problem
    for caller, count in promised.items():
        control = control_of(BUDGET, "1000000 per day", "p")
        assert control is not None
        fits = [Charge(control, 1_000_000 - count)]
        more = [Charge(control, 1_000_001 - count)]
        assert meters.short("inbound", caller, more, now_ms=NOW_MS, monotonic_ms=0) is not None
        unpromised = meters.short("inbound", caller, fits, now_ms=NOW_MS, monotonic_ms=0)
        assert unpromised is None or unpromised.left >= 1_000_000 - count - ROUNDS
    memory = SpentFile(tmp_path / "spent", NOW_MS).memory
    assert not memory.doubted_ms and used <= set(memory.held) and len(memory) <= len(used) + ROUNDS
