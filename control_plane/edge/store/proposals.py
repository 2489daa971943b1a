"""Proposals and their signatures in the database."""

from collections.abc import Mapping
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.proposals import Proposal, Signed, State
from control_plane.edge.store.models import proposal_files, signatures
from control_plane.edge.store.models import proposals as table


async def add(connection: AsyncConnection, proposal: Proposal, files: Mapping[str, bytes]) -> None:
    """Store a new proposal with the target files that it names."""
    await connection.execute(
        sa.insert(table).values(
            id=proposal.id,
            role=proposal.role,
            version=proposal.version,
            digest=proposal.digest,
            state=proposal.state.value,
            title=proposal.title,
            proposed_by=proposal.proposed_by,
            created_ms=proposal.created_ms,
            expires_ms=proposal.expires_ms,
            metadata=proposal.metadata,
        )
    )
    if files:
        rows = [
            {"proposal_id": proposal.id, "path": path, "data": data} for path, data in sorted(files.items())
        ]
        await connection.execute(sa.insert(proposal_files), rows)
    for signed in proposal.signatures:
        await add_signature(connection, proposal.id, signed)


async def get(connection: AsyncConnection, proposal_id: str, *, lock: bool = False) -> Proposal | None:
    """Return a proposal with its signatures; with `lock`, nobody else changes it in this transaction."""
    query = sa.select(table).where(table.c.id == proposal_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else (await _with_signatures(connection, [_proposal(row)]))[0]


async def listing(connection: AsyncConnection, *, open_only: bool, limit: int) -> list[Proposal]:
    """Return proposals, newest first."""
    query = sa.select(table).order_by(table.c.created_ms.desc(), table.c.id).limit(limit)
    if open_only:
        query = query.where(table.c.state == State.OPEN.value)
    rows = (await connection.execute(query)).all()
    return await _with_signatures(connection, [_proposal(row) for row in rows])


async def count_open(connection: AsyncConnection) -> int:
    """Return how many proposals are open."""
    query = sa.select(sa.func.count()).select_from(table).where(table.c.state == State.OPEN.value)
    return int((await connection.execute(query)).scalar_one())


async def files_of(connection: AsyncConnection, proposal_id: str) -> dict[str, bytes]:
    """Return the target files of a proposal, by target path."""
    query = sa.select(proposal_files.c.path, proposal_files.c.data).where(
        proposal_files.c.proposal_id == proposal_id
    )
    return {path: bytes(data) for path, data in await connection.execute(query)}


async def add_signature(connection: AsyncConnection, proposal_id: str, signed: Signed) -> bool:
    """Store one signature; False when this key has signed before (one key counts once)."""
    held = sa.select(signatures.c.key_id).where(
        signatures.c.proposal_id == proposal_id, signatures.c.key_id == signed.key_id
    )
    if (await connection.execute(held)).first() is not None:
        return False
    await connection.execute(
        sa.insert(signatures).values(
            proposal_id=proposal_id,
            key_id=signed.key_id,
            signature_hex=signed.signature_hex,
            at_ms=signed.at_ms,
        )
    )
    return True


async def set_state(connection: AsyncConnection, proposal_id: str, state: State) -> None:
    """Change the state of one proposal; a closed one no longer needs its files."""
    await connection.execute(sa.update(table).where(table.c.id == proposal_id).values(state=state.value))
    if state is not State.OPEN:
        await connection.execute(sa.delete(proposal_files).where(proposal_files.c.proposal_id == proposal_id))


async def open_of_role(connection: AsyncConnection, role: str) -> list[Proposal]:
    """Return the open proposals of one role."""
    query = sa.select(table).where(table.c.role == role, table.c.state == State.OPEN.value)
    return [_proposal(row) for row in (await connection.execute(query)).all()]


def _proposal(row: sa.Row[tuple[object, ...]]) -> Proposal:
    found = row._mapping
    return Proposal(
        id=found["id"],
        role=found["role"],
        version=found["version"],
        digest=found["digest"],
        state=State(found["state"]),
        title=found["title"],
        proposed_by=found["proposed_by"],
        created_ms=found["created_ms"],
        expires_ms=found["expires_ms"],
        metadata=bytes(found["metadata"]),
    )


async def _with_signatures(connection: AsyncConnection, found: list[Proposal]) -> list[Proposal]:
    query = (
        sa.select(signatures)
        .where(signatures.c.proposal_id.in_([proposal.id for proposal in found]))
        .order_by(signatures.c.at_ms, signatures.c.key_id)
    )
    by_id: dict[str, list[Signed]] = {proposal.id: [] for proposal in found}
    for row in await connection.execute(query):
        by_id[row.proposal_id].append(Signed(row.key_id, row.signature_hex, row.at_ms))
    return [replace(proposal, signatures=tuple(by_id[proposal.id])) for proposal in found]
