"""Sums of executions and alerts in the store: one suite for SQLite and a real PostgreSQL."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from control_plane.core.alerts import Alert, State
from control_plane.core.analytics import (
    HOUR_S,
    MINUTE_S,
    OTHER,
    RETENTION_S,
    Edge,
    Key,
    Measure,
    Totals,
    edges,
    windows,
)
from control_plane.core.executions import Batch
from control_plane.edge.analytics import to_wire
from control_plane.edge.store import alerts, analytics
from control_plane.edge.store.database import Database
from control_plane.edge.store.models import alert_deliveries
from tests.support.index import new_intake, taken
from tests.support.records import START_MS, callee_side, intent, outcome, refusal, workload
from trust import limits
from trust.alerting import Severity
from trust.record import Intent, Outcome, build_record

NOW_MS = START_MS + 120_000
EDGE = Edge(workload("alice"), "payments", "shop.Payments/Pay")


def batch(*records: Intent | Outcome, at: int = 0, node: str = "a", ledger: str = "l1") -> Batch:
    """Return a batch as the servicer makes one."""
    return Batch(node, ledger, at, tuple(map(build_record, records)), records, False)


async def take(database: Database, *batches: Batch, now_ms: int = NOW_MS) -> None:
    """Take batches, each in a transaction of its own, as the servicer does."""
    await taken(database, *batches, intake=new_intake(now_ms=now_ms))


async def summed(database: Database) -> dict[Key, Totals]:
    """Return the sums of the last hour."""
    _, parts = windows(START_MS // 1000 - 3600, NOW_MS // 1000 + 60, now_s=NOW_MS // 1000)
    async with database.read() as connection:
        return await analytics.totals(connection, parts)


async def test_records_add_up_and_the_same_again_changes_nothing(database: Database) -> None:
    """At least once on the wire is exactly once in the sums, however batches overlap."""
    first, second, third = intent(1), intent(2), refusal(3)
    whole: list[Intent | Outcome] = [
        first,
        second,
        outcome(first),
        third,
        outcome(second, status="INTERNAL", duration_us=40_000),
    ]
    await take(database, batch(*whole[:3]), batch(*whole[:3]), batch(*whole[1:], at=1), batch(*whole))
    total = edges(await summed(database))[EDGE]
    assert (total.calls, dict(total.refused), dict(total.ended)) == (
        3,
        {"POLICY_DENIED": 1},
        {"OK": 1, "INTERNAL": 1},
    )
    assert (total.request_bytes, total.response_bytes, total.duration_us) == (240, 160, 41_500)
    assert total.quantile_ms(1.0) == pytest.approx(40, rel=0.1)


async def test_numbers_that_a_lying_node_records_keep_nobody_from_shipping(database: Database) -> None:
    """Its batch is taken in one transaction with those of others: a sum beyond every column would refuse them all."""
    largest = {"duration_us": 2**63 - 1, "request_bytes": 2**63 - 1, "response_bytes": 2**63 - 1}
    liars, honest = [intent(number) for number in range(1, 5)], intent(9, node="b")
    endings = [outcome(one, **largest) for one in liars]
    together = [batch(*liars, *endings[:2]), batch(honest, outcome(honest), node="b", ledger="l2")]
    assert await new_intake(now_ms=NOW_MS).take(database, together) == [6, 2]
    await take(database, batch(endings[2], at=6), batch(endings[3], at=7))
    found = {key.node: sums for key, sums in (await summed(database)).items()}
    assert {node: (sums.calls, sums.ended.total()) for node, sums in found.items()} == {
        "a": (4, 4),
        "b": (1, 1),
    }
    assert found["a"].request_bytes == found["a"].duration_us == limits.MAX_ANALYTICS_COUNT
    assert found["b"].request_bytes == 120
    many = Totals()
    many.add(Measure.REQUEST_BYTES, "", 2**70)
    assert to_wire(many).request_bytes == 2**63 - 1


async def test_both_sides_of_a_call_are_one_call(database: Database) -> None:
    """Shipped by two nodes, in any order, through any control plane."""
    outbound = intent(1)
    inbound = callee_side(outbound, "b")
    await take(
        database,
        batch(inbound, outcome(inbound), node="b"),
        batch(outbound, outcome(outbound, duration_us=9_000)),
    )
    found = await summed(database)
    assert len(found) == 2
    total = edges(found)[EDGE]
    assert (total.calls, total.ended.total()) == (1, 1)
    assert total.quantile_ms(0.5) == pytest.approx(1.5, rel=0.1)


async def test_two_control_planes_that_take_records_at_once_lose_and_double_nothing(
    shared_store: str,
) -> None:
    """The same node ships two ledgers to two control planes: they add to the same rows."""
    stores = [Database(shared_store.replace("postgresql://", "postgresql+asyncpg://")) for _ in range(2)]
    await stores[0].migrate()

    def ledger(name: str, start: int) -> Sequence[Batch]:
        return [
            batch(*(intent(n) for n in range(first, first + 5)), at=first - start, ledger=name)
            for first in range(start, start + 50, 5)
        ]

    await asyncio.gather(
        take(stores[0], *ledger("l1", 100)),
        take(stores[1], *ledger("l2", 200)),
    )
    assert edges(await summed(stores[0]))[EDGE].calls == 100
    for store in stores:
        await store.close()


async def test_a_node_that_makes_up_names_uses_up_its_own_room_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers choose methods, nodes choose callers: the sums of others must not suffer."""
    monkeypatch.setattr(limits, "MAX_ANALYTICS_KEYS_PER_NODE", 3)
    flood = [intent(n, method=f"made.Up/M{n}") for n in range(1, 20)]
    honest = intent(99, node="b")
    await take(database, batch(*flood), batch(honest, node="b"))
    found = edges(await summed(database))
    assert found[EDGE].calls == 1
    assert sum(t.calls for t in found.values()) == 20
    assert found[Edge(OTHER, OTHER, OTHER)].calls == 16


