"""Ships the records of this node's ledger to the control plane's index: in order, at least once, none left out.

The ledger stays the truth and the control plane says how far its index reaches, so nothing is remembered here: after
a partition, a restart or a lost acknowledgement shipping resumes where the index ends.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final, cast

import grpc
import grpc.aio

from egm.v1 import record_pb2 as pb
from egm.v1 import record_pb2_grpc as rpc
from trust import limits
from trust.backoff import RECONNECT, RENEW, Backoff
from trust.edge.grpc_errors import error_from_rpc, readable
from trust.edge.tls import Channels
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

logger = logging.getLogger(__name__)

# Yields (first index, records that follow each other) of the ledger from an index on, and waits for later ones; only
# what is durable. It may start above the index it was asked for when older records are archived, but never leave one
# out after that.
Source = Callable[[int], AsyncGenerator[tuple[int, list[bytes]]]]

POSITION_TIMEOUT_S: Final = 10.0
# A refusal of what we say cannot heal by repeating it soon; it may when the control plane is upgraded.
_REFUSED: Final = RENEW


class Shipper:
    """Ships one ledger. `acknowledged` is the index below which everything is durable at the control plane."""

    def __init__(
        self,
        channels: Channels,
        addresses: Sequence[str],
        *,
        node: SpiffeId,
        ledger: str,
        source: Source,
        size: Callable[[], int],
        window: int = limits.SHIP_WINDOW_RECORDS,
        ack_timeout_s: float = limits.SHIP_ACK_TIMEOUT_S,
        retry: Backoff = RECONNECT,
    ) -> None:
        """Take where to ship and what.

        Args:
            channels: supplies mTLS channels as `node`.
            addresses: of control planes that share one store, in order of preference.
            node: the SPIFFE ID of this node.
            ledger: names this ledger among all that the node ever had: printable ASCII, at most
                `limits.MAX_LEDGER_NAME_BYTES`; another ledger needs another name.
            source: reads the ledger.
            size: how many durable records the ledger holds now.
            window: records that may be sent and not yet acknowledged.
            ack_timeout_s: how long to wait for an acknowledgement before connecting anew.
            retry: between attempts.
        """
        if not addresses or window < 1:
            raise ValueError("shipping needs an address and a window of at least one record")
        self._channels, self._addresses = channels, tuple(addresses)
        self._node, self._ledger, self._source, self._size = node, ledger, source, size
        self._window, self._ack_timeout_s, self._retry = window, ack_timeout_s, retry
        self._server_dns = control_plane_dns(node.trust_domain)
        self._progress = asyncio.Condition()
        self._sent = 0
        self._waiting_since: float | None = None  # for an acknowledgement
        self.acknowledged = 0
        self.last_error: str | None = None

    @property
    def lag(self) -> int:
        """How many durable records the control plane does not have yet."""
        return max(0, self._size() - self.acknowledged)

    async def wait_for(self, next_index: int) -> None:
        """Return once every record below `next_index` is acknowledged."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.acknowledged >= next_index)

    async def run(self) -> None:
        """Ship until cancelled; failures are logged once and retried, at the next address."""
        failures = 0
        while True:
            address = self._addresses[failures % len(self._addresses)]
            before, policy = self.acknowledged, self._retry
            try:
                await self._ship_to(address)
            except grpc.aio.AioRpcError as failure:
                policy = self._failed(address, error_from_rpc(failure))
            except MeshError as failure:
                policy = self._failed(address, failure)
            except (
                OSError
            ) as failure:  # a disk that fails must not end the sidecar: calls may go on without it
                text = f"the ledger cannot be read: {failure.strerror or type(failure).__name__}"
                self._failed(address, StateError(Reason.LEDGER_UNAVAILABLE, text))
                policy = _REFUSED
            failures = 1 if self.acknowledged > before else failures + 1
            # how to spread retries is no secret
            await asyncio.sleep(policy.delay_ms(failures, random.random()) / 1000)  # noqa: S311

    def _failed(self, address: str, error: MeshError) -> Backoff:
        text = f"{address}: {error}"
        if self.last_error is None:
            logger.warning("execution records are not shipped, will retry: %s", text)
        self.last_error = text
        return _REFUSED if isinstance(error, EvidenceError) else self._retry

    async def _ship_to(self, address: str) -> None:
        """Ship to one control plane until it ends the stream (returns) or something fails (raises)."""
        channel = self._channels.get(address, client=self._node, server_dns=self._server_dns)
        stub = rpc.RecordsStub(channel)
        start = await self._position(stub)
        call: Any = stub.Ship()  # type: ignore[call-arg]  # requests are written, not iterated
        sender = asyncio.create_task(self._send(call, start))
        tasks = [asyncio.create_task(self._receive(call)), sender, asyncio.create_task(self._watch())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # A channel that is closed ends a write with CancelledError: `exception` would raise that here.
            ended = sender.done() and not sender.cancelled()
            if ended and isinstance(sender.exception(), grpc.RpcError | asyncio.InvalidStateError):
                # A write on a broken stream fails without the reason; the reader gets it.
                await asyncio.wait(tasks[:1], timeout=POSITION_TIMEOUT_S)
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, asyncio.InvalidStateError):
                continue  # the stream had ended; the reader knows why
            if isinstance(result, Exception):
                raise result

    async def _position(self, stub: "rpc.RecordsAsyncStub") -> int:
        request = pb.PositionRequest(node=self._node.name, ledger=self._ledger)
        start = readable(await stub.Position(request, timeout=POSITION_TIMEOUT_S)).next_index
        size = self._size()
        if start > size:
            raise StateError(
                Reason.LEDGER_CONTRADICTED,
                f"the control plane has {start} records of ledger {self._ledger}, this node only {size}: its disk "
                "was set back; restore the newer one, or move the ledger away so that a new one is started",
            )
        async with self._progress:
            self.acknowledged, self._sent, self._waiting_since = start, start, None
            self._progress.notify_all()
        return start

    async def _send(self, call: Any, start: int) -> None:
        async with aclosing(self._source(start)) as found:
            async for index, records in found:
                for first, batch in _batches(
                    index, records, min(limits.MAX_SHIP_BATCH_RECORDS, self._window)
                ):
                    await self._send_batch(call, first, batch)
        raise StateError(Reason.SOURCE_UNAVAILABLE, "the ledger was closed")

    async def _send_batch(self, call: Any, first: int, batch: list[bytes]) -> None:
        request = self._request(first, batch)
        async with self._progress:
            end = first + len(batch)
            await self._progress.wait_for(self._room_for(end))
            self._sent = end
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
        await call.write(request)

    def _room_for(self, end: int) -> Callable[[], bool]:
        # what is archived is never acknowledged: with nothing under way there is room, whatever the distance
        return lambda: end - self.acknowledged <= self._window or self.acknowledged == self._sent

    def _request(self, first: int, batch: list[bytes]) -> pb.ShipRequest:
        if first < self._sent:
            raise StateError(Reason.INTERNAL, f"the ledger gave record {first} after {self._sent - 1}")
        if first > self._sent:
            logger.warning("records %d to %d are archived and not shipped", self._sent, first - 1)
        return pb.ShipRequest(
            node=self._node.name,
            ledger=self._ledger,
            first_index=first,
            records=batch,
            after_gap=first > self._sent,
        )

    async def _receive(self, call: Any) -> None:
        while (ack := await call.read()) is not cast("Any", grpc.aio).EOF:
            ack = readable(ack)
            if not self.acknowledged <= ack.next_index <= self._sent:
                raise EvidenceError(
                    Reason.INPUT_INVALID,
                    f"the control plane acknowledged {ack.next_index} of {self._sent} records sent",
                )
            async with self._progress:
                self.acknowledged = ack.next_index
                self._waiting_since = None if ack.next_index == self._sent else time.monotonic()
                self._progress.notify_all()
            if self.last_error is not None:
                logger.info("execution records are shipped again")
                self.last_error = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._ack_timeout_s / 4)
            since = self._waiting_since
            if since is not None and time.monotonic() - since >= self._ack_timeout_s:
                raise StateError(
                    Reason.SOURCE_UNAVAILABLE, f"no acknowledgement within {self._ack_timeout_s:g} s"
                )


def _batches(first: int, records: list[bytes], most: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (first index, records) in parts of at most `most` records and MAX_SHIP_BATCH_BYTES."""
    batch: list[bytes] = []
    size = 0
    for record in records:
        size += len(record)
        if batch and (len(batch) >= most or size > limits.MAX_SHIP_BATCH_BYTES):
            yield first, batch
            first, batch, size = first + len(batch), [], len(record)
        batch.append(record)
    if batch:
        yield first, batch
