"""Alerts and their deliveries in the database: of several control planes, one wins each change and each attempt."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.alerts import EVENT_PREFIX, Alert, State
from control_plane.edge.store.models import alert_deliveries as deliveries
from control_plane.edge.store.models import alerts as table
from trust import limits
from trust.alerting import Severity

WAITING: Final = "waiting"
DONE: Final = "done"
FAILED: Final = "failed"
_NEWEST: Final = 50  # deliveries shown of one alert
_NEVER_MS: Final = 2**62  # next attempt of what is settled: what is due is found without passing over it
_FULL: Final = "more messages wait than are kept (MAX_ALERT_DELIVERIES)"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one channel."""

    id: int
    alert_id: str
    channel: str
    body: bytes
    created_ms: int
    attempts: int
    state: str
    error: str


async def current(connection: AsyncConnection, *, now_ms: int) -> dict[str, Alert]:
    """Return, by id, the alerts that are not over, and those of which somebody was, or must be, told just now."""
    query = sa.select(table).where(
        sa.or_(
            table.c.state != State.RESOLVED,
            table.c.told == State.FIRING,
            table.c.notified_ms > now_ms - limits.ALERT_QUIET_S * 1000,
        )
    )
    rows = await connection.execute(query.limit(limits.MAX_ALERTS))
    return {row.id: _alert(row) for row in rows}


async def listing(connection: AsyncConnection, *, everything: bool, most: int) -> list[Alert]:
    """Return alerts, the newest first; those that are over only with `everything`."""
    query = sa.select(table)
    if not everything:
        query = query.where(table.c.state != State.RESOLVED)
    rows = await connection.execute(query.order_by(table.c.since_ms.desc(), table.c.id).limit(most))
    return [_alert(row) for row in rows]


async def get(connection: AsyncConnection, alert: str) -> Alert | None:
    """Return one alert."""
    row = (await connection.execute(sa.select(table).where(table.c.id == alert))).one_or_none()
    return None if row is None else _alert(row)


async def save(connection: AsyncConnection, alert: Alert) -> bool:
    """Write `alert` if nobody changed it since it was read; return whether it was written.

    A new one is not written when there are MAX_ALERTS, or MAX_ALERTS_PER_EVENT of one kind of event: whoever can make
    events happen must not take the room of the rules. One that never fired and is over is removed.
    """
    mine = (table.c.id == alert.id) & (table.c.revision == alert.revision)
    if alert.state is State.RESOLVED and not alert.fired_ms and alert.told != State.FIRING:
        return bool((await connection.execute(sa.delete(table).where(mine))).rowcount)
    values = _values(replace(alert, revision=alert.revision + 1))
    if alert.revision:
        return bool((await connection.execute(sa.update(table).where(mine).values(values))).rowcount)
    count = (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
    if count >= limits.MAX_ALERTS:
        return False
    if alert.rule.startswith(EVENT_PREFIX):
        same = sa.select(sa.func.count()).select_from(table).where(table.c.rule == alert.rule)
        if (await connection.execute(same)).scalar_one() >= limits.MAX_ALERTS_PER_EVENT:
            return False
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    # one that is over and was forgotten about by a reader of `current` begins anew
    statement = insert(table).values(values)
    again = statement.on_conflict_do_update(
        index_elements=["id"],
        set_={**values, "revision": table.c.revision + 1},
        where=(table.c.state == State.RESOLVED) & (table.c.told != State.FIRING),
    )
    return bool((await connection.execute(again)).rowcount)


async def post(
    connection: AsyncConnection, alert: str, channels: Collection[str], body: bytes, *, now_ms: int
) -> None:
    """Have `body` delivered to every channel; what there is no room for is written down as failed."""
    queued = sa.select(sa.func.count()).select_from(deliveries).where(deliveries.c.next_ms < _NEVER_MS)
    full = (await connection.execute(queued)).scalar_one() >= limits.MAX_ALERT_DELIVERIES
    rows = [
        {
            "alert_id": alert,
            "channel": channel,
            "body": body,
            "created_ms": now_ms,
            "next_ms": _NEVER_MS if full else now_ms,
            "attempts": 0,
            "state": FAILED if full else WAITING,
            "error": _FULL if full else "",
        }
        for channel in channels
    ]
    if rows:
        await connection.execute(sa.insert(deliveries), rows)


def due_statement(now_ms: int) -> sa.Select[Any]:
    """Return the statement that finds the channels for which something is due; tests look at its plan.

    An attempt that is put off further than any is, was put off by a clock that was wrong: it is due, too.
    """
    return sa.select(deliveries.c.channel).where(_due(now_ms)).distinct()


async def due_channels(connection: AsyncConnection, *, now_ms: int) -> list[str]:
    """Return the channels for which something is due."""
    return sorted((await connection.execute(due_statement(now_ms))).scalars())


def _due(now_ms: int) -> sa.ColumnElement[bool]:
    latest = now_ms + limits.WEBHOOK_PAUSE_S * 1000
    late = sa.and_(deliveries.c.next_ms > latest, deliveries.c.next_ms < _NEVER_MS)
    return sa.or_(deliveries.c.next_ms <= now_ms, late)


async def claim(
    connection: AsyncConnection, channel: str, *, now_ms: int, lease_ms: int, most: int
) -> list[Delivery]:
    """Take deliveries to a channel that are due; nobody else has them for `lease_ms`."""
    query = sa.select(deliveries).where(
        _due(now_ms), deliveries.c.state == WAITING, deliveries.c.channel == channel
    )
    taken = []
    for row in (await connection.execute(query.order_by(deliveries.c.next_ms).limit(most))).all():
        claimed = await connection.execute(
            sa.update(deliveries)
            .where(
                deliveries.c.id == row.id,
                deliveries.c.attempts == row.attempts,
                deliveries.c.state == WAITING,
            )
            .values(attempts=row.attempts + 1, next_ms=now_ms + lease_ms)
        )
        if claimed.rowcount:
            taken.append(replace(_delivery(row), attempts=row.attempts + 1))
    return taken


async def settle(connection: AsyncConnection, delivery: Delivery, *, error: str, next_ms: int | None) -> None:
    """Write down what became of an attempt: done without `error`; again at `next_ms`, or failed for good."""
    state = DONE if not error else WAITING if next_ms is not None else FAILED
    await connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id == delivery.id, deliveries.c.attempts == delivery.attempts)
        .values(state=state, error=error, next_ms=next_ms if state == WAITING else _NEVER_MS)
    )


