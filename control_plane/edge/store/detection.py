"""What detection reads and remembers: records in ledger order, who detects, and what was learned of which records."""

import asyncio
import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.findings import Decided, Ended, Event, Evidence
from control_plane.edge.store.models import (
    detection_positions,
    detection_state,
    executions,
    record_ledgers,
    records,
)
from trust import limits
from trust.errors import EvidenceError, InputError, Reason
from trust.record import Intent, Outcome, Side, parse_record

logger = logging.getLogger(__name__)

_MAX_AHEAD_MS: Final = 3_600_000
_ONLY: Final = 1  # row of detection_state
_CHUNK: Final = 400  # keys in one statement
_MIN_SHARE: Final = 64  # records of one node in one step


@dataclass(frozen=True, slots=True)
class Fresh:
    """Records that were not looked at: the events they are, where reading goes on, and whether there is more."""

    events: list[Event]
    positions: dict[int, int]
    more: bool


async def claim(connection: AsyncConnection, owner: str, *, now_ms: int) -> bool:
    """Take or keep the right to detect for all that share the database, in a writing transaction.

    Args:
        connection: of the transaction in which something is written under this right.
        owner: unique per run of a control plane.
        now_ms: Unix ms.
    """
    until_ms = now_ms + limits.DETECTION_LEASE_S * 1000
    until = detection_state.c.until_ms
    # a right that lasts longer than any is given was taken under a clock that was wrong
    mine = sa.or_(detection_state.c.owner == owner, until < now_ms, until > now_ms + _MAX_AHEAD_MS)
    taken = await connection.execute(
        sa.update(detection_state)
        .where(detection_state.c.id == _ONLY, mine)
        .values(owner=owner, until_ms=until_ms)
    )
    if taken.rowcount:
        return True
    there = await connection.execute(sa.select(detection_state.c.id).where(detection_state.c.id == _ONLY))
    if there.scalar_one_or_none() is not None:
        return False
    values = {"id": _ONLY, "owner": owner, "until_ms": until_ms, "learned": b""}
    await connection.execute(sa.insert(detection_state).values(values))  # CONFLICT: another one was first
    return True


async def release(connection: AsyncConnection, owner: str) -> None:
    """Give the right back, so that another control plane need not wait."""
    await connection.execute(
        sa.update(detection_state).where(detection_state.c.owner == owner).values(until_ms=0)
    )


async def load(connection: AsyncConnection) -> tuple[Any, dict[int, int]]:
    """Return what was learned (None: nothing), and up to where of each ledger.

    Raises:
        InputError: INPUT_INVALID, when it is damaged.
    """
    query = sa.select(detection_state.c.learned).where(detection_state.c.id == _ONLY)
    data = (await connection.execute(query)).scalar_one_or_none() or b""
    return (await asyncio.to_thread(_unpack, bytes(data)) if data else None), await positions(connection)


async def positions(connection: AsyncConnection) -> dict[int, int]:
    """Return up to where of each ledger something was learned."""
    rows = await connection.execute(sa.select(detection_positions))
    return {row.ledger_id: row.next_index for row in rows}


async def save(
    connection: AsyncConnection, packed: bytes, reached: Mapping[int, int], saved: Mapping[int, int]
) -> None:
    """Write down what was learned and up to where, in a writing transaction under `claim`.

    Args:
        connection: of the transaction.
        packed: from `pack`.
        reached: up to where, of every ledger.
        saved: those that are written down already.
    """
    await connection.execute(
        sa.update(detection_state).where(detection_state.c.id == _ONLY).values(learned=packed)
    )
    changed = [
        {"ledger": ledger, "index": index} for ledger, index in reached.items() if saved.get(ledger) != index
    ]
    if not changed:
        return
    rows = [one["ledger"] for one in changed]
    for start in range(0, len(rows), _CHUNK):
        some = detection_positions.c.ledger_id.in_(rows[start : start + _CHUNK])
        await connection.execute(sa.delete(detection_positions).where(some))
    await connection.execute(
        sa.insert(detection_positions).values(
            {
                detection_positions.c.ledger_id: sa.bindparam("ledger"),
                detection_positions.c.next_index: sa.bindparam("index"),
            }
        ),
        changed,
    )


def pack(state: Any) -> bytes:
    """Return what was learned as bytes for the store."""
    return zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 1)


def _unpack(data: bytes) -> Any:
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, limits.MAX_DETECTION_STATE_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError("too large")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError):
        raise InputError(Reason.INPUT_INVALID, "what detection has learned is damaged") from None


def waiting_statement() -> sa.Select[Any]:
    """Return the statement that names the ledgers with records after the positions that are written down."""
    reached = sa.func.coalesce(detection_positions.c.next_index, 0)
    return (
        sa.select(
            record_ledgers.c.id, record_ledgers.c.node, record_ledgers.c.ledger, record_ledgers.c.next_index
        )
        .outerjoin(detection_positions, detection_positions.c.ledger_id == record_ledgers.c.id)
        .where(record_ledgers.c.next_index > reached)
        .order_by(record_ledgers.c.id)
    )


