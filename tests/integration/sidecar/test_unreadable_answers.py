"""A control plane that answers with bytes that are no message must not end the sidecars that ask it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from egm.v1 import approvals_pb2 as pb
from egm.v1 import attestation_pb2, attestation_pb2_grpc, gossip_pb2_grpc, operator_pb2
from sidecar.edge import attestation_round, credentials
from sidecar.edge.approval_desk import RemoteDesk
from sidecar.edge.reports import Reporter
from sidecar.edge.shadow import ShadowRunner
from tests.support.sidecar_core import Core
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.gossip import Member
from trust.errors import Reason, StateError
from trust.misbehaviour import Anchors
from trust.spiffe import SpiffeId

NODE = SpiffeId.parse("spiffe://mesh.local/node/n1")


class Plain:
    """Channels without TLS: what is answered matters here, not who answers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Take the only channel."""
        self.channel = channel

    def get(self, address: str, *, client: SpiffeId, server_dns: str) -> grpc.aio.Channel:
        """Return it."""
        return self.channel


@pytest.fixture
async def channels() -> AsyncIterator[Any]:
    """Reach a server that answers every question with nonsense."""

    async def nonsense(_request: bytes, _context: object) -> bytes:
        return b"\x0a\xff\xff"

    class Anything(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
        def service(self, _details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(nonsense)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Anything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Plain(channel)
    await server.stop(0)


async def test_an_unreadable_ticket_is_no_answer(channels: Any) -> None:
    """As if nobody had answered: refused, or at level 3 with an alarm; the part that collects goes on."""
    desk = RemoteDesk(channels, ["cp:1"], NODE)
    for ask in (desk.open(pb.OpenTicketRequest()), desk.collect(["0" * 64]), desk.spent(["0" * 64])):
        with pytest.raises(StateError) as caught:
            await ask
        assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


async def test_an_unreadable_assignment_is_no_answer(channels: Any) -> None:
    """The node stays as it is and asks again."""
    core = Core.new()
    runner = ShadowRunner(
        channels,
        ["cp:1"],
        node=NODE,
        boot_id="b",
        client=channels,
        state=core.state,
        pipeline=core.pipeline,
        clock=core.clock,
        local_level=None,
    )
    with pytest.raises(StateError) as caught:
        await runner._exchange("cp:1")
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


async def test_an_unreadable_answer_to_a_report_is_a_report_that_was_not_delivered(channels: Any) -> None:
    """The loop that reports goes on."""
    reporter = Reporter(channels, ["cp:1"], node=NODE, status=operator_pb2.NodeStatus, period_s=60)
    assert not await reporter.report()
    assert "nobody can read" in str(reporter.last_error)


async def test_an_unreadable_credential_or_nonce_is_no_answer(channels: Any) -> None:
    """A peer of the mesh can do no more with nonsense than with silence."""
    for sha256 in (b"", bytes(32)):
        with pytest.raises(StateError) as caught:
            await credentials._from(channels.channel, sha256)
        assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    stub = attestation_pb2_grpc.WitnessStub(channels.channel)
    with pytest.raises(StateError) as caught:
        await attestation_round._answered(stub.Challenge(attestation_pb2.ChallengeRequest()))
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


async def test_an_unreadable_gossip_message_is_no_answer(channels: Any, tmp_path: Path) -> None:
    """The rounds go on with the next peer."""
    keeper = DenialKeeper(
        tmp_path / "denials.json",
        "mesh.local",
        now_ms=lambda: 0,
        monotonic_ms=lambda: 0,
        anchors=lambda: Anchors("mesh.local", b"", None, b""),
    )
    member = Member(NODE, "boot", keeper, timestamp=lambda: (0, b""))
    with pytest.raises(StateError) as caught:
        await member.exchange(gossip_pb2_grpc.GossipStub(channels.channel), NODE, ())
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
