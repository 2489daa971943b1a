"""Execution records in the database, found by page, by id and by tree; `intake` takes them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.executions import Cursor, Decided, Query
from control_plane.edge.store.models import executions as table
from control_plane.edge.store.models import record_ledgers, records
from trust import limits

_TRACE_ROUNDS: Final = 4  # root -> traces -> roots …: chains that only a traceparent connects
_MAX_CLAIMED_ROOTS: Final = 8  # of one execution, when nodes contradict each other
_MAX_JOINED: Final = 64  # chains and traces that one tree is joined from, per round
_FIND_CHUNK: Final = 400  # keys in one statement


@dataclass(frozen=True, slots=True)
class Entry:
    """One side of one execution as a node recorded it; the records are the node's bytes."""

    row: int
    node: str
    ledger: str
    at_ms: int
    root_id: bytes
    intent_index: int
    intent: bytes
    outcome_index: int | None
    outcome: bytes  # empty while none arrived


async def position(connection: AsyncConnection, node: str, ledger: str) -> int:
    """Return the index below which every record of that ledger is here."""
    query = sa.select(record_ledgers.c.next_index).where(
        record_ledgers.c.node == node, record_ledgers.c.ledger == ledger
    )
    return (await connection.execute(query)).scalar_one_or_none() or 0


async def get(connection: AsyncConnection, execution_id: bytes) -> list[Entry]:
    """Return every side of one execution that was recorded, oldest first."""
    query = _entries().where(table.c.execution_id == execution_id).order_by(table.c.id)
    rows = (await connection.execute(query.limit(limits.MAX_EXECUTIONS_PAGE))).all()
    return await _with_records(connection, _within(rows, limits.MAX_TREE_BYTES))


async def page(connection: AsyncConnection, query: Query) -> tuple[list[Entry], Cursor | None]:
    """Return one page, newest first, and where the next starts; None after the last."""
    rows = (await connection.execute(page_statement(query))).all()
    shown = _within(rows[: query.limit], limits.MAX_TREE_BYTES)
    more = len(shown) < len(rows)
    cursor = Cursor(shown[-1].at_ms, shown[-1].id) if more else None
    return await _with_records(connection, shown), cursor


def page_statement(query: Query) -> sa.Select[Any]:
    """Return the statement of one page; tests look at its plan."""
    statement = _entries()
    for column, value in (
        (table.c.caller, query.caller),
        (table.c.service, query.service),
        (table.c.method, query.method),
        (table.c.reason, query.reason),
        (table.c.node, query.node),
    ):
        if value:
            statement = statement.where(column == value)
    if query.decision is Decided.WOULD_DENY:
        statement = statement.where(table.c.would_deny == 1)
    elif query.decision is not None:
        statement = statement.where(table.c.allowed == int(query.decision is Decided.ALLOWED))
    if query.since_ms:
        statement = statement.where(table.c.at_ms >= query.since_ms)
    if query.until_ms:
        statement = statement.where(table.c.at_ms < query.until_ms)
    if query.cursor is not None:
        before = sa.tuple_(sa.literal(query.cursor.at_ms), sa.literal(query.cursor.row))
        statement = statement.where(sa.tuple_(table.c.at_ms, table.c.id) < before)
    # one more than asked for: whether there is a next page
    return statement.order_by(table.c.at_ms.desc(), table.c.id.desc()).limit(query.limit + 1)


async def trees(connection: AsyncConnection, execution_id: bytes) -> tuple[bytes, list[Entry], bool]:
    """Return the root of an execution's chain, the entries of its tree, and whether there are more.

    Nodes say which chain an execution belongs to. Where they contradict each other, one of them lies: then every chain
    that is named is there, each with its share, so that none is hidden. The root is that which most of them name.
    """
    sides = await get(connection, execution_id)
    named = Counter(side.root_id for side in sides) or Counter([execution_id])
    roots = [root for root, _ in named.most_common(_MAX_CLAIMED_ROOTS)]
    found: dict[int, Entry] = {}
    truncated = len(roots) < len(named)
    for root in roots:
        entries, more = await tree(connection, root, share=len(roots))
        found |= {entry.row: entry for entry in entries}
        truncated = truncated or more
    return roots[0], list(found.values()), truncated


