"""Takes batches of execution records into the index: several in one transaction, each record handled once."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.core.analytics import Key, deltas
from control_plane.core.executions import Batch, new_records
from control_plane.core.fresh import FreshEvents
from control_plane.core.standing import Serves, Standing, Weight
from control_plane.core.taking import EXECUTION_COLUMNS, Begun, Place, Taken, missing_intents, take
from control_plane.edge.store import analytics, fleet
from control_plane.edge.store.database import Database, fetch, run_many
from control_plane.edge.store.models import executions as table
from control_plane.edge.store.models import record_ledgers, records
from trust import limits
from trust.errors import CapacityError, EvidenceError, MeshError, Reason
from trust.record import Side

_CHUNK: Final = 400  # keys in one statement
_INLINE: Final = 64  # new records that are looked at without a thread
_MAX_KNOWN: Final = 20_000  # of each kind, kept between batches
_STANDING_MS: Final = 10_000  # after which what a node was enrolled for is read again
_RECORDS: Final = "INSERT INTO records (ledger_id, ledger_index, record) VALUES (?, ?, ?)"
# An id used twice: the first stays in the index, both stay in the records. An outcome that came with its intent is in
# the row already; if that intent was not the first, it closes the first one as it would have in a batch of its own.
_EXECUTIONS: Final = (
    f"INSERT INTO executions ({', '.join(EXECUTION_COLUMNS)}) "  # noqa: S608  # names of ours
    f"VALUES ({', '.join('?' * len(EXECUTION_COLUMNS))}) "
    "ON CONFLICT (node, execution_id, side) DO UPDATE "
    "SET outcome_index = excluded.outcome_index, outcome_bytes = excluded.outcome_bytes "
    "WHERE executions.ledger_id = excluded.ledger_id AND executions.outcome_index IS NULL "
    "AND executions.intent_index < excluded.outcome_index"
)
# the outcome before its intent is a lie, and would be forgotten before it
_ENDINGS: Final = (
    "UPDATE executions SET outcome_index = ?, outcome_bytes = ? "
    "WHERE node = ? AND execution_id = ? AND side = ? AND ledger_id = ? AND intent_index < ? "
    "AND outcome_index IS NULL"
)
# in one order, so that two control planes never deadlock
_NEXT: Final = "SELECT id, next_index FROM record_ledgers WHERE id IN ({marks}) ORDER BY id {locking}"
_REACHED: Final = "UPDATE record_ledgers SET next_index = ?, missing = missing + ? WHERE id = ?"
Ledger = tuple[str, str]  # node, name


class Intake:
    """Takes batches, and remembers between them what it would otherwise ask the store for each time. One event loop.

    What it remembers never changes in the store (row numbers, how an execution began), or is read again in time (for
    whom a node speaks). After a transaction that failed it begins anew.
    """

    def __init__(
        self,
        trust_domain: str,
        now_ms: Callable[[], int],
        *,
        serves: Serves = lambda _service: None,
        fresh: FreshEvents | None = None,
    ) -> None:
        """Take the parts.

        Args:
            trust_domain: of this mesh.
            now_ms: Unix ms.
            serves: which workload may serve a service by the policy in force.
            fresh: told what is new, for detection, once it is durable.
        """
        self._trust_domain, self._now_ms, self._serves = trust_domain, now_ms, serves
        self._fresh = FreshEvents() if fresh is None else fresh
        self._ledgers: dict[Ledger, int] = {}
        self._keys: dict[Key, int] = {}
        self._begun: dict[Place, Begun] = {}
        self._standings: dict[str, tuple[Standing, int]] = {}

    async def take(self, database: Database, batches: Sequence[Batch]) -> list[int | MeshError]:
        """Take batches of distinct ledgers in one transaction; return for each its position after it, or why not.

        Raises:
            StateError: the store failed; nothing was taken.
        """
        try:
            async with database.write() as connection:
                answers, taken = await self._take(connection, batches)
        except BaseException:
            self._forget()
            raise
        for one in taken:
            self._begun |= one.begun
            self._fresh.put(one.ledger_id, one.first, one.batch.end, one.events)
        self._bound()
        return answers

    async def _take(
        self, connection: AsyncConnection, batches: Sequence[Batch]
    ) -> tuple[list[int | MeshError], list[Taken]]:
        answers: list[int | MeshError] = []
        reached: list[tuple[int, int, int]] = []
        new: list[tuple[Batch, int, int]] = []  # batch, held, ledger
        rows = await self._locked(connection, batches)
        for batch in batches:
            try:
                row = rows[batch.node, batch.ledger]
                if isinstance(row, MeshError):
                    raise row
                ledger_id, next_index = row
                held = new_records(batch, next_index)
                if held:
                    await _compare(connection, ledger_id, batch, held)
            except MeshError as error:
                answers.append(error)
                continue
            answers.append(max(next_index, batch.end))
            if held < len(batch.raw):
                new.append((batch, held, ledger_id))
                reached.append((batch.end, batch.first_index + held - next_index, ledger_id))
        if not new:
            return answers, []
        taken = await self._looked_at(connection, new)
        await self._write(connection, taken, reached)
        return answers, taken

    async def _looked_at(
        self, connection: AsyncConnection, new: Sequence[tuple[Batch, int, int]]
    ) -> list[Taken]:
        standings = await self._standings_of(connection, {batch.node for batch, _, _ in new})
        known: dict[str, Mapping[Place, Begun]] = {}
        for batch, held, _ in new:
            missing = missing_intents(batch, held, self._begun)
            found = await _begun(connection, batch.node, missing) if missing else {}
            known[batch.node] = {**known.get(batch.node, {}), **found}

        def look() -> list[Taken]:
            return [
                take(
                    batch,
                    held,
                    ledger_id,
                    standing=standings[batch.node],
                    serves=self._serves,
                    known=_Both(known[batch.node], self._begun),
                    events=self._fresh.wanted,
                )
                for batch, held, ledger_id in new
            ]

        few = sum(len(batch.raw) - held for batch, held, _ in new) <= _INLINE
        return look() if few else await asyncio.to_thread(look)

    async def _write(
        self, connection: AsyncConnection, taken: Sequence[Taken], reached: Sequence[tuple[int, int, int]]
    ) -> None:
        found = deltas((pair for one in taken for pair in one.counted), now_ms=self._now_ms())
        by_node: dict[str, set[Key]] = {}
        for delta in found:
            by_node.setdefault(delta[2].node, set()).add(delta[2])
        for node in sorted(by_node):
            if missing := by_node[node] - self._keys.keys():
                self._keys |= await analytics.ids_of(connection, node, missing)
        endings = [(*e, e.outcome_index) for one in taken for e in one.endings]
        await run_many(
            connection,
            [
                (_RECORDS, [row for one in taken for row in one.records]),
                (_EXECUTIONS, [row for one in taken for row in one.executions]),
                (_ENDINGS, endings),
                (analytics.ADD, analytics.rows_of(found, self._keys)),
                (_REACHED, reached),
            ],
        )

    async def _locked(
        self, connection: AsyncConnection, batches: Iterable[Batch]
    ) -> dict[Ledger, tuple[int, int] | MeshError]:
        """Return (row, next index) of each ledger; nobody else extends it in this transaction."""
        found: dict[Ledger, tuple[int, int] | MeshError] = {}
        ids: dict[int, Ledger] = {}
        for ledger in sorted({(batch.node, batch.ledger) for batch in batches}):
            if ledger not in self._ledgers:
                try:
                    self._ledgers[ledger] = await _ledger_id(connection, *ledger)
                except CapacityError as error:
                    found[ledger] = error
                    continue
            ids[self._ledgers[ledger]] = ledger
        locking = "" if connection.dialect.name == "sqlite" else "FOR UPDATE"
        wanted = sorted(ids)
        for start in range(0, len(wanted), _CHUNK):
            some = wanted[start : start + _CHUNK]
            query = _NEXT.format(marks=", ".join("?" * len(some)), locking=locking)
            for ledger_id, next_index in await fetch(connection, query, some):
                found[ids[ledger_id]] = (ledger_id, next_index)
        return found

    async def _standings_of(
        self, connection: AsyncConnection, nodes: Collection[str]
    ) -> Mapping[str, Standing]:
        now_ms = self._now_ms()
        old = [
            node
            for node in nodes
            if node not in self._standings or abs(now_ms - self._standings[node][1]) >= _STANDING_MS
        ]
        if old:
            held = await fleet.workloads_of(connection, old)
            for node in old:
                self._standings[node] = (Standing(self._trust_domain, held.get(node)), now_ms)
        return {node: self._standings[node][0] for node in nodes}

    def _forget(self) -> None:
        for known in (self._ledgers, self._keys, self._begun, self._standings):
            known.clear()

    def _bound(self) -> None:
        while len(self._begun) > _MAX_KNOWN:
            del self._begun[next(iter(self._begun))]
        for known in (self._ledgers, self._keys, self._standings):
            if len(known) > _MAX_KNOWN:
                known.clear()


class _Both(Mapping[Place, Begun]):
    """What is in either of two mappings, without a copy of the large one."""

    def __init__(self, first: Mapping[Place, Begun], second: Mapping[Place, Begun]) -> None:
        self._first, self._second = first, second

    def __getitem__(self, place: Place) -> Begun:
        found = self._first.get(place)
        return self._second[place] if found is None else found

    def __iter__(self) -> Any:
        return iter({**self._second, **self._first})

    def __len__(self) -> int:
        return len({**self._second, **self._first})


async def _ledger_id(connection: AsyncConnection, node: str, ledger: str) -> int:
    """Return the row of a ledger, made if there is none. Raises CapacityError LIMIT_EXCEEDED."""
    here = sa.select(record_ledgers.c.id).where(
        record_ledgers.c.node == node, record_ledgers.c.ledger == ledger
    )
    found: int | None = (await connection.execute(here)).scalar_one_or_none()
    if found is not None:
        return found
    count = sa.select(sa.func.count()).select_from(record_ledgers).where(record_ledgers.c.node == node)
    if (await connection.execute(count)).scalar_one() >= limits.MAX_LEDGERS_PER_NODE:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED,
            f"{node} has shipped {limits.MAX_LEDGERS_PER_NODE} ledgers; it must not start more",
        )
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"node": node, "ledger": ledger, "next_index": 0, "missing": 0}
    await connection.execute(insert(record_ledgers).on_conflict_do_nothing(), [values])
    made: int = (await connection.execute(here)).scalar_one()
    return made


async def _compare(connection: AsyncConnection, ledger_id: int, batch: Batch, held: int) -> None:
    query = sa.select(records.c.ledger_index, records.c.record).where(
        records.c.ledger_id == ledger_id,
        records.c.ledger_index >= batch.first_index,
        records.c.ledger_index < batch.first_index + held,
    )
    for row in await connection.execute(query):
        if bytes(row.record) != batch.raw[row.ledger_index - batch.first_index]:
            raise EvidenceError(
                Reason.DIGEST_MISMATCH,
                f"{batch.node} shipped other bytes as record {row.ledger_index} of {batch.ledger} before",
            )


async def _begun(connection: AsyncConnection, node: str, ended: Collection[bytes]) -> dict[Place, Begun]:
    """Return how each execution began that `node` recorded under one of these ids."""
    found: dict[Place, Begun] = {}
    wanted = sorted(ended)
    for start in range(0, len(wanted), _CHUNK):
        query = sa.select(
            table.c.execution_id,
            table.c.side,
            table.c.caller,
            table.c.service,
            table.c.method,
            table.c.counts,
        ).where(table.c.node == node, table.c.execution_id.in_(wanted[start : start + _CHUNK]))
        for row in await connection.execute(query):
            key = Key(node, Side(row.side), row.caller, row.service, row.method)
            found[node, bytes(row.execution_id), row.side] = Begun(key, Weight(row.counts))
    return found
