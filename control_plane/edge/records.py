"""Execution records: taken from the nodes that wrote them, durable before they are acknowledged; and found again."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc.aio

from control_plane.core.executions import (
    DEFAULT_PAGE,
    Batch,
    Cursor,
    Query,
    check_batch,
    check_ledger,
    parse_decision,
)
from control_plane.edge.callers import current_caller
from control_plane.edge.store import executions
from control_plane.edge.store.database import Database
from control_plane.edge.store.intake import Intake
from egm.v1 import record_pb2, record_pb2_grpc
from trust import limits
from trust.edge.tls import peer_of
from trust.errors import CapacityError, InputError, Reason, StateError
from trust.ports import Clock
from trust.record_rules import ID_BYTES
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

# The share of time that taking records leaves to other writers of the store: the lease must be renewed in time,
# however many records come in.
_YIELD: Final = 0.25
_INLINE: Final = 64  # records that are checked without a thread: some milliseconds
_FAILED_IN_A_ROW: Final = 8  # transactions of one node each, after which the store counts as away
_POSITIONS_AT_ONCE: Final = 4  # when every node asks at once, others need the store, too
Context = grpc.aio.ServicerContext[Any, Any]
_Waiting = tuple[Batch, asyncio.Future[int]]


class RecordsServicer(record_pb2_grpc.RecordsServicer):
    """egm.v1.Records."""

    def __init__(self, database: Database, clock: Clock, intake: Intake, *, trust_domain: str) -> None:
        """Take records into `database` by `intake`."""
        self._database, self._clock, self._trust_domain = database, clock, trust_domain
        self._intake = intake
        self._waiting: deque[_Waiting] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._checking = asyncio.Lock()
        self._asking = asyncio.Semaphore(_POSITIONS_AT_ONCE)
        self._closing = asyncio.Event()
        self._streams: Counter[str] = Counter()  # node -> open now

    def close(self) -> None:
        """End every stream after the batch it is at: the server is draining."""
        self._closing.set()

    async def Position(
        self, request: record_pb2.PositionRequest, context: Context
    ) -> record_pb2.PositionResponse:
        """Say how far the index of one ledger of the caller reaches."""
        check_ledger(current_caller(), request.node, request.ledger)
        async with self._asking, self._database.read() as connection:
            found = await executions.position(connection, request.node, request.ledger)
        return record_pb2.PositionResponse(next_index=found)

    async def Ship(
        self, request_iterator: AsyncIterator[record_pb2.ShipRequest], context: Context
    ) -> AsyncIterator[record_pb2.ShipAck]:
        """Take batches in order; acknowledge each once it is durable."""
        caller = current_caller()
        node = caller.name
        own, all_streams = self._streams[node], self._streams.total()
        if own >= limits.MAX_SHIP_STREAMS_PER_NODE or all_streams >= limits.MAX_SHIP_STREAMS:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED,
                f"{own} streams of {node} and {all_streams} of all nodes are open; try later",
            )
        self._streams[node] += 1
        try:
            async with aclosing(_until(request_iterator, self._closing)) as requests:
                async for request in requests:
                    # a stream lives long: the certificate must still be good now
                    peer_of(context, trust_domain=self._trust_domain, now_ms=self._clock.now_ms())
                    batch = await self._checked(caller, request)
                    yield record_pb2.ShipAck(next_index=await self._take(batch))
        finally:
            self._streams[node] -= 1
            if not self._streams[node]:
                del self._streams[node]

    async def _checked(self, caller: SpiffeId, request: record_pb2.ShipRequest) -> Batch:
        """Check one message; a large one in a thread, one at a time, so that other calls are answered meanwhile."""

        def check() -> Batch:
            return check_batch(
                caller,
                node=request.node,
                ledger=request.ledger,
                first_index=request.first_index,
                records=request.records,
                after_gap=request.after_gap,
            )

        if len(request.records) <= _INLINE:
            return check()
        async with self._checking:
            return await asyncio.to_thread(check)

    async def _take(self, batch: Batch) -> int:
        """Take a batch with what else waits by then: a transaction costs about the same for one node as for many."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, answer))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        reached = await answer
        if batch.after_gap:
            logger.warning("records of %s before %d are archived: not indexed", batch.node, batch.first_index)
        return reached

    async def _write(self) -> None:
        """Take everything that waits; a stream that ends meanwhile interrupts nothing of the others."""
        while self._waiting:
            began = time.monotonic()
            group = self._next_group()
            error = await self._take_group(group)
            if error is not None and len(group) > 1:
                logger.warning(
                    "records of %d nodes are not taken together, each is tried: %s", len(group), error
                )
                await self._take_each(group)
            elif error is not None:
                _tell(group[0][1], error)
            await asyncio.sleep((time.monotonic() - began) * _YIELD)

    async def _take_group(self, group: Sequence[_Waiting]) -> Exception | None:
        """Take batches in one transaction and tell who waits; or return why none was taken, and tell nobody."""
        try:
            found = await self._intake.take(self._database, [batch for batch, _ in group])
        except Exception as error:  # noqa: BLE001  # whoever waits is told, and raises it
            return error
        except BaseException:  # this control plane stops
            for _, answer in group:
                _tell(answer, _not_taken())
            raise
        for (_, answer), one in zip(group, found, strict=True):
            _tell(answer, one)
        return None

    async def _take_each(self, group: Sequence[_Waiting]) -> None:
        """Take batches one by one: what the store does not take of one node must not keep back those of others."""
        failed = 0
        for place, one in enumerate(group):
            error = await self._take_group([one])
            if error is None:
                continue
            _tell(one[1], error)
            failed += 1
            if failed == place + 1 == _FAILED_IN_A_ROW:  # it is the store itself
                for _, answer in group[place + 1 :]:
                    _tell(answer, error)
                return

    def _next_group(self) -> list[_Waiting]:
        """Return what comes next, in order: at most one batch of each ledger, and so many records."""
        group: dict[tuple[str, str], _Waiting] = {}
        later: list[_Waiting] = []
        count = 0
        while self._waiting and count < limits.MAX_SHIP_BATCH_RECORDS:
            one = self._waiting.popleft()
            ledger = (one[0].node, one[0].ledger)
            if one[1].cancelled():  # its stream has ended
                continue
            if ledger in group:
                later.append(one)
                continue
            group[ledger] = one
            count += len(one[0].raw)
        self._waiting.extendleft(reversed(later))
        return list(group.values())


