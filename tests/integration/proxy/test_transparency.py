"""What crosses a sidecar and what does not: metadata, deadlines, cancellation, flow control, withdrawn rights."""

import asyncio
from typing import Any, cast

import grpc
import grpc.aio
import psutil
import pytest

from sidecar.core.call import Direction
from tests.support.errors import outcome
from tests.support.interop_cases import EOF, drain
from tests.support.interop_service import DUPLEX, EMPTY, FLOOD, FLOOD_CHUNK, INPUT, OUTPUT, UNARY, ask
from tests.support.open_gate import OpenGate
from tests.support.proxies import ALICE, SHOP, path
from trust import limits
from trust.errors import Reason
from trust.policy.types import Authn

# Two connections, a window each way on both, and the messages on their way.
BOUND = 8 * limits.STREAM_WINDOW_BYTES
SPOOFED = (
    ("egm-principal", "spiffe://mesh.local/workload/root"),
    ("egm-permit-bin", b"\x01"),
    ("x-forwarded-client-cert", "URI=spiffe://mesh.local/workload/root"),
    ("x-spiffe-id", "spiffe://mesh.local/workload/root"),
)


async def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for a condition of the other side."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # it is another process's, or grpc's, or a list
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("sidecars", [1, 2])
async def test_spoofed_identity_headers_name_nobody_and_ours_never_cross(sidecars: int, known: bool) -> None:
    """A plain header must not make anybody somebody else, nor forge what the mesh itself may say one day."""
    async with path(sidecars, known=known) as through:
        await through.channel.unary_unary(EMPTY, None, None)(b"", metadata=SPOOFED)
        arrived = dict(through.service.metadata[0])
        assert "egm-principal" not in arrived
        assert "egm-permit-bin" not in arrived
        assert arrived["x-spiffe-id"] == SPOOFED[3][1]  # ordinary metadata to us
        for gate in through.gates:
            assert gate.attempts[0].principal == str(ALICE)
            assert "egm-principal" not in gate.attempts[0].metadata


async def test_callers_are_identified_by_listener_and_then_by_certificate() -> None:
    """The caller's sidecar knows its workload by the listener, the callee's by the peer certificate."""
    async with path(2) as through:
        await through.channel.unary_unary(EMPTY, None, None)(b"")
        first, last = (gate.attempts[0] for gate in through.gates)
        assert (first.direction, first.authn, first.principal) == (
            Direction.OUTBOUND,
            Authn.LOOPBACK,
            str(ALICE),
        )
        assert (last.direction, last.authn, last.principal) == (Direction.INBOUND, Authn.MTLS, str(ALICE))
        assert first.method == last.method == EMPTY[1:]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_metadata_arrive_with_bytes_repetition_and_order_intact(known: bool) -> None:
    """Applications rely on repeated keys and on binary values that are no text."""
    sent = (
        ("a", "1"),
        ("b-bin", bytes(range(256))),
        ("a", "2"),
        ("traceparent", "00-1-2-01"),
        ("b-bin", b""),
    )
    async with path(1, known=known) as through:
        await through.channel.unary_unary(EMPTY, None, None)(b"", metadata=sent)
        arrived = through.service.metadata[0]
        for key in ("a", "b-bin", "traceparent"):
            assert [v for k, v in arrived if k == key] == [v for k, v in sent if k == key]
        assert through.gates[0].attempts[0].metadata["a"] == "1,2"


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_deadline_shrinks_on_the_way_and_none_stays_none(known: bool) -> None:
    """The service must know how long its caller really waits."""
    async with path(2, known=known) as through:
        call = through.channel.unary_unary(EMPTY, None, None)
        await call(b"", timeout=30)
        await call(b"")
        first, second = through.service.remaining
        assert first is not None
        assert 10 < first <= 31  # gRPC rounds up what it puts on the wire
        assert second is None


async def test_initial_metadata_cross_before_any_message() -> None:
    """A client may wait for the headers before it sends its first message."""
    async with path(2) as through:
        call = through.channel.stream_stream(DUPLEX, None, None)(
            None, metadata=(("x-grpc-test-echo-initial", "early"),)
        )
        initial = await asyncio.wait_for(call.initial_metadata(), 60)
        assert dict(initial)["x-grpc-test-echo-initial"] == "early"
        await call.done_writing()
        assert await drain(call) == []


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_cancellation_by_the_caller_reaches_the_service(known: bool) -> None:
    """Work that nobody waits for must stop, across both sidecars."""
    async with path(2, known=known) as through:
        call = through.channel.unary_unary(UNARY, None, None)(ask(sleep_ms=30_000))
        await until(lambda: through.service.metadata)
        call.cancel()
        await until(lambda: through.service.cancelled == ["unary"])
        await until(lambda: [gate.outcomes for gate in through.gates] == [["CANCELLED"], ["CANCELLED"]])


async def test_cancelled_upload_never_looks_complete_to_the_service() -> None:
    """An aborted upload that arrives as a complete one could be committed."""
    async with path(2, known=False) as through:
        for _ in range(20):
            call = through.channel.stream_unary(INPUT, None, None)(None)
            await call.write(b"part")
            call.cancel()
        service = through.service
        await asyncio.sleep(0.2)
        await until(lambda: len(service.cancelled) + service.clean_ends == len(service.metadata))
        assert through.service.clean_ends == 0


