"""Callers that do not play by the rules must not take the listener away from those who do."""

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.core.call import Direction
from sidecar.edge import upstream
from sidecar.edge.health import Health
from sidecar.edge.identify import fixed
from sidecar.edge.listeners import own_server
from sidecar.edge.proxy import MAX_CACHED_METHODS, Proxy
from tests.support.hostile import GRPC_DIES, exchange, knock_out, message
from tests.support.interop_cases import EOF
from tests.support.interop_service import DUPLEX, EMPTY, UNARY, ask
from tests.support.open_gate import OpenGate
from tests.support.proxies import ALICE, KNOWN, path, pool
from trust.edge import serving
from trust.edge.clock import SystemClock
from trust.policy.types import Authn


@pytest.mark.filterwarnings(GRPC_DIES)
async def test_method_name_that_is_no_text_does_not_take_the_listener_away() -> None:
    """One request must not switch a service off; calls in flight must not notice."""
    async with path(1) as through:
        open_stream = through.channel.stream_stream(DUPLEX, None, None)(None)
        await open_stream.write(ask(sizes=[1]))
        assert await open_stream.read() == b"\0"
        await knock_out(through.addresses[0])
        async with (
            asyncio.timeout(60),
            grpc.aio.insecure_channel(through.addresses[0], [("grpc.use_local_subchannel_pool", 1)]) as after,
        ):
            await after.unary_unary(EMPTY, None, None)(b"", wait_for_ready=True)
        await open_stream.write(ask(sizes=[2]))
        assert await open_stream.read() == b"\0\0"
        await open_stream.done_writing()
        assert await open_stream.read() is EOF


@pytest.mark.filterwarnings(GRPC_DIES)
async def test_listener_that_is_knocked_out_again_and_again_comes_back_and_stops_in_order() -> None:
    """Persistence must not pay either, nor may it hold up a shutdown."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50)]
    async with asyncio.timeout(60), path(1) as through:
        for _ in range(4):
            async with grpc.aio.insecure_channel(through.addresses[0], options) as other:
                await other.unary_unary(EMPTY, None, None)(b"", wait_for_ready=True)
            await knock_out(through.addresses[0])


@pytest.mark.filterwarnings(GRPC_DIES)
async def test_malformed_request_makes_grpc_write_into_no_freed_memory() -> None:
    """One request must not corrupt the process: what it frees is handed out again while gRPC shuts down."""
    size = cast("Any", cygrpc).RPCState.__basicsize__ + 16  # with the collector's header
    pattern = b"\xff" * (-(-size // 16) * 16 - bytes.__basicsize__)
    handed_out: deque[bytes] = deque(maxlen=60_000)
    loop = asyncio.get_running_loop()

    def hand_out() -> None:
        handed_out.extend(bytes(bytearray(pattern)) for _ in range(400))
        if watching:
            loop.call_soon(hand_out)

    watching = True
    server, address = own_server(Health().add_to, "127.0.0.1:0")
    await server.start()
    hand_out()
    await knock_out(address)
    for _ in range(20):
        await asyncio.sleep(0)
    watching = False
    assert [block for block in handed_out if block != pattern] == []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=10)
    await server.stop(0)


@pytest.mark.filterwarnings(GRPC_DIES)
async def test_listener_is_back_because_its_loop_has_ended_not_because_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking fifty times a second was a third of what a sidecar used while nobody called."""
    for period in ("CHECK_PERIOD_S", "_LOOK_PERIOD_S"):
        monkeypatch.setattr(serving, period, 3_600.0)
    server, address = own_server(Health().add_to, "127.0.0.1:0")
    await server.start()
    for _ in range(2):
        await knock_out(address)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=20)
    await server.stop(0)


async def test_flood_of_invented_methods_neither_fills_memory_nor_displaces_real_ones_for_good() -> None:
    """Names come from callers; what is kept for each is bounded, and the newest is kept."""
    async with pool() as channels:
        proxy = Proxy(
            Direction.OUTBOUND,
            "shop",
            gate=OpenGate(shapes={}),
            identify=fixed(ALICE, Authn.LOOPBACK),
            route=lambda *_: upstream.local(channels, "127.0.0.1:9"),
            clock=SystemClock(),
        )
        for number in range(MAX_CACHED_METHODS + 100):
            proxy.service(SimpleNamespace(method=f"/invented.S/M{number}"))  # type: ignore[arg-type]
        real = SimpleNamespace(method=EMPTY)
        assert proxy.service(real) is proxy.service(real)  # type: ignore[arg-type]
        assert len(proxy._methods) == MAX_CACHED_METHODS


@pytest.mark.parametrize("header", ["egm-permit", "egm-caller", "grpc-caller"])
async def test_metadata_that_the_mesh_owns_never_crosses_a_sidecar(header: str) -> None:
    """What a later version, or gRPC itself, would believe must not come from a caller."""
    async with path(1) as through:
        await exchange(through.addresses[0], EMPTY.encode(), message(b""), more=[(header.encode(), b"admin")])
        (seen,) = through.service.metadata
        assert header not in dict(seen)


async def test_second_message_of_a_unary_call_reaches_nobody_undecided() -> None:
    """The policy is shown the first message, so the first is all that may be forwarded."""
    gate = OpenGate(shapes=KNOWN)
    async with path(1, gate=gate) as through:
        sent = message(ask(size=1)) + message(ask(size=7))
        answer = await exchange(through.addresses[0], UNARY.encode(), sent)
        assert len(through.service.metadata) == 1
        assert message(bytes(1)) in answer or b"grpc-status" in answer
        assert bytes(7) not in answer.partition(b"grpc-accept-encoding")[2]


@pytest.mark.parametrize(
    "method",
    [b"/" + UNARY.encode(), UNARY.encode() + b"/", UNARY.encode() + b"?x", UNARY.encode() + b"\0", b"", b"*"],
)
async def test_method_that_only_looks_like_a_governed_one_is_not_forwarded(method: bytes) -> None:
    """What is decided must be what is executed: no service may read a name more leniently than the policies."""
    async with path(1) as through:
        await exchange(through.addresses[0], method, message(ask(size=1)))
        assert through.service.metadata == []


async def test_client_that_sends_nothing_gets_nothing_forwarded() -> None:
    """A unary call without its message, compressed garbage, and a compression that nobody declared."""
    async with path(1) as through:
        for body, more in [
            (message(b"x", flag=1), []),
            (message(b"x", flag=1), [(b"grpc-encoding", b"gzip")]),
        ]:
            await exchange(through.addresses[0], UNARY.encode(), body, more=more)
        assert through.service.metadata == []
