"""What goes on when a certificate was rotated, and the channel with the old one is closed under a stream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from egm.v1 import gossip_pb2, gossip_pb2_grpc
from sidecar.edge.gossip import Gossiper
from tests.support.eventually import eventually
from tests.support.pki import Authority, StaticIdentity
from trust.edge.clock import SystemClock
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.gossip import Member
from trust.edge.serving import new_server
from trust.edge.tls import Channels, ServerCredentials
from trust.misbehaviour import Anchors
from trust.spiffe import SpiffeId

DOMAIN = "mesh.local"
NODE = SpiffeId.of(DOMAIN, "node", "a")
PLANE = SpiffeId.of(DOMAIN, "control-plane", "one")


class Plane(gossip_pb2_grpc.GossipServicer):
    """A control plane that has no news."""

    def __init__(self) -> None:
        self.watched = 0

    async def Exchange(self, request: gossip_pb2.GossipMessage, context: Any) -> gossip_pb2.GossipMessage:
        """Say nothing."""
        return gossip_pb2.GossipMessage(sender=str(PLANE), boot_id="b", sequence=request.sequence)

    async def GetBlob(self, request: gossip_pb2.GetBlobRequest, context: Any) -> gossip_pb2.Blob:
        """Have none."""
        return gossip_pb2.Blob()

    async def Watch(
        self, request: gossip_pb2.WatchGossipRequest, context: Any
    ) -> AsyncIterator[gossip_pb2.GossipMessage]:
        """Send one message, and no other."""
        self.watched += 1
        yield gossip_pb2.GossipMessage(sender=str(PLANE), boot_id="b", sequence=1_000_000 + self.watched)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def served(identity: StaticIdentity, plane: Plane) -> AsyncIterator[str]:
    """Give the address of a running control plane."""
    server = new_server()
    gossip_pb2_grpc.add_GossipServicer_to_server(plane, server)
    port = server.add_secure_port(
        "127.0.0.1:0", ServerCredentials(identity, SpiffeId(DOMAIN, "control-plane"))()
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_news_is_watched_again_when_a_rotation_has_closed_the_stream(tmp_path: Path) -> None:
    """gRPC ends such a stream as if its reader had been cancelled: no other task may believe that."""
    identity = StaticIdentity(Authority(DOMAIN))
    plane = Plane()
    keeper = DenialKeeper(
        tmp_path / "denials",
        DOMAIN,
        now_ms=lambda: 0,
        monotonic_ms=lambda: 0,
        anchors=lambda: Anchors(DOMAIN),
    )
    member = Member(NODE, "boot", keeper, timestamp=lambda: (0, b""))
    async with served(identity, plane) as address:
        channels = Channels(identity, retirement_s=0.01)
        gossiper = Gossiper(
            member, channels, SystemClock(), control_planes=[address], peers=dict, shuffled=list
        )
        running = asyncio.create_task(gossiper.run())
        try:
            await eventually(lambda: gossiper.watching, "the stream of news is open")
            identity.replace(identity.authority.svid(NODE))
            await eventually(lambda: plane.watched == 2 and gossiper.watching, "it is open again")
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await channels.close()
