"""Tickets and approvals in the database."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.approvals import Room, Stored
from control_plane.edge.store.models import approval_notes, approval_tickets
from trust import limits
from trust.ticket import Ticket

_T = approval_tickets.c
_N = approval_notes.c


async def room(connection: AsyncConnection, *, node: str, caller: str, now_ms: int) -> Room:
    """Count the tickets that are open now."""
    open_now = sa.and_(_T.until_ms > now_ms, _T.spent_ms == 0)
    own = sa.case((_T.node == node, 1), else_=0)
    callers = sa.case((sa.and_(_T.node == node, _T.caller == caller), 1), else_=0)
    query = sa.select(sa.func.count(), sa.func.sum(own), sa.func.sum(callers)).where(open_now)
    row = (await connection.execute(query)).one()
    return Room(int(row[0]), int(row[1] or 0), int(row[2] or 0))


async def open_one(connection: AsyncConnection, stored: Stored, *, now_ms: int) -> Stored | None:
    """Return the ticket that the same node has open for the same call; None when there is none."""
    query = (
        sa.select(approval_tickets)
        .where(
            _T.node == stored.node,
            _T.call_sha256 == stored.ticket.call_sha256,
            _T.inbound == int(stored.inbound),
            _T.until_ms > now_ms,
            _T.spent_ms == 0,
        )
        .order_by(_T.opened_ms.desc())
        .limit(1)
    )
    found = await _load(connection, query)
    return found[0] if found else None


async def add(connection: AsyncConnection, stored: Stored) -> None:
    """Keep a new ticket."""
    await connection.execute(
        sa.insert(approval_tickets).values(
            id=stored.ticket.id,
            ticket=stored.ticket.body(),
            call_sha256=stored.ticket.call_sha256,
            caller=stored.ticket.caller,
            node=stored.node,
            inbound=int(stored.inbound),
            level=stored.level,
            opened_ms=stored.opened_ms,
            until_ms=stored.until_ms,
            spent_ms=0,
            content=stored.content,
            content_bytes=stored.content_bytes,
        )
    )


async def add_note(
    connection: AsyncConnection, ticket_id: str, *, name: str, verdict: str, note: bytes, at_ms: int
) -> None:
    """Keep what an approver said; the same verdict again replaces the earlier one."""
    await connection.execute(
        sa.delete(approval_notes).where(_N.ticket_id == ticket_id, _N.name == name, _N.verdict == verdict)
    )
    await connection.execute(
        sa.insert(approval_notes).values(
            ticket_id=ticket_id, name=name, verdict=verdict, note=note, at_ms=at_ms
        )
    )


async def spend(connection: AsyncConnection, ids: Sequence[str], *, node: str, now_ms: int) -> None:
    """Note that a node's tickets served their call; what was asked is no longer shown."""
    await connection.execute(
        sa.update(approval_tickets)
        .where(_T.id.in_(ids), _T.node == node, _T.spent_ms == 0)
        .values(spent_ms=now_ms, content=None)
    )


async def find(connection: AsyncConnection, prefix: str) -> list[Stored]:
    """Return the tickets whose id begins so, at most two."""
    query = sa.select(approval_tickets).where(_T.id.startswith(prefix, autoescape=True)).limit(2)
    return await _load(connection, query)


async def get(connection: AsyncConnection, ids: Sequence[str]) -> list[Stored]:
    """Return the tickets of these ids that there are."""
    return await _load(connection, sa.select(approval_tickets).where(_T.id.in_(ids)))


async def newest(connection: AsyncConnection, *, live: bool | None, limit: int, now_ms: int) -> list[Stored]:
    """Return tickets, newest first, without what was asked.

    Args:
        connection: inside a transaction.
        live: those that may still serve a call; False: only those that may not; None: all.
        limit: how many at most.
        now_ms: Unix time, ms.
    """
    light = [column for column in approval_tickets.c if column is not _T.content]
    query = sa.select(*light, _T.content.is_not(None).label("shown"))
    query = query.order_by(_T.opened_ms.desc(), _T.id).limit(limit)
    alive = sa.and_(_T.until_ms > now_ms, _T.spent_ms == 0)
    if live is not None:
        query = query.where(alive if live else sa.not_(alive))
    return await _load(connection, query)


async def forget(connection: AsyncConnection, *, now_ms: int) -> None:
    """Remove tickets that ended long ago, and the requests of all that ended."""
    old = sa.select(_T.id).where(_T.until_ms < now_ms - limits.TICKET_HISTORY_S * 1000)
    await connection.execute(sa.delete(approval_notes).where(_N.ticket_id.in_(old)))
    await connection.execute(
        sa.delete(approval_tickets).where(_T.until_ms < now_ms - limits.TICKET_HISTORY_S * 1000)
    )
    ended = sa.and_(_T.until_ms <= now_ms, _T.content.is_not(None))
    await connection.execute(sa.update(approval_tickets).where(ended).values(content=None))


async def _load(connection: AsyncConnection, query: "sa.Select[Any]") -> list[Stored]:
    rows = (await connection.execute(query)).all()
    notes: dict[str, list[bytes]] = {}
    if rows:
        said = await connection.execute(
            sa.select(approval_notes)
            .where(_N.ticket_id.in_([row.id for row in rows]))
            .order_by(_N.at_ms, _N.name)
        )
        for row in said:
            notes.setdefault(row.ticket_id, []).append(bytes(row.note))
    return [
        Stored(
            Ticket.parse(bytes(row.ticket)),
            row.node,
            bool(row.inbound),
            row.level,
            row.opened_ms,
            row.until_ms,
            row.spent_ms,
            None if (content := getattr(row, "content", None)) is None else bytes(content),
            row.content_bytes,
            bool(row.shown) if hasattr(row, "shown") else content is not None,
            tuple(notes.get(row.id, ())),
        )
        for row in rows
    ]