async def deliveries_of(connection: AsyncConnection, alert: str) -> Sequence[Delivery]:
    """Return the newest deliveries of an alert, the newest first."""
    query = sa.select(deliveries).where(deliveries.c.alert_id == alert)
    rows = await connection.execute(query.order_by(deliveries.c.id.desc()).limit(_NEWEST))
    return [_delivery(row) for row in rows]


async def prune(connection: AsyncConnection, *, before_ms: int) -> None:
    """Forget alerts that were over before `before_ms`, and deliveries made before it."""
    await connection.execute(
        sa.delete(table).where(
            table.c.state == State.RESOLVED, table.c.told != State.FIRING, table.c.ended_ms < before_ms
        )
    )
    await connection.execute(
        sa.delete(deliveries).where(deliveries.c.state != WAITING, deliveries.c.created_ms < before_ms)
    )


def _alert(row: Any) -> Alert:
    return Alert(
        rule=row.rule,
        subject=row.subject,
        severity=Severity(row.severity),
        state=State(row.state),
        value=row.value,
        detail=row.detail,
        since_ms=row.since_ms,
        fired_ms=row.fired_ms,
        ended_ms=row.ended_ms,
        seen_ms=row.seen_ms,
        notified_ms=row.notified_ms,
        told=row.told,
        acked_by=row.acked_by,
        acked_ms=row.acked_ms,
        revision=row.revision,
    )


def _values(alert: Alert) -> dict[str, object]:
    return {
        "id": alert.id,
        "rule": alert.rule,
        "subject": alert.subject,
        "severity": alert.severity.value,
        "state": alert.state.value,
        "value": alert.value,
        "detail": alert.detail,
        "since_ms": alert.since_ms,
        "fired_ms": alert.fired_ms,
        "ended_ms": alert.ended_ms,
        "seen_ms": alert.seen_ms,
        "notified_ms": alert.notified_ms,
        "told": alert.told,
        "acked_by": alert.acked_by,
        "acked_ms": alert.acked_ms,
        "revision": alert.revision,
    }


def _delivery(row: Any) -> Delivery:
    return Delivery(
        row.id,
        row.alert_id,
        row.channel,
        bytes(row.body),
        row.created_ms,
        row.attempts,
        row.state,
        row.error,
    )