def _tell(answer: asyncio.Future[int], found: int | Exception) -> None:
    if answer.done():  # nobody waits any more
        return
    if isinstance(found, int):
        answer.set_result(found)
    else:
        answer.set_exception(found)
        answer.exception()  # a stream that ends at this moment does not hear of it, and need not


def _not_taken() -> StateError:
    return StateError(Reason.SOURCE_UNAVAILABLE, "this control plane stops; ship the records again")


async def _until(
    requests: AsyncIterator[record_pb2.ShipRequest], closing: asyncio.Event
) -> AsyncGenerator[record_pb2.ShipRequest]:
    """Yield requests until they end, `closing` is set, or the stream is as old as a connection may be."""
    stop = asyncio.ensure_future(closing.wait())
    ends = time.monotonic() + limits.MAX_CONNECTION_AGE_MS / 1000
    try:
        while (left := ends - time.monotonic()) > 0:
            following = asyncio.ensure_future(anext(requests, None))
            await asyncio.wait({following, stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                return
            request = following.result()
            if request is None or stop.done():
                return
            yield request
    finally:
        stop.cancel()


class ExecutionQueries:
    """What operators ask of the index."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, request: record_pb2.GetExecutionRequest) -> record_pb2.GetExecutionResponse:
        """Return every side of one execution; INPUT_INVALID or NOT_FOUND."""
        wanted = _checked_id(request.execution_id)
        async with self._database.read() as connection:
            found = await executions.get(connection, wanted)
        if not found:
            raise _unknown()
        return record_pb2.GetExecutionResponse(entries=map(_to_wire, found))

    async def page(self, request: record_pb2.ListExecutionsRequest) -> record_pb2.ListExecutionsResponse:
        """Return one page, newest first; INPUT_INVALID."""
        query = Query(
            limit=request.limit or DEFAULT_PAGE,
            cursor=Cursor.parse(request.cursor) if request.cursor else None,
            caller=request.caller,
            service=request.service,
            method=request.method,
            decision=parse_decision(request.decision),
            reason=request.reason,
            node=request.node,
            since_ms=request.since_ms,
            until_ms=request.until_ms,
        )
        async with self._database.read() as connection:
            found, cursor = await executions.page(connection, query)
        following = "" if cursor is None else str(cursor)
        return record_pb2.ListExecutionsResponse(entries=map(_to_wire, found), next_cursor=following)

    async def tree(self, request: record_pb2.GetTreeRequest) -> record_pb2.GetTreeResponse:
        """Return the chain of an execution, whichever of it is asked for; INPUT_INVALID or NOT_FOUND."""
        wanted = _checked_id(request.root_id)
        async with self._database.read() as connection:
            root, found, truncated = await executions.trees(connection, wanted)
        if not found:
            raise _unknown()
        return record_pb2.GetTreeResponse(root_id=root, entries=map(_to_wire, found), truncated=truncated)


def _checked_id(value: bytes) -> bytes:
    if len(value) != ID_BYTES:
        raise InputError(Reason.INPUT_INVALID, f"an execution id has {ID_BYTES} bytes, not {len(value)}")
    return value


def _unknown() -> InputError:
    return InputError(
        Reason.NOT_FOUND,
        "no node has shipped records of this execution; see 'egm lineage list' "
        "(a node that cannot reach the control plane ships them later)",
    )


def _to_wire(entry: executions.Entry) -> record_pb2.ExecutionEntry:
    return record_pb2.ExecutionEntry(
        node=entry.node,
        ledger=entry.ledger,
        intent_index=entry.intent_index,
        intent=entry.intent,
        outcome_index=entry.outcome_index or 0,
        outcome=entry.outcome,
    )