async def test_an_outcome_in_a_later_batch_finds_its_intent(database: Database) -> None:
    """Calls may take long; their end is shipped when there is one."""
    opened = intent(1)
    await take(database, batch(opened))
    await take(database, batch(outcome(opened, wall_ms=START_MS + 65_000), at=1))
    assert edges(await summed(database))[EDGE].ended["OK"] == 1
    await take(database, batch(outcome(intent(7)), at=2))
    assert edges(await summed(database))[EDGE].ended["OK"] == 1


async def test_old_minutes_are_forgotten_and_days_stay(database: Database) -> None:
    """What is asked of a month ago is in hours and days."""
    await take(database, batch(intent(1)))
    later = START_MS + (RETENTION_S[MINUTE_S] + 3600) * 1000
    async with database.write() as connection:
        assert await analytics.prune(connection, now_ms=later) > 0
    assert await summed(database) == {}  # it was read from minutes
    hour = START_MS // 1000 // HOUR_S * HOUR_S
    async with database.read() as connection:
        assert edges(await analytics.totals(connection, [(HOUR_S, hour, hour + 1)]))[EDGE].calls == 1
    async with database.write() as connection:
        assert await analytics.prune(connection, now_ms=later) == 0
        await analytics.prune(connection, now_ms=START_MS + 10**12)
    async with database.read() as connection:
        assert await analytics.totals(connection, [(HOUR_S, hour, hour + 1)]) == {}


async def test_a_query_reads_an_index_and_never_the_executions(tmp_path: Path) -> None:
    """A week must not scan what was recorded in it. (What PostgreSQL plans depends on its statistics.)"""
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'plan.db'}")
    await database.migrate()
    statement = analytics.totals_statement((MINUTE_S, 0, 600))
    async with database.read() as connection:
        text = str(statement.compile(connection.engine.sync_engine, compile_kwargs={"literal_binds": True}))
        plan = " ".join(str(row) for row in await connection.execute(sa.text(f"EXPLAIN QUERY PLAN {text}")))
    await database.close()
    assert "SEARCH analytics_counts USING PRIMARY KEY (resolution_s=? AND bucket_s>? AND bucket_s<?)" in plan
    assert "executions" not in plan


