"""Sums of executions in the database: added to as records arrive, read by time, forgotten when they are old."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.analytics import RETENTION_S, Delta, Key, Totals, deltas
from control_plane.core.executions import Batch
from control_plane.edge.store.models import analytics_counts as counts
from control_plane.edge.store.models import analytics_keys as keys
from control_plane.edge.store.models import executions
from trust import limits
from trust.record import Outcome, Side

_FIND_CHUNK: Final = 400  # keys in one statement
_ADD: Final = (
    "INSERT INTO analytics_counts (resolution_s, bucket_s, key_id, measure, label, count) VALUES ({marks}) "
    "ON CONFLICT (resolution_s, bucket_s, key_id, measure, label) "
    "DO UPDATE SET count = analytics_counts.count + excluded.count"
)


async def count(connection: AsyncConnection, batch: Batch, held: int, *, now_ms: int) -> None:
    """Add what is new in a batch to the sums; its executions are in the index already.

    Args:
        connection: in the writing transaction that takes the batch, so that nothing counts twice.
        batch: of one node.
        held: how many records at its front were taken before.
        now_ms: Unix ms.
    """
    new = batch.parsed[held:]
    ended = {record.execution_id for record in new if isinstance(record, Outcome)}
    found = deltas(new, await _began(connection, batch.node, ended), now_ms=now_ms)
    if found:
        ids = await _ids(connection, batch.node, {delta[2] for delta in found})
        await _add(connection, found, ids)


async def totals(connection: AsyncConnection, parts: Sequence[tuple[int, int, int]]) -> dict[Key, Totals]:
    """Return the sums of every key over the parts of `control_plane.core.analytics.windows`."""
    by_id: dict[int, Totals] = {}
    for statement in map(totals_statement, parts):
        for row in await connection.execute(statement):
            by_id.setdefault(row.key_id, Totals()).add(row.measure, row.label, int(row.total))
    return {key: by_id[number] for number, key in (await _keys(connection, by_id)).items()}


def totals_statement(part: tuple[int, int, int]) -> sa.Select[Any]:
    """Return the statement that adds up (resolution, from, to) in seconds; tests look at its plan."""
    resolution, start, end = part
    return (
        sa.select(
            counts.c.key_id, counts.c.measure, counts.c.label, sa.func.sum(counts.c.count).label("total")
        )
        .where(counts.c.resolution_s == resolution, counts.c.bucket_s >= start, counts.c.bucket_s < end)
        .group_by(counts.c.key_id, counts.c.measure, counts.c.label)
    )


async def prune(connection: AsyncConnection, *, now_ms: int) -> int:
    """Forget sums that are older than their resolution is kept; return how many."""
    gone = 0
    for resolution, kept_s in RETENTION_S.items():
        deleted = await connection.execute(
            sa.delete(counts).where(
                counts.c.resolution_s == resolution, counts.c.bucket_s < now_ms // 1000 - kept_s
            )
        )
        gone += deleted.rowcount
    return gone


async def _began(
    connection: AsyncConnection, node: str, ended: Collection[bytes]
) -> dict[tuple[bytes, Side], Key]:
    """Return the key of each execution that `node` recorded under one of these ids."""
    found: dict[tuple[bytes, Side], Key] = {}
    wanted = sorted(ended)
    for start in range(0, len(wanted), _FIND_CHUNK):
        query = sa.select(
            executions.c.execution_id,
            executions.c.side,
            executions.c.caller,
            executions.c.service,
            executions.c.method,
        ).where(executions.c.node == node, executions.c.execution_id.in_(wanted[start : start + _FIND_CHUNK]))
        for row in await connection.execute(query):
            side = Side(row.side)
            found[bytes(row.execution_id), side] = Key(node, side, row.caller, row.service, row.method)
    return found


async def _ids(connection: AsyncConnection, node: str, wanted: Iterable[Key]) -> dict[Key, int]:
    """Return the row of each key; what a node has no room for counts as its `Key.other`."""
    by_digest = {key.digest: key for key in wanted}
    known = await _known(connection, by_digest)
    missing = sorted(set(by_digest) - set(known))
    if missing:
        held = sa.select(sa.func.count()).select_from(keys).where(keys.c.node == node)
        room = limits.MAX_ANALYTICS_KEYS_PER_NODE - (await connection.execute(held)).scalar_one()
        added = {by_digest[digest] for digest in missing[: max(0, room)]}
        others = {by_digest[digest].other() for digest in missing[max(0, room) :]}
        await _insert(connection, sorted(added | others))
        known |= await _known(connection, {key.digest: key for key in added | others})
    return {key: known.get(digest) or known[key.other().digest] for digest, key in by_digest.items()}


async def _known(connection: AsyncConnection, digests: Collection[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    wanted = sorted(digests)
    for start in range(0, len(wanted), _FIND_CHUNK):
        query = sa.select(keys.c.digest, keys.c.id).where(
            keys.c.digest.in_(wanted[start : start + _FIND_CHUNK])
        )
        found |= {bytes(row.digest): row.id for row in await connection.execute(query)}
    return found


async def _keys(connection: AsyncConnection, ids: Collection[int]) -> dict[int, Key]:
    found: dict[int, Key] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), _FIND_CHUNK):
        query = sa.select(keys).where(keys.c.id.in_(wanted[start : start + _FIND_CHUNK]))
        for row in await connection.execute(query):
            found[row.id] = Key(row.node, Side(row.side), row.caller, row.service, row.method)
    return found


async def _insert(connection: AsyncConnection, new: Sequence[Key]) -> None:
    rows = [
        {
            "digest": key.digest,
            "node": key.node,
            "side": int(key.side),
            "caller": key.caller,
            "service": key.service,
            "method": key.method,
        }
        for key in new
    ]
    if rows:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        await connection.execute(insert(keys).on_conflict_do_nothing(), rows)


async def _add(connection: AsyncConnection, found: Mapping[Delta, int], ids: Mapping[Key, int]) -> None:
    summed: dict[tuple[int, int, int, int, str], int] = {}
    for (resolution, bucket, key, measure, label), number in found.items():
        place = (resolution, bucket, ids[key], measure, label)
        summed[place] = summed.get(place, 0) + number
    rows = [(*place, number) for place, number in sorted(summed.items())]  # in one order: no deadlocks
    # Written out, because there are many small rows: SQLAlchemy's handling of parameters cost more than the database.
    marks = ", ".join("?" if connection.dialect.name == "sqlite" else f"${n}" for n in range(1, 7))
    await connection.exec_driver_sql(_ADD.format(marks=marks), rows)
