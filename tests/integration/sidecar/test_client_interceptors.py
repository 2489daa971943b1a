"""Outgoing calls of a handler carry its permit, whatever their kind and whichever grpc makes them."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from sidecar.interceptors import AioClientInterceptors, ClientInterceptors, CurrentCall, current_call
from sidecar.interceptors.current import CURRENT
from tests.support import sidecars
from tests.support.interop_service import DUPLEX, INPUT, OUTPUT, UNARY, ask
from trust.permit import PERMIT_KEY

PERMIT = "the.current.permit"
KEPT = ("x-own", "kept")


def carried(echo: Any) -> list[list[Any]]:
    return [[value for key, value in sent if key == PERMIT_KEY] for sent in echo.metadata]


@pytest.mark.parametrize("permit", [PERMIT, None])
async def test_every_kind_of_aio_call_carries_the_permit_of_the_current_call(permit: str | None) -> None:
    """With what the caller had in its metadata; a permit that it copied itself stays the only one."""
    token = CURRENT.set(CurrentCall("alice", "id", permit))
    options: Any = {"interceptors": AioClientInterceptors()}
    async with sidecars.upstream() as (echo, address), grpc.aio.insecure_channel(address, **options) as made:
        channel: Any = made
        await channel.unary_unary(UNARY, None, None)(ask(size=1), metadata=(KEPT,))
        assert [_ async for _ in channel.unary_stream(OUTPUT, None, None)(ask(sizes=[1]), metadata=(KEPT,))]
        await channel.stream_unary(INPUT, None, None)(iter([ask(size=1)]), metadata=(KEPT,))
        duplex = channel.stream_stream(DUPLEX, None, None)(iter([ask(sizes=[1])]), metadata=(KEPT,))
        assert [_ async for _ in duplex]
        await channel.unary_unary(UNARY, None, None)(ask(size=1), metadata=(KEPT, (PERMIT_KEY, "own")))
    CURRENT.reset(token)
    assert carried(echo) == [[] if permit is None else [permit]] * 4 + [["own"]]
    assert all(KEPT in sent for sent in echo.metadata)


@pytest.mark.parametrize("permit", [PERMIT, None])
async def test_every_kind_of_blocking_call_carries_the_permit_of_the_current_call(permit: str | None) -> None:
    """The same through `grpc.intercept_channel`."""

    def calls(address: str) -> None:
        CURRENT.set(CurrentCall("alice", "id", permit))
        with grpc.insecure_channel(address) as plain:
            channel: Any = grpc.intercept_channel(plain, *ClientInterceptors())
            channel.unary_unary(UNARY, None, None)(ask(size=1), metadata=(KEPT,))
            assert list(channel.unary_stream(OUTPUT, None, None)(ask(sizes=[1]), metadata=(KEPT,)))
            channel.stream_unary(INPUT, None, None)(iter([ask(size=1)]), metadata=(KEPT,))
            assert list(channel.stream_stream(DUPLEX, None, None)(iter([ask(sizes=[1])]), metadata=(KEPT,)))
            channel.unary_unary(UNARY, None, None)(ask(size=1), metadata=(KEPT, (PERMIT_KEY, "own")))

    async with sidecars.upstream() as (echo, address):
        await asyncio.to_thread(calls, address)
    assert carried(echo) == [[] if permit is None else [permit]] * 4 + [["own"]]
    assert all(KEPT in sent for sent in echo.metadata)


def test_outside_of_a_call_there_is_none() -> None:
    """And nothing is carried."""
    assert current_call() is None
