"""Incidents in the database: findings folded in once, what was done about them, and who closed them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.findings import Evidence, Finding
from control_plane.core.incidents import Change, Incident, State, finding_id, fold
from control_plane.core.responses import Fate, Response
from control_plane.edge.store.models import findings, incident_responses, incidents
from trust import limits
from trust.detection import Action

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which incidents an operator asks for, newest first; empty and 0 mean any."""

    state: State | None = None
    rule: str = ""
    subject: str = ""
    min_rank: int = 0
    since_ms: int = 0
    before: tuple[int, str] | None = None  # (last_ms, id) of the last one of the page before
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Planned:
    """A response that is to be done: its row, and the incident."""

    row: int
    response: Response
    incident: Incident


async def take(connection: AsyncConnection, finding: Finding) -> tuple[Incident, Change] | None:
    """Fold a finding into its incident, in a writing transaction; None when it was before, or there is no room."""
    identifier = finding_id(finding)
    known = sa.select(findings.c.id).where(findings.c.id == identifier)
    if (await connection.execute(known)).scalar_one_or_none() is not None:
        return None
    newest = (
        sa.select(incidents)
        .where(incidents.c.subject == finding.subject, incidents.c.rule == finding.rule)
        .order_by(incidents.c.last_ms.desc())
        .limit(1)
    )
    row = (await connection.execute(newest)).one_or_none()
    incident, change = fold(None if row is None else _incident(row), finding)
    if change is Change.OPENED and not await _room(connection, incident):
        return None
    await _write(connection, incident)
    await connection.execute(
        sa.insert(findings).values(
            id=identifier, incident_id=incident.id, at_ms=finding.at_ms, text=incident.text
        )
    )
    return incident, change


async def open_count(connection: AsyncConnection) -> int:
    """Return how many incidents are open."""
    query = sa.select(sa.func.count()).select_from(incidents).where(incidents.c.state == State.OPEN.value)
    return int((await connection.execute(query)).scalar_one())


async def _room(connection: AsyncConnection, incident: Incident) -> bool:
    """Whether another incident may be opened: one node's word alone fills no more than its share."""
    if await open_count(connection) >= limits.MAX_OPEN_INCIDENTS:
        return False
    if not incident.only_node:
        return True
    query = (
        sa.select(sa.func.count())
        .select_from(incidents)
        .where(incidents.c.only_node == incident.only_node, incidents.c.state == State.OPEN.value)
    )
    return int((await connection.execute(query)).scalar_one()) < limits.MAX_OPEN_INCIDENTS_PER_NODE


def named_statement(prefix: str) -> sa.Select[Any]:
    """Return the statement that finds incidents by the beginning of their id; tests look at its plan."""
    # "g" comes after every hexadecimal digit: a range of the key, where LIKE would pass over every incident
    return sa.select(incidents).where(incidents.c.id >= prefix, incidents.c.id < f"{prefix}g").limit(2)


async def get(connection: AsyncConnection, prefix: str) -> list[Incident]:
    """Return the incidents whose id begins with `prefix` (hexadecimal), two at most."""
    return [_incident(row) for row in await connection.execute(named_statement(prefix))]


async def page(connection: AsyncConnection, wanted: Wanted) -> list[Incident]:
    """Return one page, those first that something happened in last."""
    query = sa.select(incidents)
    if wanted.state is not None:
        query = query.where(incidents.c.state == wanted.state.value)
    if wanted.rule:
        query = query.where(incidents.c.rule == wanted.rule)
    if wanted.subject:
        query = query.where(incidents.c.subject == wanted.subject)
    if wanted.min_rank:
        query = query.where(incidents.c.severity >= wanted.min_rank)
    if wanted.since_ms:
        query = query.where(incidents.c.last_ms >= wanted.since_ms)
    if wanted.before is not None:
        before = sa.tuple_(*(sa.literal(one) for one in wanted.before))
        query = query.where(sa.tuple_(incidents.c.last_ms, incidents.c.id) < before)
    query = query.order_by(incidents.c.last_ms.desc(), incidents.c.id.desc()).limit(wanted.limit)
    return [_incident(row) for row in await connection.execute(query)]


async def close(connection: AsyncConnection, incident: Incident) -> None:
    """Write a resolved incident."""
    await _write(connection, incident)


async def add_responses(connection: AsyncConnection, planned: Sequence[Response]) -> None:
    """Write down what will be done, or is not; before it is done."""
    if planned:
        rows = [
            {
                "incident_id": one.incident,
                "action": one.action.value,
                "fate": one.fate.value,
                "at_ms": one.at_ms,
                "kind": one.kind,
                "value": one.value,
                "ttl_s": one.ttl_s,
                "why": one.why,
                "directive": one.directive,
            }
            for one in planned
        ]
        await connection.execute(sa.insert(incident_responses), rows)


async def responses_of(connection: AsyncConnection, incident: str) -> list[Response]:
    """Return what was done about an incident, oldest first."""
    query = sa.select(incident_responses).where(incident_responses.c.incident_id == incident)
    return [_response(row) for row in await connection.execute(query.order_by(incident_responses.c.id))]


