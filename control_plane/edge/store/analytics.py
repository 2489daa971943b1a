"""Sums of executions in the database: added to as records arrive, read by time, forgotten when they are old."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.analytics import RETENTION_S, Delta, Key, Totals
from control_plane.edge.store.models import analytics_counts as counts
from control_plane.edge.store.models import analytics_keys as keys
from trust import limits
from trust.record import Side

_FIND_CHUNK: Final = 400  # keys in one statement
# No counter grows beyond what its column holds: one node's numbers would refuse the records of every node with its own.
_MOST: Final = limits.MAX_ANALYTICS_COUNT
ADD: Final = (
    "INSERT INTO analytics_counts "  # noqa: S608  # a number of ours
    "(resolution_s, bucket_s, key_id, measure, label, count) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (resolution_s, bucket_s, key_id, measure, label) DO UPDATE SET count = CASE "
    f"WHEN analytics_counts.count + excluded.count < {_MOST} "
    f"THEN analytics_counts.count + excluded.count ELSE {_MOST} END"
)


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


async def ids_of(connection: AsyncConnection, node: str, wanted: Iterable[Key]) -> dict[Key, int]:
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


def rows_of(found: Mapping[Delta, int], ids: Mapping[Key, int]) -> list[tuple[int, int, int, int, str, int]]:
    """Return the rows of `ADD` that add `found` up."""
    summed: dict[tuple[int, int, int, int, str], int] = {}
    for (resolution, bucket, key, measure, label), number in found.items():
        place = (resolution, bucket, ids[key], measure, label)
        summed[place] = min(summed.get(place, 0) + number, _MOST)
    return [(*place, number) for place, number in sorted(summed.items())]  # in one order: no deadlocks
