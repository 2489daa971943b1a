"""What operators did: written in the transaction of the deed, never changed."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.edge.store.models import audit


@dataclass(frozen=True, slots=True)
class Entry:
    """One deed."""

    id: int
    at_ms: int
    who: str
    action: str
    proposal_id: str
    detail: str


async def record(
    connection: AsyncConnection, *, at_ms: int, who: str, action: str, proposal_id: str = "", detail: str = ""
) -> None:
    """Write down one deed."""
    await connection.execute(
        sa.insert(audit).values(at_ms=at_ms, who=who, action=action, proposal_id=proposal_id, detail=detail)
    )


async def page(connection: AsyncConnection, *, limit: int, before_id: int = 0) -> list[Entry]:
    """Return up to `limit` entries, newest first, older than `before_id` (0: from the newest)."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before_id:
        query = query.where(audit.c.id < before_id)
    rows = await connection.execute(query)
    return [Entry(r.id, r.at_ms, r.who, r.action, r.proposal_id, r.detail) for r in rows]
