"""Emergency revocation over real sockets: at once, everywhere, past a dead control plane, across restarts."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from egm.v1 import gossip_pb2, gossip_pb2_grpc
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.control_plane import running as control_plane
from tests.support.emergency import FIRST, SECOND, EmergencyKey
from tests.support.eventually import eventually
from tests.support.interop_service import DUPLEX, UNARY, ask
from tests.support.sidecar_mesh import Mesh, emergency_policy
from tests.support.sidecars import RunningSidecar
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import Reason
from trust.revocation import Kind
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns


def directive(kind: Kind, value: str, *, key: EmergencyKey = FIRST, ttl_s: int = 600) -> bytes:
    """Return a directive for the test mesh, issued now."""
    now_ms = SystemClock().now_ms()
    return key.revoke(kind, value, now_ms=now_ms, ttl_s=ttl_s, trust_domain=TRUST_DOMAIN)


@contextlib.asynccontextmanager
async def emergency(mesh: Mesh, node: RunningSidecar | None, name: str = "") -> AsyncIterator[Any]:
    """Connect an operator to a node's admin listener, or to the control plane."""
    shown = mesh.domain.credentials("operator", "olga")
    address = mesh.cp.listen if node is None else node.admin
    dns = control_plane_dns(TRUST_DOMAIN)
    if node is not None:
        dns = SpiffeId.of(TRUST_DOMAIN, "node", name).dns_name
    async with shown.channel(address, dns) as channel:
        yield gossip_pb2_grpc.EmergencyStub(channel)


async def hand_in(mesh: Mesh, data: bytes, node: RunningSidecar | None = None, name: str = "") -> Any:
    """Hand a directive in."""
    async with emergency(mesh, node, name) as stub:
        return await stub.Revoke(gossip_pb2.RevokeRequest(directive=data), timeout=10)


def denies(node: RunningSidecar) -> bool:
    """Whether anything is denied on a node."""
    return node.sidecar.membership.denials.denials.any


async def both(mesh: Mesh, stack: contextlib.AsyncExitStack, **changes: Any) -> tuple[Any, Any]:
    """Start callee and caller under a policy with an emergency key."""
    await mesh.publish(emergency_policy(**changes))
    b = await stack.enter_async_context(sidecars.running(mesh.callee()))
    a = await stack.enter_async_context(sidecars.running(mesh.caller(b.inbound["echo"])))
    for node in (a, b):
        await node.enforces(1)
    # In its first second a node takes no permit, and the first connection to it may have failed before: in any order.
    answers = []
    async with asyncio.timeout(60):
        while (answer := await sidecars.unary(a.outbound, UNARY, ask(size=1))) != b"\0":
            answers.append(answer)
            await asyncio.sleep(0.1)
    assert set(answers) <= {Reason.PERMIT_UNVERIFIABLE, Reason.UPSTREAM_UNAVAILABLE}
    return a, b


async def test_revoked_workload_is_denied_on_every_node_and_its_open_stream_is_cut(mesh: Mesh) -> None:
    """Handed in at the control plane; nodes hear of it over the stream that they keep open."""
    async with contextlib.AsyncExitStack() as stack:
        a, b = await both(mesh, stack)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(a.outbound))
        stream: Any = channel.stream_stream(DUPLEX, None, None)(timeout=30)  # type: ignore[call-arg]
        await stream.write(ask(sizes=[1]))
        assert await stream.read() == b"\0"
        answer = await hand_in(mesh, directive(Kind.WORKLOAD, "alice"))
        assert answer.news
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert error_from_rpc(caught.value).reason is Reason.REVOKED
        await eventually(lambda: denies(a) and denies(b), "denied on both nodes")
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.REVOKED
        assert not (await hand_in(mesh, directive(Kind.WORKLOAD, "alice", ttl_s=60))).news


