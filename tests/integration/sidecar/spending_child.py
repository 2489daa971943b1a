"""A process that spends of budgets and uses approvals up until it is killed; it prints what it was promised."""

import asyncio
import itertools
import sys
from pathlib import Path

from sidecar.core.meters import Charge, Meters
from sidecar.edge.meter_file import MeterFile
from sidecar.edge.spent_file import SpentFile
from trust import limits
from trust.policy.controls import BUDGET, DAY_MS, control_of

NOW_MS = 20_000 * DAY_MS
CALLERS = 5


async def main(directory: Path, run: int) -> None:
    """Spend for ever."""
    meters = Meters()
    budgets = MeterFile(directory / "budgets", meters, lambda: NOW_MS, timeout_s=60)
    budgets.load()
    spent = SpentFile(directory / "spent", NOW_MS)
    control = control_of(BUDGET, "1000000 per day", "p")
    assert control is not None and not budgets.problem and not spent.memory.doubted_ms
    limits.METER_FILE_GROWTH_BYTES = 4_000  # type: ignore[misc]  # written anew often
    for number in itertools.count():
        caller = f"w{number % CALLERS}"
        meters.take("inbound", caller, [Charge(control, 1)], now_ms=NOW_MS, monotonic_ms=0)
        key = f"inbound:{run * 10**6 + number:064x}"
        await asyncio.gather(budgets.durable(), spent.spend(key, signed_ms=NOW_MS, now_ms=NOW_MS))
        sys.stdout.write(f"{caller} {key}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
