"""Forgets what the index need not know any more: the oldest records of each ledger, in small steps.

Of a ledger always a prefix is forgotten, with the executions that began in it: what is left is never half there. The
nodes' ledgers and their archives keep everything. How far a ledger was taken is not forgotten, so nothing is shipped
twice.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.edge.store.models import executions, record_ledgers, records
from trust import limits
from trust.record import Intent, parse_record


async def ledgers(connection: AsyncConnection) -> Sequence[int]:
    """Return every ledger that the index follows."""
    return (
        (await connection.execute(sa.select(record_ledgers.c.id).order_by(record_ledgers.c.id)))
        .scalars()
        .all()
    )


async def prune(
    connection: AsyncConnection, ledger: int, *, before_ms: int, most: int = limits.PRUNE_BATCH_RECORDS
) -> int:
    """Forget the first records of one ledger that were written before `before_ms`, in a writing transaction.

    Stops at the first later one, also when older ones follow it (a clock that was set back).

    Returns:
        How many were forgotten; `most` means that there may be more.
    """
    old: list[Any] = []
    forgotten: list[dict[str, Any]] = []
    for row in await connection.execute(oldest_statement(ledger, most)):
        record = parse_record(bytes(row.record))
        if record.wall_ms >= before_ms:
            break
        old.append(row.ledger_index)
        if isinstance(record, Intent):
            forgotten.append(
                {
                    "n": record.node,
                    "e": record.execution_id,
                    "s": int(record.side),
                    "l": ledger,
                    "i": row.ledger_index,
                }
            )
    if forgotten:
        await connection.execute(forget_executions_statement(), forgotten)
    if old:
        await connection.execute(forget_records_statement(ledger, old[-1]))
    return len(old)


def oldest_statement(ledger: int, most: int) -> sa.Select[Any]:
    """Return the statement that reads the first records of a ledger; tests look at its plan."""
    query = sa.select(records.c.ledger_index, records.c.record).where(records.c.ledger_id == ledger)
    return query.order_by(records.c.ledger_index).limit(most)


def forget_executions_statement() -> sa.Delete:
    """Return the statement that forgets one execution; the index has it only if it was the first with its id."""
    return sa.delete(executions).where(
        executions.c.node == sa.bindparam("n"),
        executions.c.execution_id == sa.bindparam("e"),
        executions.c.side == sa.bindparam("s"),
        executions.c.ledger_id == sa.bindparam("l"),
        executions.c.intent_index == sa.bindparam("i"),
    )


def forget_records_statement(ledger: int, upto: int) -> sa.Delete:
    """Return the statement that forgets the records of a ledger up to index `upto`."""
    return sa.delete(records).where(records.c.ledger_id == ledger, records.c.ledger_index <= upto)