async def issued_since(connection: AsyncConnection, since_ms: int) -> int:
    """Return how many directives were planned or issued automatically since then."""
    query = (
        sa.select(sa.func.count())
        .select_from(incident_responses)
        .where(
            incident_responses.c.fate.in_([Fate.PLANNED.value, Fate.DONE.value]),
            incident_responses.c.at_ms >= since_ms,
            incident_responses.c.kind != "",
        )
    )
    return int((await connection.execute(query)).scalar_one())


async def issued_in_last_hour(connection: AsyncConnection, now_ms: int) -> int:
    """Return how much of the hourly allowance is used."""
    return await issued_since(connection, now_ms - _HOUR_MS)


async def issued_alone_in_last_hour(connection: AsyncConnection, node: str, now_ms: int) -> int:
    """Return how much of the hourly allowance was used for what rests on the word of one node alone."""
    if not node:
        return 0
    issued = (
        sa.select(incident_responses.c.incident_id)
        .where(
            incident_responses.c.fate.in_([Fate.PLANNED.value, Fate.DONE.value]),
            incident_responses.c.at_ms >= now_ms - _HOUR_MS,
            incident_responses.c.kind != "",
        )
        .subquery()
    )
    query = (
        sa.select(sa.func.count())
        .select_from(issued.join(incidents, incidents.c.id == issued.c.incident_id))
        .where(incidents.c.only_node == node)
    )
    return int((await connection.execute(query)).scalar_one())


async def planned(connection: AsyncConnection, *, most: int = 100) -> list[Planned]:
    """Return what is decided and not done yet, oldest first."""
    query = (
        sa.select(incident_responses)
        .where(incident_responses.c.fate == Fate.PLANNED.value)
        .order_by(incident_responses.c.at_ms, incident_responses.c.id)
        .limit(most)
    )
    found = []
    for row in (await connection.execute(query)).all():
        about = await connection.execute(sa.select(incidents).where(incidents.c.id == row.incident_id))
        found.append(Planned(row.id, _response(row), _incident(about.one())))
    return found


async def settle(connection: AsyncConnection, row: int, fate: Fate, *, why: str, directive: str) -> bool:
    """Write down what became of a planned response; False when another control plane did before."""
    done = await connection.execute(
        sa.update(incident_responses)
        .where(incident_responses.c.id == row, incident_responses.c.fate == Fate.PLANNED.value)
        .values(fate=fate.value, why=why, directive=directive)
    )
    return bool(done.rowcount)


async def forget(connection: AsyncConnection, *, before_ms: int, most: int = 100) -> int:
    """Forget resolved incidents in which nothing happened since then; return how many."""
    query = (
        sa.select(incidents.c.id)
        .where(incidents.c.state == State.RESOLVED.value, incidents.c.last_ms < before_ms)
        .order_by(incidents.c.last_ms)
        .limit(most)
    )
    old = list((await connection.execute(query)).scalars())
    if old:
        for child in (findings, incident_responses):
            await connection.execute(sa.delete(child).where(child.c.incident_id.in_(old)))
        await connection.execute(sa.delete(incidents).where(incidents.c.id.in_(old)))
    return len(old)


async def _write(connection: AsyncConnection, incident: Incident) -> None:
    values: dict[str, Any] = {
        "rule": incident.rule,
        "severity": incident.severity.rank,
        "subject": incident.subject,
        "state": incident.state.value,
        "opened_ms": incident.opened_ms,
        "last_ms": incident.last_ms,
        "findings": incident.findings,
        "text": incident.text,
        "evidence": [one.to_json() for one in incident.evidence],
        "nodes": list(incident.nodes),
        "only_node": incident.only_node,
        "alone": list(incident.alone),
        "resolved_by": incident.resolved_by,
        "resolved_why": incident.resolved_why,
        "resolved_ms": incident.resolved_ms,
    }
    changed = await connection.execute(
        sa.update(incidents).where(incidents.c.id == incident.id).values(values)
    )
    if not changed.rowcount:
        await connection.execute(sa.insert(incidents).values(id=incident.id, **values))


def _incident(row: Any) -> Incident:
    return Incident(
        id=row.id,
        rule=row.rule,
        subject=row.subject,
        state=State(row.state),
        opened_ms=row.opened_ms,
        last_ms=row.last_ms,
        findings=row.findings,
        text=row.text,
        evidence=tuple(Evidence.from_json(one) for one in row.evidence),
        nodes=tuple(row.nodes),
        alone=tuple(row.alone),
        resolved_by=row.resolved_by,
        resolved_why=row.resolved_why,
        resolved_ms=row.resolved_ms,
    )


def _response(row: Any) -> Response:
    return Response(
        incident=row.incident_id,
        action=Action(row.action),
        fate=Fate(row.fate),
        at_ms=row.at_ms,
        kind=row.kind,
        value=row.value,
        ttl_s=row.ttl_s,
        why=row.why,
        directive=row.directive,
    )