def firing(rule: str = "x", **changes: object) -> Alert:
    """Return an alert that fires and of which its channels were told."""
    made = Alert(
        rule=rule,
        subject="",
        severity=Severity.WARNING,
        state=State.FIRING,
        value=1.0,
        detail="why",
        since_ms=1,
        fired_ms=1,
        seen_ms=1,
        notified_ms=1,
        told="firing",
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # callers name fields


async def save(database: Database, alert: Alert) -> bool:
    """Write one alert."""
    async with database.write() as connection:
        return await alerts.save(connection, alert)


async def test_of_two_that_change_an_alert_one_wins(database: Database) -> None:
    """Two control planes see the same condition: one of them tells."""
    assert await save(database, firing())
    assert not await save(database, firing())
    async with database.read() as connection:
        held = (await alerts.current(connection, now_ms=10))[firing().id]
    assert held == replace(firing(), revision=1)
    assert await save(database, replace(held, state=State.RESOLVED, ended_ms=5))
    assert not await save(database, replace(held, detail="later"))


async def test_an_alert_that_is_over_and_told_is_kept_for_a_while_and_begins_anew(database: Database) -> None:
    """Its id stays the same: it is the same rule about the same subject."""
    over = firing(state=State.RESOLVED, ended_ms=5, told="resolved")
    assert await save(database, over)
    async with database.read() as connection:
        assert await alerts.current(connection, now_ms=10**9) == {}
        assert [a.id for a in await alerts.listing(connection, everything=True, most=5)] == [over.id]
        assert await alerts.listing(connection, everything=False, most=5) == []
    assert await save(database, firing(since_ms=50))
    async with database.write() as connection:
        await alerts.prune(connection, before_ms=10**9)
        assert (await alerts.get(connection, over.id) or over).since_ms == 50
    pending = firing("p", state=State.PENDING, fired_ms=0, told="")
    assert await save(database, pending)
    assert await save(database, replace(pending, state=State.RESOLVED, revision=1))
    async with database.read() as connection:
        assert await alerts.get(connection, pending.id) is None  # it never fired


async def test_there_is_room_for_so_many_alerts_and_no_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of made-up subjects must not fill the store."""
    monkeypatch.setattr(limits, "MAX_ALERTS", 2)
    assert await save(database, firing("a"))
    assert await save(database, firing("b"))
    assert not await save(database, firing("c"))
    assert not await save(database, firing("a"))


async def test_each_delivery_is_claimed_once_and_again_when_nobody_settled_it(database: Database) -> None:
    """A control plane that dies while it sends must not keep the message from being sent."""
    async with database.write() as connection:
        await alerts.post(connection, "id", ["mqtt", "webhook:x"], b"{}", now_ms=100)
    async with database.write() as connection:
        assert await alerts.due_channels(connection, now_ms=99) == []
        channels = await alerts.due_channels(connection, now_ms=100)
        taken = [
            d for c in channels for d in await alerts.claim(connection, c, now_ms=100, lease_ms=60, most=9)
        ]
        assert await alerts.due_channels(connection, now_ms=159) == []
        assert await alerts.claim(connection, "mqtt", now_ms=159, lease_ms=60, most=9) == []
        again = [
            d for c in channels for d in await alerts.claim(connection, c, now_ms=160, lease_ms=60, most=9)
        ]
    assert [(d.channel, d.attempts) for d in taken] == [("mqtt", 1), ("webhook:x", 1)]
    assert [d.attempts for d in again] == [2, 2]
    async with database.write() as connection:
        await alerts.settle(connection, taken[0], error="", next_ms=None)  # too late: it was claimed again
        await alerts.settle(connection, again[0], error="", next_ms=None)
        await alerts.settle(connection, again[1], error="no", next_ms=None)
        shown = {d.channel: (d.state, d.error) for d in await alerts.deliveries_of(connection, "id")}
        left = (await connection.execute(sa.select(alert_deliveries.c.state))).scalars().all()
    assert shown == {"mqtt": (alerts.DONE, ""), "webhook:x": (alerts.FAILED, "no")}
    assert sorted(left) == ["done", "failed"]
