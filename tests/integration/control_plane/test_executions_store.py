"""The index of executions: one suite for SQLite and a real PostgreSQL, and the plans of its queries."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from control_plane.core.executions import Batch, Cursor, Decided, Query
from control_plane.edge.store import executions, retention
from control_plane.edge.store.database import Database
from control_plane.edge.store.models import executions as table
from tests.support.index import taken
from tests.support.records import (
    START_MS,
    callee_side,
    child,
    digest,
    execution_id,
    intent,
    outcome,
    refusal,
    workload,
)
from trust import limits
from trust.errors import CapacityError, EvidenceError, MeshError, Reason, StateError
from trust.lineage import Seen, build_tree
from trust.record import Ending, Intent, Link, Outcome, Side, build_record, parse_record

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MANY = 120_000


def batch(
    *records: Intent | Outcome, at: int = 0, node: str = "a", ledger: str = "l1", after_gap: bool = False
) -> Batch:
    """Return a batch as the servicer makes one."""
    return Batch(node, ledger, at, tuple(map(build_record, records)), records, after_gap)


async def add(database: Database, *batches: Batch) -> int:
    """Take batches, each in a transaction of its own; return the last position."""
    return await taken(database, *batches)


async def found(database: Database, query: Query) -> list[executions.Entry]:
    """Return one page."""
    async with database.read() as connection:
        return (await executions.page(connection, query))[0]


async def test_records_come_back_verbatim_with_their_outcome(database: Database) -> None:
    """What a node wrote is what an operator gets: the bytes, not a copy made of columns."""
    first, second = intent(1), refusal(2)
    assert await add(database, batch(first, second), batch(outcome(first), at=2)) == 3
    async with database.read() as connection:
        (entry,) = await executions.get(connection, first.execution_id)
        assert (entry.node, entry.ledger, entry.intent_index, entry.outcome_index) == ("a", "l1", 0, 2)
        assert (entry.intent, entry.outcome) == (build_record(first), build_record(outcome(first)))
        (refused,) = await executions.get(connection, second.execution_id)
        assert (refused.outcome_index, refused.outcome) == (None, b"")
        assert await executions.get(connection, execution_id(99)) == []
        assert await executions.position(connection, "a", "l1") == 3
        assert await executions.position(connection, "a", "l2") == 0
        assert await executions.position(connection, "b", "l1") == 0


async def test_the_same_records_again_change_nothing(database: Database) -> None:
    """At least once on the wire is exactly once in the index, however batches overlap."""
    records = [intent(n) for n in range(1, 7)]
    assert await add(database, batch(*records[:4])) == 4
    assert await add(database, batch(*records[:4])) == 4
    assert await add(database, batch(*records[1:3], at=1)) == 4
    assert await add(database, batch(*records[2:], at=2)) == 6
    assert len(await found(database, Query())) == 6


async def test_other_bytes_for_an_index_that_is_taken_are_refused(database: Database) -> None:
    """A node whose ledger says something else than before is caught, and nothing of it is taken."""
    await add(database, batch(intent(1), intent(2)))
    with pytest.raises(EvidenceError) as caught:
        await add(database, batch(intent(1), intent(3), intent(4)))
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert "record 1 of l1" in caught.value.detail
    assert len(await found(database, Query())) == 2


async def test_records_out_of_order_are_refused_and_a_declared_gap_is_counted(database: Database) -> None:
    """Nothing can be left out by accident; what is archived is known to be missing."""
    await add(database, batch(intent(1)))
    with pytest.raises(StateError) as caught:
        await add(database, batch(intent(3), at=2))
    assert caught.value.reason is Reason.CONFLICT
    assert "1 to 1" in caught.value.detail
    assert await add(database, batch(intent(3), at=5, after_gap=True)) == 6
    async with database.read() as connection:
        missing = await connection.execute(sa.text("SELECT missing, next_index FROM record_ledgers"))
        assert tuple(missing.one()) == (4, 6)


async def test_one_node_on_both_sides_keeps_both(database: Database) -> None:
    """A node may be the caller's and the callee's sidecar of one execution."""
    out = intent(1)
    into = callee_side(out, "a")
    await add(database, batch(out, into, outcome(into), outcome(out)))
    async with database.read() as connection:
        entries = await executions.get(connection, out.execution_id)
    assert [(e.intent_index, e.outcome_index) for e in entries] == [(0, 3), (1, 2)]


async def test_an_id_used_twice_keeps_the_first_in_the_index_and_both_records(database: Database) -> None:
    """A node cannot rewrite what it said by saying something else under the same id."""
    first = intent(1)
    await add(database, batch(first, intent(1, method="other.Service/Method"), outcome(first)))
    (entry,) = await found(database, Query())
    assert entry.intent == build_record(first)
    async with database.read() as connection:
        assert (await connection.execute(sa.text("SELECT count(*) FROM records"))).scalar_one() == 3


async def test_an_outcome_without_its_intent_is_kept_and_disturbs_nothing(database: Database) -> None:
    """After a gap the intent may be archived."""
    assert await add(database, batch(outcome(intent(1)), intent(2), at=7, after_gap=True)) == 9
    assert len(await found(database, Query())) == 1


async def test_an_outcome_before_its_intent_is_not_its_outcome(database: Database) -> None:
    """A node that lies about the order would leave an entry whose outcome is forgotten first: no page could be read."""
    lie = intent(1)
    await add(database, batch(outcome(lie, wall_ms=1), lie))
    async with database.write() as connection:
        (ledger,) = await retention.ledgers(connection)
        assert await retention.prune(connection, ledger, before_ms=2) == 1
    (entry,) = await found(database, Query())
    assert (entry.intent, entry.outcome_index) == (build_record(lie), None)


async def test_a_node_cannot_start_ledgers_without_end(database: Database) -> None:
    """Each ledger costs a row that is never removed."""
    for number in range(limits.MAX_LEDGERS_PER_NODE):
        await add(database, batch(intent(number), ledger=f"l{number}"))
    with pytest.raises(CapacityError):
        await add(database, batch(intent(9_999), ledger="one-more"))
    await add(database, batch(intent(1, node="b"), node="b"))


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [6, 5, 4, 3, 2, 1]),
    ({"caller": workload("bob")}, [6, 2]),
    ({"service": "ledger"}, [3]),
    ({"method": "shop.Ledger/Book"}, [3]),
    ({"decision": Decided.ALLOWED}, [6, 4, 3, 2, 1]),
    ({"decision": Decided.DENIED}, [5]),
    ({"decision": Decided.WOULD_DENY}, [4]),
    ({"reason": "POLICY_DENIED"}, [5]),
    ({"node": "b"}, []),
    ({"since_ms": START_MS + 3, "until_ms": START_MS + 5}, [4, 3]),
    ({"caller": workload("bob"), "since_ms": START_MS + 3}, [6]),
    ({"caller": workload("bob"), "decision": Decided.DENIED}, []),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS, ids=lambda value: str(value)[:40])
async def test_filters_and_pages_find_each_execution_once_newest_first(
    database: Database, filters: dict[str, Any], expected: list[int]
) -> None:
    """Whatever the filter and the page size."""
    records = [
        intent(1),
        intent(2, caller=workload("bob")),
        intent(3, service="ledger", method="shop.Ledger/Book"),
        intent(4, would_deny="POLICY_STALE"),
        refusal(5),
        intent(6, caller=workload("bob")),
    ]
    ids = {execution_id(n): n for n in range(1, 7)}
    await add(database, batch(*records))
    for limit in (1, 2, 100):
        seen: list[int] = []
        cursor: Cursor | None = None
        while True:
            async with database.read() as connection:
                entries, cursor = await executions.page(
                    connection, Query(limit=limit, cursor=cursor, **filters)
                )
            assert len(entries) <= limit
            for entry in entries:
                seen += [n for i, n in ids.items() if build_record(records[n - 1]) == entry.intent]
            if cursor is None:
                break
            cursor = Cursor.parse(str(cursor))
        assert seen == expected


async def test_a_tree_joins_nodes_by_root_and_by_trace(database: Database) -> None:
    """Verified children come with their root; what only a traceparent connects comes after them."""
    root = intent(1, traceparent=TRACE)
    into = callee_side(root, "b")
    below = child(2, root, node="b")
    traced = intent(3, node="c", traceparent=TRACE, link=Link.UNVERIFIED)
    below_traced = child(4, traced, node="c")
    await add(
        database,
        batch(root, intent(50)),
        batch(into, below, node="b"),
        batch(traced, below_traced, node="c"),
    )
    async with database.read() as connection:
        entries, truncated = await executions.tree(connection, root.execution_id)
        assert not truncated
        assert [e.intent for e in entries] == list(
            map(build_record, (root, into, below, traced, below_traced))
        )
        some, truncated = await executions.tree(connection, root.execution_id, most=3)
        assert (len(some), truncated) == (3, True)
        assert await executions.tree(connection, execution_id(77)) == ([], False)


@pytest.mark.parametrize("lies", [1, 2])
async def test_a_node_that_places_an_execution_in_another_chain_hides_nothing(
    database: Database, lies: int
) -> None:
    """What the others recorded is still found by that id, beside the lie, whose contradiction is then shown."""
    root = intent(1)
    into, below = callee_side(root, "b"), child(2, root, node="b")
    elsewhere = intent(3, node="liar")
    false = [
        replace(child(3 + n, elsewhere, node="liar"), execution_id=root.execution_id, side=side)
        for n, side in enumerate((Side.INBOUND, Side.OUTBOUND)[:lies], 1)
    ]
    await add(database, batch(elsewhere, *false, node="liar"), batch(root), batch(into, below, node="b"))
    async with database.read() as connection:
        for wanted in (root.execution_id, below.execution_id):
            named, entries, truncated = await executions.trees(connection, wanted)
            assert {build_record(root), build_record(into), build_record(below)} <= {
                e.intent for e in entries
            }
            assert not truncated
    told = [Seen(parsed) for e in entries if isinstance(parsed := parse_record(e.intent), Intent)]
    assert build_tree(told, named).hops[0].execution_id == root.execution_id
    async with database.read() as connection:
        _, entries, _ = await executions.trees(connection, root.execution_id)
    told = [Seen(parsed) for e in entries if isinstance(parsed := parse_record(e.intent), Intent)]
    (hop,) = [hop for hop in build_tree(told, named).hops if hop.execution_id == root.execution_id]
    assert hop.witnesses == "CONTRADICTED"


async def test_answers_are_bounded_in_bytes_and_pages_go_on_where_they_were_cut(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records with encrypted payloads are large; a page of them must not be."""
    records = [intent(n, sealed_request=b"x" * 50_000) for n in range(1, 6)]
    await add(database, batch(*records))
    monkeypatch.setattr(limits, "MAX_TREE_BYTES", 120_000)
    async with database.read() as connection:
        first, cursor = await executions.page(connection, Query())
        assert [e.intent_index for e in first] == [4, 3]
        second, _ = await executions.page(connection, Query(cursor=cursor))
        assert [e.intent_index for e in second] == [2, 1]


