"""Shadow runs and what nodes report of them, in the database."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.edge.store.models import shadow_reports, shadow_runs
from trust import limits


@dataclass(frozen=True, slots=True)
class Run:
    """One run. Times are Unix ms; `stopped_ms` is 0 while nobody has stopped it."""

    id: str
    proposal_id: str
    order: bytes
    role: str
    bundle_path: str  # TUF target path, among the proposal's files
    started_by: str
    approver: str
    started_ms: int
    until_ms: int
    stopped_ms: int


@dataclass(frozen=True, slots=True)
class Report:
    """The newest report of one start of one node."""

    node: str
    at_ms: int
    report: bytes  # egm.v1.ShadowReport


async def add(connection: AsyncConnection, run: Run) -> None:
    """Store a new run."""
    await connection.execute(
        sa.insert(shadow_runs).values(
            id=run.id,
            proposal_id=run.proposal_id,
            signed_order=run.order,
            role=run.role,
            bundle_path=run.bundle_path,
            started_by=run.started_by,
            approver=run.approver,
            started_ms=run.started_ms,
            until_ms=run.until_ms,
            stopped_ms=run.stopped_ms,
        )
    )


async def get(connection: AsyncConnection, run_id: str = "") -> Run | None:
    """Return one run; without an id the newest."""
    query = sa.select(shadow_runs).order_by(shadow_runs.c.started_ms.desc(), shadow_runs.c.id).limit(1)
    if run_id:
        query = query.where(shadow_runs.c.id == run_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    return Run(
        row.id,
        row.proposal_id,
        bytes(row.signed_order),
        row.role,
        row.bundle_path,
        row.started_by,
        row.approver,
        row.started_ms,
        row.until_ms,
        row.stopped_ms,
    )


async def stop(connection: AsyncConnection, run_id: str, *, at_ms: int) -> None:
    """Stop one run."""
    change = sa.update(shadow_runs).where(shadow_runs.c.id == run_id).values(stopped_ms=at_ms)
    await connection.execute(change)


async def report(connection: AsyncConnection, run_id: str, boot_id: str, found: Report) -> None:
    """Keep the newest report of one start of one node: counts only grow within a start.

    A start beyond MAX_SHADOW_STARTS of its node is not kept; those before it are kept up to date.
    """
    row = (
        shadow_reports.c.run_id == run_id,
        shadow_reports.c.node == found.node,
        shadow_reports.c.boot_id == boot_id,
    )
    values = {"at_ms": found.at_ms, "report": found.report}
    changed = await connection.execute(sa.update(shadow_reports).where(*row).values(values))
    if changed.rowcount or await _starts(connection, run_id, found.node) >= limits.MAX_SHADOW_STARTS:
        return
    new = {"run_id": run_id, "node": found.node, "boot_id": boot_id, **values}
    await connection.execute(sa.insert(shadow_reports).values(new))


async def reports(connection: AsyncConnection, run_id: str) -> Sequence[Report]:
    """Return every report of a run, by node and time."""
    query = (
        sa.select(shadow_reports)
        .where(shadow_reports.c.run_id == run_id)
        .order_by(shadow_reports.c.node, shadow_reports.c.at_ms)
    )
    return [Report(row.node, row.at_ms, bytes(row.report)) for row in await connection.execute(query)]


async def _starts(connection: AsyncConnection, run_id: str, node: str) -> int:
    query = sa.select(sa.func.count()).select_from(shadow_reports)
    query = query.where(shadow_reports.c.run_id == run_id, shadow_reports.c.node == node)
    return int((await connection.execute(query)).scalar_one())
