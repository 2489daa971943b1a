"""What the control plane's index costs: CPU per 1,000 execution records, by how many arrive in one message.

    python -m tests.benchmarks.index

What a control plane does with every record: check it, take it with its sums (one transaction per message, SQLite in a
file), and look for what is unusual.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from control_plane.core.detection import Detector
from control_plane.core.executions import check_batch
from control_plane.core.fresh import FreshEvents
from control_plane.edge.store import detection
from control_plane.edge.store.database import Database
from control_plane.edge.store.intake import Intake
from tests.support.records import START_MS, intent, outcome
from trust.detection import DetectionSettings
from trust.record import build_record
from trust.spiffe import SpiffeId

BATCHES = (1, 16, 128, 1_024)
RECORDS = 4_096
NODE = SpiffeId("mesh.test", "node/a")
NOW_MS = START_MS + 60_000


async def _take(database: Database, records: list[bytes], size: int) -> dict[str, Any]:
    ledger = f"by-{size}"
    fresh = FreshEvents()
    fresh.wanted = True
    intake = Intake("mesh.test", lambda: NOW_MS, fresh=fresh)
    async with database.read() as connection:
        waiting = (await connection.execute(detection.waiting_statement())).all()
    reached = {row.id: row.next_index for row in waiting}
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
        (answer,) = await intake.take(database, [batch])
        if answer != batch.end:
            raise AssertionError(f"not taken: {answer}")
    taken = time.process_time() - began
    detector, more = Detector(DetectionSettings()), True
    while more:
        async with database.read() as connection:
            found = await detection.fresh(connection, reached, here=fresh)
        reached |= found.positions
        more = found.more
        detector.see(found.events, now_ms=NOW_MS)
    whole = time.process_time() - began
    return {
        "records_in_a_message": size,
        "cpu_ms_per_1000_records": round(whole * 1e6 / len(records), 1),
        "of_it_checking_them": round(checked * 1e6 / len(records), 1),
        "of_it_detection": round((whole - taken) * 1e6 / len(records), 1),
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