async def test_interrupted_executions_close_like_others(database: Database) -> None:
    """After a crash the index says so."""
    first = intent(1)
    closed = outcome(first, ending=Ending.INTERRUPTED, status="", response_sha256=b"", boot_id="boot-2")
    await add(database, batch(first, closed))
    (entry,) = await found(database, Query())
    assert entry.outcome == build_record(closed)


# Query plans


async def fill(database: Database) -> None:
    """Generate many executions inside the database: 8 callers, 20 methods, 1 in 100 refused, 1 in 500 would be."""
    sqlite = database.kind == "sqlite"
    blob = "randomblob(16)" if sqlite else "decode(md5('{}' || i), 'hex')"
    number = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many) "
        "INSERT INTO executions (node, execution_id, side, ledger_id, root_id, trace_id, at_ms, caller, service, "
        "method, allowed, would_deny, reason, intent_index, intent_bytes, outcome_index, outcome_bytes) "
        f"SELECT 'node-' || (i % 10), {blob.format('e')}, 1, 1, {blob.format('r')}, {blob.format('t')}, "
        "CAST(:start AS BIGINT) + i * 3, "
        "'spiffe://mesh.test/workload/w' || (i % 8), 'service-' || (i % 5), 'shop.S/M' || (i % 20), "
        "CASE WHEN i % 100 = 0 THEN 0 ELSE 1 END, CASE WHEN i % 500 = 1 THEN 1 ELSE 0 END, "
        "CASE WHEN i % 100 = 0 THEN 'POLICY_DENIED' ELSE 'ALLOWED' END, i, 300, NULL, 0 FROM n"
    )
    async with database.write() as connection:
        await connection.execute(
            sa.text("INSERT INTO record_ledgers (node, ledger, next_index, missing) VALUES ('x', 'x', 0, 0)")
        )
        await connection.execute(sa.text(number), {"many": MANY, "start": START_MS})
        await connection.execute(sa.text("ANALYZE executions"))