async def test_directive_of_a_key_that_is_not_signed_is_refused_by_everybody(mesh: Mesh) -> None:
    """Neither an operator nor a control plane can deny by themselves."""
    async with contextlib.AsyncExitStack() as stack:
        a, _ = await both(mesh, stack)
        for node, name in ((None, ""), (a, "a")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await hand_in(mesh, directive(Kind.WORKLOAD, "alice", key=SECOND), node, name)
            assert error_from_rpc(caught.value).reason is Reason.REVOCATION_INVALID
        assert not denies(a)


async def test_node_that_hears_of_it_tells_the_others_without_control_plane_and_remembers_it(
    mesh: Mesh,
) -> None:
    """The control plane is dead: one reachable node is enough, and a restart forgets nothing."""
    await mesh.publish(emergency_policy(ttl_s=3600))
    async with contextlib.AsyncExitStack() as stack:
        b = await stack.enter_async_context(sidecars.running(mesh.callee()))
        await b.enforces(1)
        nobody = {"addresses": ["127.0.0.1:1"], "join_addresses": [mesh.cp.join_listen]}
        async with sidecars.running(mesh.caller(b.inbound["echo"])) as a:
            await a.enforces(1)  # enrolled, with policy on disk
        alone = mesh.caller(b.inbound["echo"], control_plane=nobody, peers={"b": b.admin})
        async with sidecars.running(alone) as a:
            await a.enforces(1)
            await hand_in(mesh, directive(Kind.METHOD, UNARY.removeprefix("/")), b, "b")
            await eventually(lambda: denies(a), "told by its peer")
            assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.REVOKED
        lonely = mesh.caller(b.inbound["echo"], control_plane=nobody)
        async with sidecars.running(lonely) as a:
            await a.enforces(1)
            assert denies(a)
            assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.REVOKED


@pytest.mark.parametrize("swallows", [False, True], ids=["refuses", "swallows packets"])
async def test_node_cut_off_from_control_plane_and_broker_gets_policy_from_a_peer(
    mesh: Mesh, swallows: bool
) -> None:
    """Everything is verified, so it does not matter who sends it; silence costs one short wait."""
    await mesh.publish(emergency_policy())
    async with contextlib.AsyncExitStack() as stack:
        hole = stack.enter_context(contextlib.closing(socket.socket()))
        hole.bind(("127.0.0.1", 0))
        if swallows:
            hole.listen()  # connections are taken by the kernel, and nobody ever answers on them
        b = await stack.enter_async_context(sidecars.running(mesh.callee()))
        await b.enforces(1)
        async with sidecars.running(mesh.caller(b.inbound["echo"])) as a:
            await a.enforces(1)
        nobody = {
            "addresses": [f"127.0.0.1:{hole.getsockname()[1]}"],
            "join_addresses": [mesh.cp.join_listen],
        }
        alone = mesh.caller(b.inbound["echo"], control_plane=nobody, peers={"b": b.admin})
        a = await stack.enter_async_context(sidecars.running(alone))
        await a.enforces(1)
        await mesh.publish(emergency_policy(allow=("bob",)))
        await b.enforces(2)
        await a.enforces(2)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.NO_POLICY_PERMITS


async def test_revoked_node_refuses_everything_and_its_permits_are_worth_nothing(mesh: Mesh) -> None:
    """At level 5 the callee knows which node vouches for the caller."""
    async with contextlib.AsyncExitStack() as stack:
        a, b = await both(mesh, stack, level=5)
        # the callee alone hears of it: the caller's sidecar is what is not trusted any more
        b.sidecar.membership.denials.revoke(directive(Kind.NODE, "a"))
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.REVOKED
        await eventually(lambda: denies(a), "node a hears of it")
        decision = a.sidecar.view.status()
        assert any("refuses everything" in alarm for alarm in decision.alarms)


async def test_quorum_ends_a_revocation_and_a_new_control_plane_learns_the_others(mesh: Mesh) -> None:
    """A lift is an allow: only the approvers sign it. What nodes know, a restarted control plane hears from them."""
    async with contextlib.AsyncExitStack() as stack:
        a, b = await both(mesh, stack)
        data = directive(Kind.WORKLOAD, "alice")
        name = (await hand_in(mesh, data, b, "b")).id
        await eventually(lambda: denies(a), "told by gossip")

        async def listed() -> list[str]:
            async with emergency(mesh, None) as stub:
                found = await stub.ListDenials(gossip_pb2.ListDenialsRequest(), timeout=10)
                return [one.id for one in found.denials]

        async with asyncio.timeout(60):
            while await listed() != [name]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await mesh.publish(emergency_policy(ended=(name,)))
        await a.enforces(2)
        await b.enforces(2)
        assert not denies(a)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) == b"\0"


async def test_broker_alone_brings_a_revocation_to_a_node(mesh: Mesh) -> None:
    """Retained: a node that connects later hears of it, too."""
    await mesh.publish(emergency_policy())
    async with contextlib.AsyncExitStack() as stack:
        plane = await stack.enter_async_context(
            control_plane(mesh.domain, mesh.domain.config("cp-2", broker="embedded"))
        )
        with_broker = Mesh(mesh.home, mesh.domain, plane, mesh.echo, mesh.address)
        await with_broker.enrol()
        await with_broker.publish(emergency_policy())
        async with sidecars.running(with_broker.callee()) as b:
            await b.enforces(1)
        await hand_in(with_broker, directive(Kind.WORKLOAD, "alice"))
        nobody = {"addresses": ["127.0.0.1:1"], "join_addresses": [plane.join_listen]}
        alone = with_broker.callee(control_plane=nobody, broker=plane.broker)
        b = await stack.enter_async_context(sidecars.running(alone))
        await eventually(lambda: denies(b), "heard from the broker")
