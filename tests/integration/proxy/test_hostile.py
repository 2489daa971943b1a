"""Callers that do not play by the rules must not take the listener away from those who do."""

import asyncio

import grpc.aio
import pytest

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
        async with grpc.aio.insecure_channel(
            through.addresses[0], [("grpc.use_local_subchannel_pool", 1)]
        ) as other:
            await knock_out(other)
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
                await knock_out(other)
