"""Records on their way from a node's ledger to the control plane's index, over real sockets."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.lab.ports import free_port
from egm.v1 import record_pb2 as pb
from egm.v1 import record_pb2_grpc as rpc
from sidecar.edge.shipping import Shipper
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running, running
from tests.support.eventually import eventually
from tests.support.record_ledger import MemoryLedger
from tests.support.records import intent, outcome
from trust import limits
from trust.backoff import Backoff
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.identity_directory import DirectoryIdentity
from trust.edge.tls import Channels, ServerCredentials
from trust.errors import Reason
from trust.record import build_record
from trust.spiffe import SpiffeId

FAST = Backoff(min_ms=10, max_ms=50)


def channels_of(domain: Domain, node: str) -> tuple[Channels, SpiffeId]:
    """Return the channels of a node with a certificate of its own."""
    spiffe_id = SpiffeId.of(TRUST_DOMAIN, "node", node)
    directory = domain.home / "nodes" / node
    issue_to_directory(CertificateAuthority.open(domain.directory / "ca"), spiffe_id, directory)
    return Channels(DirectoryIdentity(directory, SystemClock())), spiffe_id


@contextlib.asynccontextmanager
async def shipping(
    domain: Domain,
    ledger: MemoryLedger,
    addresses: Sequence[str],
    *,
    node: str = "a",
    window: int = limits.SHIP_WINDOW_RECORDS,
    ack_timeout_s: float = 20.0,
) -> AsyncIterator[Shipper]:
    """Run a shipper until the block ends."""
    channels, spiffe_id = channels_of(domain, node)
    shipper = Shipper(
        channels,
        addresses,
        node=spiffe_id,
        ledger="ledger-1",
        source=ledger.read,
        size=ledger.size,
        window=window,
        ack_timeout_s=ack_timeout_s,
        retry=FAST,
    )
    task = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await channels.close()


async def shipped(shipper: Shipper, next_index: int) -> None:
    """Wait until everything below `next_index` is acknowledged."""
    try:
        async with asyncio.timeout(60):
            await shipper.wait_for(next_index)
    except TimeoutError:
        raise AssertionError(f"{shipper.acknowledged} of {next_index}: {shipper.last_error}") from None


async def indexed(plane: Running) -> list[bytes]:
    """Return every intent in the index, oldest first."""
    found: list[bytes] = []
    cursor = ""
    async with plane.operator() as operator:
        while True:
            answer = await operator.executions(pb.ListExecutionsRequest(limit=1_000, cursor=cursor))
            found += [entry.intent for entry in answer.entries]
            cursor = answer.next_cursor
            if not cursor:
                return found[::-1]


def intents(first: int, last: int) -> list[bytes]:
    """Return the records of executions of node a."""
    return [build_record(intent(number)) for number in range(first, last + 1)]


async def test_records_arrive_in_order_as_they_are_written(domain: Domain) -> None:
    """Those that were there before and those that come later."""
    ledger = MemoryLedger(intents(1, 3_000))
    async with running(domain) as plane, shipping(domain, ledger, [plane.listen]) as shipper:
        await shipped(shipper, 3_000)
        ledger.append(outcome(intent(3_000)), intent(3_001))
        await shipped(shipper, 3_002)
        assert shipper.lag == 0
        assert await indexed(plane) == intents(1, 3_001)
        async with plane.operator() as operator:
            (entry,) = await operator.execution(intent(3_000).execution_id)
        assert entry.outcome == build_record(outcome(intent(3_000)))


async def test_a_restarted_node_resumes_where_the_index_ends(domain: Domain) -> None:
    """Nothing is remembered on the node; the control plane says how far it has come."""
    ledger = MemoryLedger(intents(1, 10))
    async with running(domain) as plane:
        async with shipping(domain, ledger, [plane.listen]) as shipper:
            await shipped(shipper, 10)
        ledger.append(*intents(11, 20))
        async with shipping(domain, ledger, [plane.listen]) as shipper:
            await shipped(shipper, 20)
        assert ledger.reads == [0, 10]
        assert await indexed(plane) == intents(1, 20)


async def test_a_disk_that_cannot_be_read_is_told_and_does_not_end_shipping(domain: Domain) -> None:
    """Whatever ends the shipper ends the sidecar, and every call with it."""

    class Broken(MemoryLedger):
        async def read(self, start: int) -> AsyncGenerator[tuple[int, list[bytes]]]:
            self.reads.append(start)
            if self.records:
                raise OSError(errno.EIO, "Input/output error")
            yield 0, []

    ledger = Broken(intents(1, 3))
    async with running(domain) as plane, shipping(domain, ledger, [plane.listen]) as shipper:
        await eventually(lambda: shipper.last_error, "the shipper says that the disk fails")
    assert "LEDGER_UNAVAILABLE: the ledger cannot be read: Input/output error" in str(shipper.last_error)


async def test_records_written_during_a_partition_arrive_after_it(domain: Domain) -> None:
    """The control plane stops and comes back elsewhere with its store: none is lost, none twice."""
    ledger = MemoryLedger(intents(1, 5))
    config = domain.config(
        listen=f"127.0.0.1:{free_port(set())}"
    )  # none that the kernel gives away meanwhile
    async with contextlib.AsyncExitStack() as stack:
        async with running(domain, config) as plane:
            shipper = await stack.enter_async_context(shipping(domain, ledger, [plane.listen]))
            await shipped(shipper, 5)
        ledger.append(*intents(6, 2_500))
        await eventually(lambda: shipper.last_error, "the shipper says that nobody answers")
        assert shipper.lag == 2_495
        async with running(domain, config) as plane:
            await shipped(shipper, 2_500)
            assert shipper.last_error is None
            assert await indexed(plane) == intents(1, 2_500)


async def test_a_second_control_plane_with_the_same_store_takes_over(
    domain: Domain, shared_store: str
) -> None:
    """Position and records are in the shared store, so either may acknowledge."""
    ledger = MemoryLedger(intents(1, 100))
    async with contextlib.AsyncExitStack() as stack:
        two = await stack.enter_async_context(running(domain, domain.config("cp-2", store=shared_store)))
        async with running(domain, domain.config("cp-1", store=shared_store)) as one:
            shipper = await stack.enter_async_context(shipping(domain, ledger, [one.listen, two.listen]))
            await shipped(shipper, 100)
        ledger.append(*intents(101, 200))
        await shipped(shipper, 200)
        assert await indexed(two) == intents(1, 200)


async def test_two_shippers_of_one_ledger_do_no_harm(domain: Domain) -> None:
    """A reconnect may overlap the stream that it replaces."""
    ledger = MemoryLedger(intents(1, 2_000))
    async with (
        running(domain) as plane,
        shipping(domain, ledger, [plane.listen]) as one,
        shipping(domain, ledger, [plane.listen]) as two,
    ):
        await shipped(one, 2_000)
        await shipped(two, 2_000)
        assert await indexed(plane) == intents(1, 2_000)


async def test_a_small_window_holds_the_reader_back_and_loses_nothing(domain: Domain) -> None:
    """Back-pressure: what is not acknowledged bounds what is read."""
    ledger = MemoryLedger(intents(1, 500))
    async with running(domain) as plane, shipping(domain, ledger, [plane.listen], window=7) as shipper:
        await shipped(shipper, 500)
        assert await indexed(plane) == intents(1, 500)


async def test_archived_records_are_skipped_openly(domain: Domain) -> None:
    """A ledger that starts at 5,000 because older segments were archived is shipped from there, however far."""
    ledger = MemoryLedger(intents(1, 50), first=5_000)
    async with running(domain) as plane, shipping(domain, ledger, [plane.listen], window=9) as shipper:
        await shipped(shipper, 5_050)
        assert await indexed(plane) == intents(1, 50)


async def test_a_ledger_that_was_set_back_is_noticed_and_not_shipped(domain: Domain) -> None:
    """A restored old disk: the control plane remembers more than the node does."""
    async with running(domain) as plane:
        async with shipping(domain, MemoryLedger(intents(1, 9)), [plane.listen]) as shipper:
            await shipped(shipper, 9)
        older = MemoryLedger(intents(1, 4))
        async with shipping(domain, older, [plane.listen]) as shipper:
            await eventually(lambda: shipper.last_error, "the shipper notices")
            assert "LEDGER_CONTRADICTED" in str(shipper.last_error)
            assert "9 records" in str(shipper.last_error)
            assert older.reads == []


async def test_an_old_ledger_written_on_differently_is_refused(domain: Domain) -> None:
    """A restored disk that grew again has other bytes where the control plane has some already."""
    async with running(domain) as plane:
        async with shipping(domain, MemoryLedger(intents(1, 9)), [plane.listen]) as shipper:
            await shipped(shipper, 9)
        async with plane.channel("node", "a") as channel:
            changed = [*intents(1, 8), *intents(50, 52)]
            answer = await ship(channel, request(changed))
            assert answer is Reason.DIGEST_MISMATCH
        assert await indexed(plane) == intents(1, 9)


def request(records: Sequence[bytes], first: int = 0, **changes: object) -> pb.ShipRequest:
    """Return a batch of node a."""
    fields = {"node": "a", "ledger": "ledger-1", "first_index": first, "records": records} | changes
    return pb.ShipRequest(**fields)  # type: ignore[arg-type]


async def ship(channel: grpc.aio.Channel, *requests: pb.ShipRequest) -> Reason | list[int]:
    """Send batches by hand; return the acknowledgements, or why they were refused."""
    try:
        return [ack.next_index async for ack in rpc.RecordsStub(channel).Ship(iter(requests))]
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error).reason


async def test_a_node_cannot_ship_for_another(domain: Domain) -> None:
    """Neither by naming it in the request, nor by shipping records that another would have written."""
    async with running(domain) as plane:
        async with plane.channel("node", "b") as channel:
            assert await ship(channel, request(intents(1, 1))) is Reason.NOT_AUTHORIZED
            assert await ship(channel, request(intents(1, 1), node="b")) is Reason.NOT_AUTHORIZED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.RecordsStub(channel).Position(pb.PositionRequest(node="a", ledger="ledger-1"))
            assert error_from_rpc(caught.value).reason is Reason.NOT_AUTHORIZED
        for kind in ("operator", "workload", "control-plane"):
            async with plane.channel(kind, "a") as channel:
                # Without a message: a write into a stream that is refused may be told INTERNAL instead.
                assert await ship(channel) is Reason.NOT_AUTHORIZED
        assert await indexed(plane) == []


async def test_a_node_cannot_hold_more_than_a_few_streams(domain: Domain) -> None:
    """One node must not use up what others need."""
    async with running(domain) as plane, plane.channel("node", "a") as channel:
        calls = []
        for number in range(limits.MAX_SHIP_STREAMS_PER_NODE):
            call: Any = rpc.RecordsStub(channel).Ship()  # type: ignore[call-arg]
            await call.write(request(intents(1, number + 1)))
            assert (await call.read()).next_index == number + 1
            calls.append(call)
        assert await ship(channel, request(intents(1, 1))) is Reason.LIMIT_EXCEEDED
        async with plane.channel("node", "b") as other:
            assert await ship(other) == []
        for call in calls:
            await call.done_writing()
            assert await call.read() is cast("Any", grpc.aio).EOF
        assert await ship(channel, request(intents(1, 1))) == [limits.MAX_SHIP_STREAMS_PER_NODE]


async def test_what_is_out_of_order_or_malformed_is_refused(domain: Domain) -> None:
    """Each with its reason; what was acknowledged before stays."""
    good = intents(1, 4)
    async with running(domain) as plane, plane.channel("node", "a") as channel:
        assert await ship(channel, request(good[:2])) == [2]
        assert await ship(channel, request(good[3:], 3)) is Reason.CONFLICT
        assert await ship(channel, request([b"\xff"], 2)) is Reason.RECORD_MALFORMED
        assert await ship(channel, request([good[2] + b"\0"], 2)) is Reason.RECORD_MALFORMED
        assert await ship(channel, request([good[2], b""], 2)) is Reason.RECORD_MALFORMED
        assert await ship(channel, request([], 2)) is Reason.INPUT_INVALID
        assert await ship(channel, request(good, -1)) is Reason.INPUT_INVALID
        assert await ship(channel, request(good[2:], 2, ledger="")) is Reason.INPUT_INVALID
        assert await ship(channel, request(good[2:], 2, ledger="\n")) is Reason.INPUT_INVALID
        many = [b"x"] * (limits.MAX_SHIP_BATCH_RECORDS + 1)
        assert await ship(channel, request(many, 2)) is Reason.LIMIT_EXCEEDED
        # duplicates and overlaps of what is there are acknowledged again
        assert await ship(channel, request(good[:2]), request(good[1:3], 1), request(good[3:], 3)) == [
            2,
            3,
            4,
        ]
        assert await indexed(plane) == good


async def test_queries_with_wrong_values_are_refused(domain: Domain) -> None:
    """An operator's mistake is said plainly."""
    async with running(domain) as plane, plane.channel() as channel:
        from egm.v1 import operator_pb2_grpc

        stub = operator_pb2_grpc.OperatorStub(channel)
        for wrong in (
            pb.ListExecutionsRequest(limit=limits.MAX_EXECUTIONS_PAGE + 1),
            pb.ListExecutionsRequest(limit=-1),
            pb.ListExecutionsRequest(cursor="x"),
            pb.ListExecutionsRequest(decision="maybe"),
            pb.ListExecutionsRequest(caller="\0"),
            pb.ListExecutionsRequest(since_ms=-1),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListExecutions(wrong)
            assert error_from_rpc(caught.value).reason is Reason.INPUT_INVALID, wrong
        for call in (
            stub.GetExecution(pb.GetExecutionRequest(execution_id=b"short")),
            stub.GetTree(pb.GetTreeRequest(root_id=b"")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert error_from_rpc(caught.value).reason is Reason.INPUT_INVALID
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetTree(pb.GetTreeRequest(root_id=intent(1).execution_id))
        assert error_from_rpc(caught.value).reason is Reason.NOT_FOUND


async def test_a_control_plane_drains_at_once_although_nodes_keep_their_streams(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle stream must not hold a restart for the whole grace (here: longer than this test may last)."""
    monkeypatch.setattr(limits, "DRAIN_GRACE_S", 3_600.0)
    ledger = MemoryLedger(intents(1, 1))
    async with contextlib.AsyncExitStack() as stack, running(domain) as plane:
        shipper = await stack.enter_async_context(shipping(domain, ledger, [plane.listen]))
        await shipped(shipper, 1)


async def test_a_stream_that_the_control_plane_ends_for_its_age_is_no_failure(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams end as connections do, so that an expired or revoked certificate cannot keep one; shipping goes on."""
    monkeypatch.setattr(limits, "MAX_CONNECTION_AGE_MS", 150)
    ledger = MemoryLedger(intents(1, 2))
    async with running(domain) as plane, shipping(domain, ledger, [plane.listen]) as shipper:
        await eventually(lambda: len(ledger.reads) > 3, "streams are opened again")
        ledger.append(*intents(3, 4))
        await shipped(shipper, 4)
        assert shipper.last_error is None
        assert await indexed(plane) == intents(1, 4)


async def test_a_source_that_goes_back_ships_nothing_wrong(domain: Domain) -> None:
    """A fault in the reading of a ledger is said, not passed on."""

    class Broken(MemoryLedger):
        async def read(self, start: int) -> AsyncGenerator[tuple[int, list[bytes]]]:
            for index in (start, start + 1, start):
                yield index, [self.records[index]]

    ledger = Broken(intents(1, 3))
    async with running(domain) as plane, shipping(domain, ledger, [plane.listen]) as shipper:
        await eventually(lambda: "INTERNAL" in str(shipper.last_error), "the shipper says so")
        found = await indexed(plane)
        assert found == intents(1, len(found))


class SilentRecords(rpc.RecordsServicer):
    """A control plane that takes records and never answers, the first time; then it acknowledges."""

    def __init__(self) -> None:
        self.streams = 0

    async def Position(
        self, request: pb.PositionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.PositionResponse:
        """Say that nothing arrived."""
        return pb.PositionResponse(next_index=0)

    async def Ship(
        self, request_iterator: AsyncIterator[pb.ShipRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ShipAck]:
        """Swallow, or acknowledge; on the third stream acknowledge what was never sent."""
        self.streams += 1
        async for request in request_iterator:
            if self.streams == 2:
                yield pb.ShipAck(next_index=1_000)
            elif self.streams > 2:
                yield pb.ShipAck(next_index=request.first_index + len(request.records))


async def test_a_control_plane_that_never_acknowledges_or_lies_is_left_and_asked_again(
    domain: Domain,
) -> None:
    """A half-open connection must not look like a working one; an impossible acknowledgement counts for nothing."""
    spiffe_id = SpiffeId.of(TRUST_DOMAIN, "control-plane", "cp-9")
    directory = domain.home / "cp-9"
    issue_to_directory(CertificateAuthority.open(domain.directory / "ca"), spiffe_id, directory)
    server = grpc.aio.server()
    silent = SilentRecords()
    rpc.add_RecordsServicer_to_server(silent, server)
    credentials = ServerCredentials(DirectoryIdentity(directory, SystemClock()), spiffe_id)()
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        ledger = MemoryLedger(intents(1, 3))
        address = f"127.0.0.1:{port}"
        async with shipping(domain, ledger, [address], ack_timeout_s=0.2) as shipper:
            await eventually(lambda: shipper.last_error, "the shipper gives up waiting")
            assert "no acknowledgement" in str(shipper.last_error)
            await eventually(lambda: "1000 of 3" in str(shipper.last_error), "the lie is noticed")
            assert shipper.acknowledged == 0
            await shipped(shipper, 3)
            assert silent.streams == 3
    finally:
        await server.stop(0)
