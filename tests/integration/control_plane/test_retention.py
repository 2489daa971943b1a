"""The index forgets old records: completely, in small steps, and without reading what it keeps."""

import json
from typing import Any

import pytest
import sqlalchemy as sa

from control_plane.core.executions import Batch, Query
from control_plane.edge.retention import Retention
from control_plane.edge.store import executions, retention
from control_plane.edge.store.database import Database
from tests.support.index import taken
from tests.support.records import START_MS, intent, outcome, refusal
from trust import limits
from trust.record import Intent, Outcome, build_record

DAY_MS = 24 * 3600 * 1000


class At:
    """A clock that stands still."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Unix time."""
        return self._now_ms

    def monotonic_ms(self) -> int:
        """Monotonic time."""
        return self._now_ms


async def take(database: Database, *records: Intent | Outcome, at: int = 0, node: str = "a") -> None:
    """Ship records, as a node does."""
    for start in range(0, len(records), 500):
        some = records[start : start + 500]
        await taken(
            database, Batch(node, "l1", at + start, tuple(map(build_record, some)), tuple(some), False)
        )


async def left(database: Database) -> tuple[int, int]:
    """How many executions and records there are."""
    async with database.read() as connection:
        counts = [
            (await connection.execute(sa.text(f"SELECT count(*) FROM {name}"))).scalar_one()
            for name in ("executions", "records")
        ]
    return counts[0], counts[1]


async def test_old_records_leave_with_their_executions_and_new_ones_stay_whole(database: Database) -> None:
    """What is listed afterwards can still be shown, and what was taken is not taken again."""
    old, kept = [intent(n) for n in range(1, 4)], intent(5000)
    await take(database, *old, outcome(old[0]), refusal(4), kept, outcome(kept), outcome(old[1]))
    keeper = Retention(database, At(kept.wall_ms + DAY_MS), days=1)
    assert await keeper.once() == 5
    assert await left(database) == (1, 3)  # the outcome of a forgotten one came after what is kept
    async with database.read() as connection:
        (entry,) = (await executions.page(connection, Query()))[0]
        assert (entry.intent, entry.outcome) == (build_record(kept), build_record(outcome(kept)))
        assert await executions.position(connection, "a", "l1") == 8
    await take(database, *old, outcome(old[0]))  # a node that repeats itself
    assert await left(database) == (1, 3)
    assert await keeper.once() == 0
    assert await Retention(database, At(kept.wall_ms + 900 * DAY_MS), days=1).once() == 3
    assert await left(database) == (0, 0)


async def test_nothing_is_forgotten_unless_configured(database: Database) -> None:
    """The default keeps everything."""
    await take(database, intent(1))
    assert await Retention(database, At(START_MS + 10_000 * DAY_MS), days=None).once() == 0
    assert await left(database) == (1, 1)


async def test_one_transaction_forgets_no_more_than_its_batch(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ledger comes to its end, in steps between which others may write."""
    monkeypatch.setattr(limits, "PRUNE_BATCH_RECORDS", 7)
    await take(database, *(intent(n) for n in range(1, 31)))
    await take(database, *(intent(n, node="b") for n in range(1, 15)), node="b")
    steps: list[int] = []
    real = retention.prune

    async def counted(*arguments: Any, **options: Any) -> int:
        steps.append(await real(*arguments, most=7, **options))
        return steps[-1]

    monkeypatch.setattr(retention, "prune", counted)
    assert await Retention(database, At(START_MS + 900 * DAY_MS), days=1).once() == 44
    assert steps == [7, 7, 7, 7, 2, 7, 7, 0]
    assert await left(database) == (0, 0)


async def test_a_record_of_a_later_time_ends_the_step(database: Database) -> None:
    """A clock that was set back must not make a hole: what is left is always the end of a ledger."""
    await take(database, intent(1), intent(9000), intent(2))
    assert await Retention(database, At(START_MS + 5000 + DAY_MS), days=1).once() == 1
    assert await left(database) == (2, 2)


async def test_every_statement_finds_its_rows_by_a_key(database: Database) -> None:
    """Shortening a large index must not read it."""
    await take(database, *(intent(n) for n in range(1, 2001)))
    statements: list[Any] = [
        retention.oldest_statement(1, 256),
        retention.forget_records_statement(1, 255),
        retention.forget_executions_statement(),
    ]
    given = {"n": "a", "e": b"x" * 16, "s": 1, "l": 1, "i": 3}
    async with database.write() as connection:
        await connection.execute(sa.text("ANALYZE records"))
        await connection.execute(sa.text("ANALYZE executions"))
        for statement in statements:
            compiled = statement.compile(
                dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
            )
            text, values = str(compiled), compiled.params | given
            ordered = tuple(values[name] for name in compiled.positiontup or ())
            if database.kind == "sqlite":
                rows = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", ordered)).all()
                assert all(row.detail.startswith("SEARCH") for row in rows), (text, rows)
            else:
                found = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {text}", ordered)
                shown = json.dumps(found.scalar_one())
                assert "Seq Scan" not in shown, (text, shown)
