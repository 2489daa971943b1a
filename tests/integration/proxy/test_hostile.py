"""Callers that do not play by the rules must not take the listener away from those who do."""

import asyncio
from collections import deque
from typing import Any, cast

import grpc.aio
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.edge.health import Health
from sidecar.edge.listeners import own_server
from tests.support.hostile import GRPC_DIES, knock_out
from tests.support.interop_cases import EOF
from tests.support.interop_service import DUPLEX, EMPTY, ask
from tests.support.proxies import path


@pytest.mark.filterwarnings(GRPC_DIES)
async def test_method_name_that_is_no_text_does_not_take_the_listener_away() -> None:
    """One request must not switch a service off; calls in flight must not notice."""
    async with path(1) as through:
        open_stream = through.channel.stream_stream(DUPLEX, None, None)(None)
        await open_stream.write(ask(sizes=[1]))
        assert await open_stream.read() == b"\0"
        await knock_out(through.addresses[0])
        async with (
            asyncio.timeout(10),
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
    async with asyncio.timeout(20), path(1) as through:
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
