"""Closing the store after its tasks were cancelled in the middle of something."""

import asyncio
import random
import threading
from pathlib import Path

import sqlalchemy as sa

from control_plane.edge.store.database import Database

ROUNDS = 40


def test_cancelled_writers_leave_no_thread_that_outlives_the_loop(
    tmp_path: Path,
) -> None:
    """A control plane stops while it connects or writes; the driver's threads must have ended before the loop."""
    dice = random.Random(7)
    before = threading.active_count()

    async def write(store: Database) -> None:
        async with store.write() as connection:
            await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS t (a)"))
            await connection.execute(sa.text("INSERT INTO t VALUES (1)"))

    async def one(number: int) -> None:
        store = Database(f"sqlite+aiosqlite:///{tmp_path}/{number % 3}.db")
        tasks = [asyncio.create_task(write(store)) for _ in range(6)]
        await asyncio.sleep(dice.random() * 0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()
        drivers = [t for t in threading.enumerate() if "_connection_worker_thread" in t.name]
        assert not drivers

    for number in range(ROUNDS):
        asyncio.run(one(number))
    assert threading.active_count() <= before