async def fresh(
    connection: AsyncConnection,
    after: Mapping[int, int],
    *,
    turn: int = 0,
    most: int = limits.DETECTION_BATCH_RECORDS,
) -> Fresh:
    """Return the records after those indexes, as many of every node that has any, as events in the order of time.

    A node with many ledgers, or with more records than can be looked at, keeps those of no other waiting.

    Args:
        connection: to read with.
        after: ledger -> up to where it was looked at.
        turn: which nodes come first when there are too many for one step; goes up with each step.
        most: records at most.
    """
    rows = await connection.execute(waiting_statement())
    waiting = [row for row in rows if row.next_index > after.get(row.id, 0)]
    by_node: dict[str, list[Any]] = {}
    for row in waiting:
        by_node.setdefault(row.node, []).append(row)
    first = turn % max(1, len(by_node))
    names = sorted(by_node)
    chosen = [*names[first:], *names[:first]][: most // _MIN_SHARE]
    reached: dict[int, int] = {}
    raw: list[tuple[str, str, int, bytes]] = []
    more = len(chosen) < len(names)
    for node in chosen:
        left = most // len(chosen)
        for ledger in by_node[node]:
            if left <= 0:
                more = True
                break
            query = sa.select(records.c.ledger_index, records.c.record).where(
                records.c.ledger_id == ledger.id, records.c.ledger_index >= after.get(ledger.id, 0)
            )
            batch = (await connection.execute(query.order_by(records.c.ledger_index).limit(left))).all()
            # without a row, what is missing was archived before it was shipped, or forgotten
            reached[ledger.id] = batch[-1].ledger_index + 1 if len(batch) == left else ledger.next_index
            more = more or len(batch) == left
            left -= len(batch)
            raw += [(ledger.node, ledger.ledger, row.ledger_index, bytes(row.record)) for row in batch]
    found = await asyncio.to_thread(_parsed, raw)
    intents = await _intents(connection, found)
    events = [event for one in found if (event := _event(*one, intents)) is not None]
    events.sort(key=lambda event: event.at_ms)
    return Fresh(events, reached, more)


_Key = tuple[str, bytes, int]
_Found = tuple[str, str, int, Intent | Outcome]  # node, ledger, index


def _parsed(raw: Iterable[tuple[str, str, int, bytes]]) -> list[_Found]:
    """Return what records say; they were checked when they came, so one that cannot be read was damaged here."""
    found: list[_Found] = []
    for node, ledger, index, data in raw:
        try:
            found.append((node, ledger, index, parse_record(data)))
        except EvidenceError as error:
            logger.error("record %d of %s %s is damaged in the store: %s", index, node, ledger, error)
    return found


async def _intents(connection: AsyncConnection, found: Iterable[_Found]) -> dict[_Key, tuple[str, str, str]]:
    """Return caller, service and method of every execution that an outcome closes."""
    known: dict[_Key, tuple[str, str, str]] = {}
    wanted: set[bytes] = set()
    for node, _, _, record in found:
        key = (node, record.execution_id, int(record.side))
        if isinstance(record, Intent):
            known[key] = (record.caller, record.service, record.method)
        elif key not in known:
            wanted.add(record.execution_id)
    ids = sorted(wanted)
    for start in range(0, len(ids), _CHUNK):
        query = sa.select(
            executions.c.node,
            executions.c.execution_id,
            executions.c.side,
            executions.c.caller,
            executions.c.service,
            executions.c.method,
        ).where(executions.c.execution_id.in_(ids[start : start + _CHUNK]))
        for row in await connection.execute(query):
            key = (row.node, bytes(row.execution_id), row.side)
            known.setdefault(key, (row.caller, row.service, row.method))
    return known


def _event(
    node: str,
    ledger: str,
    index: int,
    record: Intent | Outcome,
    intents: Mapping[_Key, tuple[str, str, str]],
) -> Event | None:
    evidence = Evidence(node, ledger, index, record.execution_id)
    if isinstance(record, Intent):
        return Decided(
            evidence=evidence,
            at_ms=record.wall_ms,
            side=record.side,
            caller=record.caller,
            service=record.service,
            method=record.method,
            allowed=record.allowed,
            reason=record.reason,
            would_deny=record.would_deny,
            parent_id=record.parent_id if record.side is Side.OUTBOUND else b"",
        )
    about = intents.get((node, record.execution_id, int(record.side)))
    if about is None:
        return None  # its intent left the index before it came
    caller, service, method = about
    return Ended(
        evidence=evidence,
        at_ms=record.wall_ms,
        side=record.side,
        caller=caller,
        service=service,
        method=method,
        status=record.status,
        duration_us=record.duration_us,
        request_bytes=record.request_bytes,
        response_bytes=record.response_bytes,
    )
