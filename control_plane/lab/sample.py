"""The sample services of the demonstration: ordinary gRPC services that know nothing of the mesh."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection

from egm.sample.v1 import shop_pb2, shop_pb2_grpc
from trust.permit import PERMIT_KEY

_SERVICES = tuple(service.full_name for service in shop_pb2.DESCRIPTOR.services_by_name.values())


class Payments(shop_pb2_grpc.PaymentsServicer):
    """Moves money between imaginary accounts and tells whoever watches."""

    def __init__(self) -> None:
        self.transfers = 0
        self.accounts: str | None = None  # where the balance is asked for; None: it is not
        self.permit = ""  # that the last transfer came with

    async def Transfer(
        self, request: shop_pb2.TransferRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> shop_pb2.TransferReply:
        """Ask for the balance, accept the transfer and number it.

        The one line that a service needs to be part of a lineage is the copied metadata key.
        """
        carried = [(key, value) for key, value in context.invocation_metadata() or () if key == PERMIT_KEY]
        self.permit = str(carried[0][1]) if carried else ""
        if self.accounts is not None:
            async with grpc.aio.insecure_channel(self.accounts) as channel:
                balance = shop_pb2.GetBalanceRequest(account=request.from_account)
                await shop_pb2_grpc.AccountsStub(channel).GetBalance(balance, metadata=carried, timeout=10)
        self.transfers += 1
        return shop_pb2.TransferReply(id=f"transfer-{self.transfers}", amount=request.amount)

    async def Watch(
        self, request: shop_pb2.WatchTransfersRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[shop_pb2.TransferReply]:
        """Send the number of transfers so far, five times a second, until the caller hangs up."""
        while True:
            yield shop_pb2.TransferReply(id=f"transfer-{self.transfers}")
            await asyncio.sleep(0.2)


class Accounts(shop_pb2_grpc.AccountsServicer):
    """Knows every balance: always the same."""

    async def GetBalance(
        self, request: shop_pb2.GetBalanceRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> shop_pb2.Balance:
        """Return the balance of the account."""
        return shop_pb2.Balance(account=request.account, amount=100_000)


async def serve(listen: str = "127.0.0.1:0", payments: Payments | None = None) -> tuple[grpc.aio.Server, str]:
    """Serve both samples, with reflection, in plaintext; return the server and its address."""
    server = grpc.aio.server()
    shop_pb2_grpc.add_PaymentsServicer_to_server(payments or Payments(), server)
    shop_pb2_grpc.add_AccountsServicer_to_server(Accounts(), server)
    reflection.enable_server_reflection((*_SERVICES, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port(listen)
    await server.start()
    return server, f"{listen.rpartition(':')[0]}:{port}"


def descriptors() -> bytes:
    """Return the FileDescriptorSet of the sample services, as a bundle wants it."""
    found = descriptor_pb2.FileDescriptorSet()
    shop_pb2.DESCRIPTOR.CopyToProto(found.file.add())
    return found.SerializeToString(deterministic=True)


async def _run(listen: str) -> None:
    server, _ = await serve(listen)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await server.stop(1.0)


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))