async def test_cancellation_by_the_service_reaches_the_caller() -> None:
    """CANCELLED said by the service is an answer like any other."""
    async with path(2) as through:
        code, message, info = await outcome(
            through.channel.unary_unary(UNARY, None, None)(ask(code=1, message="enough"))
        )
        assert (code, message, info) == ("CANCELLED", "enough", {})


@pytest.mark.parametrize("method", [OUTPUT, DUPLEX])
async def test_stream_whose_right_is_withdrawn_is_cut_with_the_reason(method: str) -> None:
    """A policy change ends streams that it no longer allows; the service hears of it too."""
    async with path(1) as through:
        gate = through.gates[0]
        call: Any
        if method == OUTPUT:
            call = through.channel.unary_stream(OUTPUT, None, None)(ask(sizes=[1], sleep_ms=30_000))
        else:
            call = through.channel.stream_stream(DUPLEX, None, None)(None)
            await call.write(ask(sizes=[1]))
        assert await call.read() == b"\0"
        (cut,) = gate.cuts.values()
        cut(gate.decision(Reason.AUTHORIZATION_WITHDRAWN))
        code, _, info = await outcome(asyncio.wait_for(call.read(), 60))
        assert (code, info["reason"]) == ("PERMISSION_DENIED", "AUTHORIZATION_WITHDRAWN")
        await until(lambda: through.service.cancelled)
        await until(lambda: not gate.cuts)
        assert gate.outcomes == ["PERMISSION_DENIED"]


async def test_stream_of_a_caller_that_does_not_read_is_cut_too() -> None:
    """A caller must not keep a withdrawn right alive by not reading."""
    async with path(1) as through:
        gate = through.gates[0]
        call = through.channel.unary_stream(FLOOD, None, None)(ask(chunks=4000))
        assert await call.read()
        (cut,) = gate.cuts.values()
        cut(gate.decision(Reason.AUTHORIZATION_WITHDRAWN))
        await until(lambda: through.service.cancelled)
        call.cancel()
        await until(lambda: not gate.cuts)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_slow_reader_stops_the_service_instead_of_filling_memory(known: bool) -> None:
    """The sidecar holds a message or two per direction, whatever the service would like to send."""
    async with path(1, known=known) as through:
        process = psutil.Process()
        call = through.channel.unary_stream(FLOOD, None, None)(
            ask(chunks=2000)
        )  # 500 MB, if nobody held it back
        assert await call.read()
        before = process.memory_info().rss
        flooded = -1
        while flooded != through.service.flooded:
            flooded = through.service.flooded
            await asyncio.sleep(0.2)
        assert flooded < BOUND
        assert process.memory_info().rss - before < 64 * 1024 * 1024
        call.cancel()
        await until(lambda: through.service.cancelled)


async def test_slow_service_stops_the_sender_instead_of_filling_memory() -> None:
    """The same the other way: an upload waits for a service that does not read."""
    async with path(1) as through:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            call = through.channel.stream_stream(DUPLEX, None, None)(None)
            await call.write(ask(sleep_ms=60_000))
            while True:
                await call.write(bytes(FLOOD_CHUNK))
                sent += FLOOD_CHUNK

        flooding = asyncio.ensure_future(flood())
        seen = -1
        await until(lambda: sent)
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.2)
        assert sent < BOUND
        flooding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flooding


async def test_compressed_requests_pass() -> None:
    """Compression is per hop: gRPC unpacks before we see the message, so its content is what crosses."""
    async with path(2) as through:
        call = through.channel.unary_unary(UNARY, None, None)
        request = ask(size=9) + bytes(100_000)
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate, grpc.Compression.NoCompression):
            assert await call(request, compression=algorithm) == bytes(9)


async def test_calls_in_flight_survive_the_rotation_of_the_sidecars_certificate() -> None:
    """New channels take over; the old one finishes what it carries."""
    async with path(2) as through:
        call = through.channel.stream_stream(DUPLEX, None, None)(None)
        await call.write(ask(sizes=[1]))
        assert len(cast("bytes", await call.read())) == 1
        identity = through.identity
        assert identity is not None
        identity.replace(identity.authority.svid(ALICE))
        identity.replace(identity.authority.svid(SHOP))
        await asyncio.sleep(0.6)  # longer than a retired channel waits before it closes
        await call.write(ask(sizes=[2]))
        assert len(cast("bytes", await call.read())) == 2
        await through.channel.unary_unary(EMPTY, None, None)(b"")
        await call.done_writing()
        assert await call.read() is EOF


async def test_outcome_of_each_call_is_recorded_once() -> None:
    """Telemetry counts what happened, refused by the service or not."""
    gate = OpenGate()
    async with path(1, gate=gate) as through:
        await through.channel.unary_unary(EMPTY, None, None)(b"")
        await outcome(through.channel.unary_unary(UNARY, None, None)(ask(code=5, message="gone")))
        await until(lambda: gate.outcomes == ["OK", "NOT_FOUND"])
