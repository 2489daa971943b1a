"""What detection reads and remembers: records in ledger order, who detects, and what was learned of which records."""

import asyncio
import json
import logging
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.analytics import Key
from control_plane.core.findings import Event
from control_plane.core.fresh import FreshEvents, Part
from control_plane.core.standing import Weight
from control_plane.core.taking import Begun, event_of
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
_PIECE: Final = 20  # entries of what was learned that are written at a time


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


def pack(state: Mapping[str, Any]) -> bytes:
    """Return what was learned as bytes for the store. In a thread: it may take half a second, and holds up no other."""
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(text.encode()) for text in _pieces(state)), packer.flush()])


def _pieces(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the JSON of a mapping in small pieces: one call for all of it would keep every other thread waiting."""
    before = "{"
    for key, value in state.items():
        yield f"{before}{json.dumps(key)}:"
        before = ","
        if not isinstance(value, list):
            yield _json(value)
            continue
        yield "["
        for start in range(0, len(value), _PIECE):
            yield ("," if start else "") + _json(value[start : start + _PIECE])[1:-1]
        yield "]"
    yield "{}" if before == "{" else "}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


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
    here: FreshEvents | None = None,
) -> Fresh:
    """Return the records after those indexes, as many of every node that has any, as events in the order of time.

    A node with many ledgers, or with more records than can be looked at, keeps those of no other waiting.

    Args:
        connection: to read with.
        after: ledger -> up to where it was looked at.
        turn: which nodes come first when there are too many for one step; goes up with each step.
        most: records at most.
        here: events of records that this control plane took; what is not there is read.
    """
    here = FreshEvents() if here is None else here
    rows = await connection.execute(waiting_statement())
    by_node: dict[str, list[Any]] = {}
    for row in rows:
        if row.next_index > after.get(row.id, 0):
            by_node.setdefault(row.node, []).append(row)
    first = turn % max(1, len(by_node))
    names = sorted(by_node)
    chosen = [*names[first:], *names[:first]][: most // _MIN_SHARE]
    reached: dict[int, int] = {}
    events: list[Event] = []
    more = len(chosen) < len(names)
    for node in chosen:
        left = most // len(chosen)
        for ledger in by_node[node]:
            at = after.get(ledger.id, 0)
            while left > 0 and at < ledger.next_index:
                part = here.take(ledger.id, at, most=left, end=ledger.next_index)
                if part is None:
                    part = await _read(connection, ledger, at, left)
                left -= min(left, max(1, part.end - part.first))
                at = part.end
                events += part.events
            reached[ledger.id] = at
            more = more or at < ledger.next_index
    events.sort(key=lambda event: event.at_ms)
    return Fresh(events, reached, more)


async def _read(connection: AsyncConnection, ledger: Any, at: int, most: int) -> Part:
    """Return the events of at most `most` records of a ledger from `at` on, as the store has them."""
    query = sa.select(records.c.ledger_index, records.c.record).where(
        records.c.ledger_id == ledger.id,
        records.c.ledger_index >= at,
        records.c.ledger_index < ledger.next_index,
    )
    rows = (await connection.execute(query.order_by(records.c.ledger_index).limit(most))).all()
    # without a row, what is missing was archived before it was shipped, or forgotten
    end = rows[-1].ledger_index + 1 if len(rows) == most else ledger.next_index
    raw = [(row.ledger_index, bytes(row.record)) for row in rows]
    found = await asyncio.to_thread(_parsed, ledger, raw)
    begun = await _begun(connection, ledger, {record.execution_id for _, record in found})
    events: list[Event] = []
    for index, record in found:
        known = begun.get((record.execution_id, int(record.side)))
        # an id used twice: the index has the first, and of the others nothing is concluded
        if known is None or (isinstance(record, Intent) and known[1] != (ledger.id, index)):
            continue
        event = event_of(ledger.node, ledger.ledger, index, record, known[0])
        events += [] if event is None else [event]
    return Part(at, end, events)


def _parsed(ledger: Any, raw: Iterable[tuple[int, bytes]]) -> list[tuple[int, Intent | Outcome]]:
    """Return what records say; they were checked when they came, so one that cannot be read was damaged here."""
    found: list[tuple[int, Intent | Outcome]] = []
    for index, data in raw:
        try:
            found.append((index, parse_record(data)))
        except EvidenceError as error:
            logger.error(
                "record %d of %s %s is damaged in the store: %s", index, ledger.node, ledger.ledger, error
            )
    return found


async def _begun(
    connection: AsyncConnection, ledger: Any, ids: Collection[bytes]
) -> dict[tuple[bytes, int], tuple[Begun, tuple[int, int]]]:
    """Return how executions of a node began, and where the index has their intents (ledger, index)."""
    known: dict[tuple[bytes, int], tuple[Begun, tuple[int, int]]] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), _CHUNK):
        query = sa.select(
            executions.c.execution_id,
            executions.c.side,
            executions.c.ledger_id,
            executions.c.intent_index,
            executions.c.caller,
            executions.c.service,
            executions.c.method,
            executions.c.counts,
        ).where(
            executions.c.node == ledger.node,
            executions.c.execution_id.in_(wanted[start : start + _CHUNK]),
        )
        for row in await connection.execute(query):
            key = Key(ledger.node, Side(row.side), row.caller, row.service, row.method)
            known[bytes(row.execution_id), row.side] = (
                Begun(key, Weight(row.counts)),
                (row.ledger_id, row.intent_index),
            )
    return known
