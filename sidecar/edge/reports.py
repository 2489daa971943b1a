"""Tells the control plane how this node is: every period, and at once when something changed."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

import grpc
import grpc.aio

from egm.v1 import node_pb2_grpc, operator_pb2
from trust.edge.grpc_errors import error_from_rpc, readable
from trust.edge.tls import Channels
from trust.errors import MeshError
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

logger = logging.getLogger(__name__)

REPORT_TIMEOUT_S: Final = 5.0
MIN_SPACING_S: Final = 0.2  # however fast things change


class Reporter:
    """Reports are claims for people; nothing depends on their arrival, so a failure is logged once and retried."""

    def __init__(
        self,
        channels: Channels,
        addresses: Sequence[str],
        *,
        node: SpiffeId,
        status: Callable[[], operator_pb2.NodeStatus],
        period_s: float,
        peers: Callable[[list[tuple[str, str]]], None] = lambda _peers: None,
    ) -> None:
        """Take where to report and what; `peers` is told whom the control plane names: node and address."""
        self._peers = peers
        self._channels, self._addresses, self._node = channels, tuple(addresses), node
        self._status, self._period_s = status, period_s
        self._server_dns = control_plane_dns(node.trust_domain)
        self._changed = asyncio.Event()
        self.last_error: str | None = None

    def changed(self) -> None:
        """Report soon."""
        self._changed.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._changed.clear()
            await self.report()
            await asyncio.sleep(min(MIN_SPACING_S, self._period_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await self._changed.wait()

    async def report(self) -> bool:
        """Report once, to the first control plane that answers; return whether one did."""
        error = "no control plane address is configured"
        for address in self._addresses:
            try:
                channel = self._channels.get(address, client=self._node, server_dns=self._server_dns)
                stub = node_pb2_grpc.FleetStub(channel)
                ack = readable(await stub.Report(self._status(), timeout=REPORT_TIMEOUT_S))
                self._peers([(peer.node, peer.address) for peer in ack.peers])
            except MeshError as failure:
                error = f"{address}: {failure}"
            except grpc.aio.AioRpcError as failure:
                error = f"{address}: {error_from_rpc(failure)}"
            else:
                if self.last_error is not None:
                    logger.info("reports reach the control plane again")
                self.last_error = None
                return True
        if self.last_error is None:
            logger.warning("report not delivered, will retry: %s", error)
        self.last_error = error
        return False
