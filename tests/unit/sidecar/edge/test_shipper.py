"""What the shipper does when a call ends in ways that a control plane does not choose."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from egm.v1 import record_pb2 as pb
from egm.v1 import record_pb2_grpc as rpc
from sidecar.edge.shipping import Shipper
from trust.backoff import Backoff
from trust.spiffe import SpiffeId


class ClosedCall:
    """A call whose channel was closed under it: grpc.aio says so as if the writer had been cancelled."""

    def cancel(self) -> None:
        """It has ended."""

    async def write(self, request: pb.ShipRequest) -> None:
        """Raise what grpc.aio raises."""
        raise asyncio.CancelledError

    async def read(self) -> object:
        """Not yet told."""
        return await asyncio.get_running_loop().create_future()


class Stub:
    """A control plane that has nothing yet, behind a channel that is closed as soon as something is written."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[None] = asyncio.Queue()

    async def Position(self, request: pb.PositionRequest, timeout: float) -> pb.PositionResponse:
        """Nothing is indexed."""
        self.asked.put_nowait(None)
        return pb.PositionResponse(next_index=0)

    def Ship(self) -> ClosedCall:
        """Return a call."""
        return ClosedCall()


class AnyChannels:
    """Gives channels that are never looked at."""

    def get(self, *_: object, **__: object) -> None:
        """Give one."""


async def records(start: int) -> AsyncGenerator[tuple[int, list[bytes]]]:
    """Yield one record."""
    yield start, [b"record"]
    await asyncio.Event().wait()


async def test_shipping_goes_on_when_the_channel_is_closed_while_it_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the node would run on, and never ship again: a task that ends cancelled alarms nobody."""
    stub = Stub()
    monkeypatch.setattr(rpc, "RecordsStub", lambda _channel: stub)
    shipper = Shipper(
        cast(Any, AnyChannels()),
        ["127.0.0.1:1"],
        node=SpiffeId.of("mesh.test", "node", "a"),
        ledger="ledger",
        source=records,
        size=lambda: 1,
        retry=Backoff(min_ms=1, max_ms=1),
    )
    running = asyncio.create_task(shipper.run())
    again = asyncio.create_task(asyncio.wait_for(_twice(stub.asked), 30))
    done, _ = await asyncio.wait({running, again}, return_when=asyncio.FIRST_COMPLETED)
    assert done == {again}, "it gave up"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def _twice(asked: "asyncio.Queue[None]") -> None:
    await asked.get()
    await asked.get()
