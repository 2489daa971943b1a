"""Where a sidecar has approvers asked: the tickets that control planes keep."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import grpc
import grpc.aio

from egm.v1 import approvals_pb2 as pb
from egm.v1 import approvals_pb2_grpc as rpc
from trust import limits
from trust.edge.grpc_errors import error_from_rpc, readable
from trust.edge.tls import Channels
from trust.errors import MeshError, Reason, StateError
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

T = TypeVar("T")


class Desk(Protocol):
    """Where tickets are kept: a control plane."""

    async def open(self, request: pb.OpenTicketRequest) -> pb.OpenTicketResponse:
        """Open a ticket, or find the one that is open for the same call.

        Raises:
            MeshError: SOURCE_UNAVAILABLE when nobody answers; LIMIT_EXCEEDED and others when refused.
        """
        ...

    async def collect(self, ids: Sequence[str]) -> dict[str, tuple[bytes, ...]]:
        """Return what approvers have signed, by ticket. Raises as `open`."""
        ...

    async def spent(self, ids: Sequence[str]) -> None:
        """Tell that tickets are used up. Raises as `open`."""
        ...


class RemoteDesk:
    """Asks the control planes, in order of preference."""

    def __init__(self, channels: Channels, addresses: Sequence[str], node: SpiffeId) -> None:
        """Take mTLS channels, where control planes answer, and who this node is."""
        self.channels, self._addresses, self._node = channels, tuple(addresses), node
        self._server_dns = control_plane_dns(node.trust_domain)

    async def open(self, request: pb.OpenTicketRequest) -> pb.OpenTicketResponse:
        """Open a ticket; see `Desk`."""
        return await self._ask(lambda stub: stub.Open(request, timeout=limits.APPROVAL_RPC_TIMEOUT_S))

    async def collect(self, ids: Sequence[str]) -> dict[str, tuple[bytes, ...]]:
        """Collect approvals; see `Desk`."""
        request = pb.CollectRequest(tickets=ids)
        found = await self._ask(lambda stub: stub.Collect(request, timeout=limits.APPROVAL_RPC_TIMEOUT_S))
        return {one.id: tuple(one.notes) for one in found.tickets}

    async def spent(self, ids: Sequence[str]) -> None:
        """Tell what is used up; see `Desk`."""
        request = pb.SpentRequest(tickets=ids)
        await self._ask(lambda stub: stub.Spent(request, timeout=limits.APPROVAL_RPC_TIMEOUT_S))

    async def _ask(self, ask: Callable[["rpc.ApprovalsAsyncStub"], Awaitable[T]]) -> T:
        failure: MeshError = StateError(Reason.SOURCE_UNAVAILABLE, "no control plane address is configured")
        for address in self._addresses:
            try:
                channel = self.channels.get(address, client=self._node, server_dns=self._server_dns)
                return readable(await ask(rpc.ApprovalsStub(channel)))
            except grpc.aio.AioRpcError as error:
                failure = error_from_rpc(error)
            except MeshError as error:
                failure = error
            if failure.reason is not Reason.SOURCE_UNAVAILABLE:
                break
        raise failure
