"""What the control plane's index costs: CPU per 1,000 execution records, by how many arrive in one message.

    python -m tests.benchmarks.index

What the servicer does with a batch (check every record, one transaction), on SQLite in a file.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from control_plane.core.executions import check_batch
from control_plane.edge.store import executions
from control_plane.edge.store.database import Database
from tests.support.records import intent, outcome
from trust.record import build_record
from trust.spiffe import SpiffeId

BATCHES = (1, 16, 128, 1_024)
RECORDS = 4_096
NODE = SpiffeId("mesh.local", "node/a")


async def _take(database: Database, records: list[bytes], size: int) -> dict[str, Any]:
    ledger = f"by-{size}"
    checked, began = 0.0, time.process_time()
    for first in range(0, len(records), size):
        start = time.process_time()
        batch = check_batch(
            NODE,
            node="a",
            ledger=ledger,
            first_index=first,
            records=records[first : first + size],
            after_gap=False,
        )
        checked += time.process_time() - start
        async with database.write() as connection:
            await executions.add(connection, batch)
    whole = time.process_time() - began
    return {
        "records_in_a_message": size,
        "cpu_ms_per_1000_records": round(whole * 1e6 / len(records), 1),
        "of_it_checking_them": round(checked * 1e6 / len(records), 1),
    }


async def _measure(directory: Path) -> list[dict[str, Any]]:
    database = Database(f"sqlite+aiosqlite:///{directory / 'index.db'}")
    await database.migrate()
    try:
        rows, number = [], 0
        for size in BATCHES:
            records = []
            for _ in range(RECORDS // 2 if size > 1 else 256):
                number += 1
                opened = intent(number)
                records += [build_record(opened), build_record(outcome(opened))]
            rows.append(await _take(database, records, size))
        return rows
    finally:
        await database.close()


def run() -> list[dict[str, Any]]:
    """Return one row per size of message."""
    with tempfile.TemporaryDirectory(prefix="egm-bench-") as scratch:
        return asyncio.run(_measure(Path(scratch)))


if __name__ == "__main__":
    for row in run():
        sys.stdout.write(json.dumps(row) + "\n")