async def tree(
    connection: AsyncConnection, root_id: bytes, *, most: int = limits.MAX_TREE_ENTRIES, share: int = 1
) -> tuple[list[Entry], bool]:
    """Return every entry of one chain, then those that share a trace with it; and whether there are more.

    What verified permits link comes first, so that unverified claims cannot crowd it out.

    Args:
        connection: to read with.
        root_id: of the chain.
        most: entries of one answer at most.
        share: how many trees are in the answer.
    """
    most //= share
    found: dict[int, Any] = {}
    roots, traces = {root_id}, set[bytes]()
    new_roots, new_traces = {root_id}, set[bytes]()
    truncated = False
    for _ in range(_TRACE_ROUNDS):
        rows = await _matching(connection, table.c.root_id, new_roots, most + 1)
        rows += await _matching(connection, table.c.trace_id, new_traces, most + 1)
        for row in rows:
            found.setdefault(row.id, row)
        if len(found) > most:
            truncated = True
            break
        new_roots = {row.root_id for row in rows} - roots
        new_traces = {bytes(row.trace_id) for row in rows if row.trace_id is not None} - traces
        roots |= new_roots
        traces |= new_traces
        if not new_roots and not new_traces:
            break
        if max(len(new_roots), len(new_traces)) > _MAX_JOINED:
            truncated = True
            new_roots = set(sorted(new_roots)[:_MAX_JOINED])
            new_traces = set(sorted(new_traces)[:_MAX_JOINED])
    rows = list(found.values())[:most]
    shown = _within(rows, limits.MAX_TREE_BYTES // share)
    return await _with_records(connection, shown), truncated or len(shown) < len(rows)


async def _matching(
    connection: AsyncConnection, column: sa.Column[Any], values: Iterable[bytes], most: int
) -> list[Any]:
    rows: list[Any] = []
    for value in sorted(values):
        query = _entries().where(column == value).order_by(table.c.at_ms, table.c.id)
        rows += (await connection.execute(query.limit(most - len(rows)))).all()
        if len(rows) >= most:
            break
    return rows


def _entries() -> sa.Select[Any]:
    return sa.select(
        table.c.id,
        table.c.node,
        table.c.ledger_id,
        table.c.at_ms,
        table.c.root_id,
        table.c.trace_id,
        table.c.intent_index,
        table.c.intent_bytes,
        table.c.outcome_index,
        table.c.outcome_bytes,
    )


def _within(rows: Sequence[Any], most_bytes: int) -> list[Any]:
    """Return the rows whose records fit into one answer; always at least one."""
    shown: list[Any] = []
    size = 0
    for row in rows:
        size += row.intent_bytes + row.outcome_bytes
        if shown and size > most_bytes:
            break
        shown.append(row)
    return shown


async def _with_records(connection: AsyncConnection, rows: Sequence[Any]) -> list[Entry]:
    """Add the bytes of the records, and the names of the ledgers."""
    wanted: dict[int, list[int]] = {}
    for row in rows:
        wanted.setdefault(row.ledger_id, []).append(row.intent_index)
        if row.outcome_index is not None:
            wanted[row.ledger_id].append(row.outcome_index)
    names: dict[int, str] = {}
    raw: dict[tuple[int, int], bytes] = {}
    for ledger_id, indexes in wanted.items():
        name = sa.select(record_ledgers.c.ledger).where(record_ledgers.c.id == ledger_id)
        names[ledger_id] = (await connection.execute(name)).scalar_one()
        for start in range(0, len(indexes), _FIND_CHUNK):
            some = sa.select(records.c.ledger_index, records.c.record).where(
                records.c.ledger_id == ledger_id,
                records.c.ledger_index.in_(indexes[start : start + _FIND_CHUNK]),
            )
            for found in await connection.execute(some):
                raw[ledger_id, found.ledger_index] = bytes(found.record)
    return [
        Entry(
            row=row.id,
            node=row.node,
            ledger=names[row.ledger_id],
            at_ms=row.at_ms,
            root_id=bytes(row.root_id),
            intent_index=row.intent_index,
            intent=raw[row.ledger_id, row.intent_index],
            outcome_index=row.outcome_index,
            outcome=b"" if row.outcome_index is None else raw[row.ledger_id, row.outcome_index],
        )
        for row in rows
    ]
