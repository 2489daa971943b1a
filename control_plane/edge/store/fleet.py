"""Nodes in the database: what they reported, how it changed, and what each was granted to be."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.edge.store.models import join_tokens, node_grants, node_history, node_workloads, nodes
from trust import limits

_CHUNK: Final = 400  # keys in one statement


@dataclass(frozen=True, slots=True)
class StoredNode:
    """The last report of one node; `status` is a serialised egm.v1.NodeStatus."""

    node: str
    last_seen_ms: int
    certificate_not_after_ms: int
    status: bytes


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """The right to be `node` and to serve or call as `workloads`."""

    node: str
    workloads: tuple[str, ...]


async def save_nodes(connection: AsyncConnection, records: Sequence[StoredNode]) -> None:
    """Replace the last report of each node, unless a later one is held (another control plane may have it).

    A few statements, however many nodes there are.
    """
    held = await connection.execute(
        sa.select(nodes.c.node, nodes.c.last_seen_ms).where(nodes.c.node.in_([r.node for r in records]))
    )
    last: dict[str, int] = {row.node: row.last_seen_ms for row in held}
    rows = [
        {
            "key": record.node,
            "seen": record.last_seen_ms,
            "until": record.certificate_not_after_ms,
            "said": record.status,
        }
        for record in records
        if last.get(record.node, -1) <= record.last_seen_ms
    ]
    values: dict[sa.Column[Any], Any] = {
        nodes.c.last_seen_ms: sa.bindparam("seen"),
        nodes.c.certificate_not_after_ms: sa.bindparam("until"),
        nodes.c.status: sa.bindparam("said"),
    }
    if new := [row for row in rows if row["key"] not in last]:
        await connection.execute(sa.insert(nodes).values({nodes.c.node: sa.bindparam("key"), **values}), new)
    if known := [row for row in rows if row["key"] in last]:
        await connection.execute(
            sa.update(nodes).where(nodes.c.node == sa.bindparam("key")).values(values), known
        )


async def all_nodes(connection: AsyncConnection) -> list[StoredNode]:
    """Return the last report of every node, by name."""
    rows = await connection.execute(sa.select(nodes).order_by(nodes.c.node))
    return [StoredNode(r.node, r.last_seen_ms, r.certificate_not_after_ms, bytes(r.status)) for r in rows]


async def add_history(
    connection: AsyncConnection,
    node: str,
    *,
    at_ms: int,
    state: str,
    policy_version: int,
    lease: str,
    keep: int,
) -> None:
    """Append one change of a node and forget all but its newest `keep`."""
    where = node_history.c.node == node
    await connection.execute(sa.delete(node_history).where(where, node_history.c.at_ms == at_ms))
    await connection.execute(
        sa.insert(node_history).values(
            node=node, at_ms=at_ms, state=state, policy_version=policy_version, lease=lease
        )
    )
    newest = sa.select(node_history.c.at_ms).where(where).order_by(node_history.c.at_ms.desc())
    oldest_kept = (await connection.execute(newest.offset(keep - 1).limit(1))).scalar_one_or_none()
    if oldest_kept is not None:
        await connection.execute(sa.delete(node_history).where(where, node_history.c.at_ms < oldest_kept))


async def history(connection: AsyncConnection, node: str) -> list[tuple[int, str, int, str]]:
    """Return (at_ms, state, policy_version, lease) of every change kept, newest first."""
    rows = await connection.execute(
        sa.select(node_history).where(node_history.c.node == node).order_by(node_history.c.at_ms.desc())
    )
    return [(r.at_ms, r.state, r.policy_version, r.lease) for r in rows]


async def add_token(
    connection: AsyncConnection, token_sha256: str, grant: StoredGrant, *, expires_ms: int, now_ms: int
) -> None:
    """Remember a join token by its hash, and forget those that expired."""
    await connection.execute(sa.delete(join_tokens).where(join_tokens.c.expires_ms <= now_ms))
    await connection.execute(
        sa.insert(join_tokens).values(
            token_sha256=token_sha256,
            node=grant.node,
            workloads=list(grant.workloads),
            expires_ms=expires_ms,
            used_ms=None,
        )
    )


async def use_token(connection: AsyncConnection, token_sha256: str, *, now_ms: int) -> StoredGrant | None:
    """Spend a token: of any number of callers at one moment, one gets its grant; None for all others."""
    spent = await connection.execute(
        sa.update(join_tokens)
        .where(
            join_tokens.c.token_sha256 == token_sha256,
            join_tokens.c.used_ms.is_(None),
            join_tokens.c.expires_ms > now_ms,
        )
        .values(used_ms=now_ms)
        .returning(join_tokens.c.node, join_tokens.c.workloads)
    )
    row = spent.one_or_none()
    if row is None:
        return None
    grant = StoredGrant(row.node, tuple(row.workloads))
    await _save_grant(connection, grant, now_ms=now_ms)
    return grant


async def grant_of(connection: AsyncConnection, node: str) -> StoredGrant | None:
    """Return what `node` was granted when it joined."""
    rows = await connection.execute(sa.select(node_grants.c.workloads).where(node_grants.c.node == node))
    workloads: Sequence[str] | None = rows.scalar_one_or_none()
    return None if workloads is None else StoredGrant(node, tuple(workloads))


async def workloads_of(
    connection: AsyncConnection, names: Collection[str]
) -> dict[str, dict[str, int | None]]:
    """Return for which workloads some nodes speak or spoke: node -> workload ("" itself) -> until Unix ms, None: still.

    A node that never joined by a token of ours is not in it.
    """
    found: dict[str, dict[str, int | None]] = {}
    wanted = sorted(names)
    for start in range(0, len(wanted), _CHUNK):
        query = sa.select(node_workloads).where(node_workloads.c.node.in_(wanted[start : start + _CHUNK]))
        for row in await connection.execute(query):
            found.setdefault(row.node, {})[row.workload] = row.until_ms
    return found


async def forget(connection: AsyncConnection, node: str, *, now_ms: int) -> int | None:
    """Remove what is known of `node`, its grant and its unused tokens; its execution records stay.

    That it was granted workloads until now is remembered: records that it still ships must not count for them.

    Returns:
        The end of the certificate that it last reported with (Unix ms, 0: it never reported); None when there is no
        such node.
    """
    found = await connection.execute(
        sa.delete(nodes).where(nodes.c.node == node).returning(nodes.c.certificate_not_after_ms)
    )
    not_after_ms: int | None = found.scalar_one_or_none()
    removed = [
        await connection.execute(sa.delete(table).where(table.c.node == node))
        for table in (node_grants, join_tokens, node_history)
    ]
    await _end_workloads(connection, node, now_ms=now_ms)
    if not_after_ms is None and not any(result.rowcount for result in removed):
        return None
    return not_after_ms or 0


async def _save_grant(connection: AsyncConnection, grant: StoredGrant, *, now_ms: int) -> None:
    # joining again (a node reinstalled, or with other workloads) replaces the earlier grant
    await connection.execute(sa.delete(node_grants).where(node_grants.c.node == grant.node))
    await connection.execute(sa.insert(node_grants).values(node=grant.node, workloads=list(grant.workloads)))
    await _end_workloads(connection, grant.node, now_ms=now_ms)
    held = sorted({"", *grant.workloads})
    where = node_workloads.c.node == grant.node
    await connection.execute(sa.delete(node_workloads).where(where, node_workloads.c.workload.in_(held)))
    await connection.execute(
        sa.insert(node_workloads), [{"node": grant.node, "workload": name, "until_ms": None} for name in held]
    )


async def _end_workloads(connection: AsyncConnection, node: str, *, now_ms: int) -> None:
    still = (node_workloads.c.node == node, node_workloads.c.until_ms.is_(None))
    await connection.execute(sa.update(node_workloads).where(*still).values(until_ms=now_ms))
    # by then every certificate that a node had with them has ended: it can ship nothing more
    long_ago = now_ms - limits.MAX_SVID_TTL_S * 1000
    await connection.execute(sa.delete(node_workloads).where(node_workloads.c.until_ms < long_ago))