PLANNED: list[dict[str, Any]] = [
    {},
    {"caller": "spiffe://mesh.test/workload/w3"},
    {"caller": "spiffe://mesh.test/workload/unknown"},
    {"service": "service-2"},
    {"method": "shop.S/M7"},
    {"decision": Decided.ALLOWED},
    {"decision": Decided.DENIED},
    {"decision": Decided.WOULD_DENY},
    {"reason": "POLICY_DENIED"},
    {"reason": "POLICY_STALE"},
    {"node": "node-4"},
    {"since_ms": START_MS + 1_000, "until_ms": START_MS + 2_000},
    {"caller": "spiffe://mesh.test/workload/w3", "until_ms": START_MS + 90_000},
]


async def test_no_page_and_no_tree_scans_or_sorts_the_table(database: Database) -> None:
    """Each filter, the first page and one from the middle, has an index that already has the order of pages."""
    await fill(database)
    middle = Cursor(START_MS + MANY * 3 // 2, MANY // 2)
    statements: list[tuple[str, sa.Select[Any]]] = [
        (f"{filters} {cursor}", executions.page_statement(Query(limit=50, cursor=cursor, **filters)))
        for filters in PLANNED
        for cursor in (None, middle)
    ]
    for name in ("root_id", "trace_id", "execution_id"):
        value = digest(1)[:16].hex()
        literal = f"x'{value}'" if database.kind == "sqlite" else f"decode('{value}', 'hex')"
        query = sa.select(table.c.id).where(table.c[name] == sa.literal_column(literal)).limit(50)
        order = (table.c.id,) if name == "execution_id" else (table.c.at_ms, table.c.id)
        statements.append((name, query.order_by(*order)))
    async with database.read() as connection:
        for what, statement in statements:
            text = str(statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
            if database.kind == "sqlite":
                rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")
                check_sqlite([row.detail for row in rows], what)
            else:
                rows = await connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, FORMAT JSON) {text}".replace("%", "%%")
                )
                plan = rows.scalar_one()
                check_postgresql((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"], what)


def check_sqlite(steps: Sequence[str], what: str) -> None:
    """One step: a search in an index; the page without any filter may walk the index of times."""
    (step,) = steps
    walk = "SCAN executions USING INDEX executions_time"
    assert step.startswith(
        ("SEARCH executions USING INDEX", "SEARCH executions USING COVERING INDEX", walk)
    ), (
        what,
        steps,
    )


def check_postgresql(plan: dict[str, Any], what: str) -> None:
    """A limit over one index scan that reads little more than it returns."""
    assert plan["Node Type"] == "Limit", (what, plan)
    (scan,) = plan["Plans"]
    assert scan["Node Type"] in {"Index Scan", "Index Only Scan"}, (what, scan)
    assert scan["Actual Rows"] <= 51, (what, scan)
    # With a filter that many rows pass, walking the index of times is as good; that reads some rows in vain.
    assert scan.get("Rows Removed by Filter", 0) <= 51 * 60, (what, scan)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", Reason.INPUT_INVALID), ("MS0y!", Reason.INPUT_INVALID), ("é", Reason.INPUT_INVALID)],
)
def test_cursors_of_others_are_refused(text: str, reason: Reason) -> None:
    """A cursor is ours or nothing."""
    with pytest.raises(MeshError) as caught:
        Cursor.parse(text)
    assert caught.value.reason is reason
    assert Cursor.parse(str(Cursor(5, 7))) == Cursor(5, 7)
