"""A whole sidecar against a real control plane, over real sockets."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.edge.distribution import DistributionServicer
from egm.v1 import node_pb2, node_pb2_grpc
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN, Domain
from tests.support.control_plane import running as control_plane
from tests.support.eventually import eventually
from tests.support.hostile import GRPC_DIES, Tls, knock_out
from tests.support.interop_service import DUPLEX, SERVICE, UNARY, ask
from tests.support.sidecar_mesh import Mesh, policy
from trust.edge.identity_embedded import EmbeddedIdentity
from trust.errors import Reason
from trust.spiffe import SpiffeId

ECHO = SpiffeId.of(TRUST_DOMAIN, "workload", "echo")


async def node_status(mesh: Mesh, address: str, node: str, kind: str = "operator") -> Any:
    """Ask a node's admin listener as some member."""
    credentials = mesh.domain.credentials(kind, "olga")
    async with credentials.channel(address, SpiffeId.of(TRUST_DOMAIN, "node", node).dns_name) as channel:
        return await node_pb2_grpc.NodeStub(channel).GetStatus(node_pb2.GetNodeStatusRequest(), timeout=5)


def as_member(mesh: Mesh, address: str, kind: str, name: str, server: SpiffeId) -> grpc.aio.Channel:
    """Connect as some member to `server`."""
    return mesh.domain.credentials(kind, name).channel(address, server.dns_name)


def tls_of(mesh: Mesh, kind: str, name: str, server: SpiffeId) -> Tls:
    """Return what some member shows to `server`."""
    shown = mesh.domain.credentials(kind, name)
    return Tls(shown.anchors, server.dns_name, shown.key, shown.chain)


async def overall_health(channel: grpc.aio.Channel) -> None:
    """Ask, and wait for the listener if it is away."""
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)


async def test_call_is_refused_before_policy_then_governed_at_both_ends(mesh: Mesh) -> None:
    """Listeners are up at once and closed; one publication opens exactly what it permits."""
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.POLICY_MISSING
        assert (await node_status(mesh, b.admin, "b")).not_ready
        await mesh.publish(policy())
        await a.enforces(1)
        await b.enforces(1)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) == b"\0"
        await eventually(lambda: len(b.events) == 2, "ready-to-serve")
        assert [event["event"] for event in b.events] == ["listening", "ready-to-serve"]
        status = await node_status(mesh, b.admin, "b")
        assert (status.state, status.policy_version, status.lease) == ("READY", 1, "FRESH")
        assert status.decisions["inbound.ALLOWED"] == 1

        async def reported() -> bool:
            async with mesh.cp.operator() as operator:
                return {r.node for r in await operator.nodes() if r.status.policy_version == 1} == {
                    "a",
                    "b",
                }

        async with asyncio.timeout(60):
            while not await reported():  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_caller_without_permit_is_refused_by_its_own_sidecar(mesh: Mesh) -> None:
    """The request never leaves the caller's node."""
    await mesh.publish(policy())
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"], "bob")) as a,
    ):
        await a.enforces(1)
        assert await sidecars.unary(a.outbound, UNARY) is Reason.NO_POLICY_PERMITS
        assert mesh.echo.metadata == []


async def test_new_policy_cuts_an_open_stream_with_the_reason(mesh: Mesh) -> None:
    """A stream opened under yesterday's policy must not outlive it."""
    await mesh.publish(policy())
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
        grpc.aio.insecure_channel(a.outbound) as channel,
    ):
        await a.enforces(1)
        await b.enforces(1)
        stream: Any = channel.stream_stream(DUPLEX, None, None)(timeout=30)  # type: ignore[call-arg]
        await stream.write(ask(sizes=[1]))
        assert await stream.read() == b"\0"
        await mesh.publish(policy(allow=("bob",)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "AUTHORIZATION_WITHDRAWN" in (caught.value.details() or "")


async def test_restart_without_control_plane_resumes_from_disk_and_then_seals(
    domain: Domain, tmp_path: Path
) -> None:
    """Within the lease the node governs on its own; when the lease is over, level 4 refuses."""
    at = domain.at(tmp_path)
    async with sidecars.upstream() as (echo, address):
        async with control_plane(at) as cp:
            mesh = Mesh(tmp_path, at, cp, echo, address)
            await mesh.enrol()
            await mesh.publish(policy(ttl_s=3, grace_s=1))
            async with (
                sidecars.running(mesh.callee()) as b,
                sidecars.running(mesh.caller(b.inbound["echo"])) as a,
            ):
                await a.enforces(1)
                await b.enforces(1)
        async with (
            sidecars.running(mesh.callee()) as b,
            sidecars.running(mesh.caller(b.inbound["echo"])) as a,
        ):
            await a.enforces(1)
            await b.enforces(1)
            assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) == b"\0"
            await eventually(lambda: a.sidecar.view.lease() == "SEALED", "sealed")
            assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.POLICY_STALE
            assert "POLICY_STALE" in a.sidecar.view.readiness().not_ready[0]


async def test_level_1_passes_what_level_4_would_refuse_and_counts_it(mesh: Mesh) -> None:
    """The approvers may sign a mesh that only observes."""
    await mesh.publish(policy(level=1))
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"], "bob")) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) == b"\0"
        decisions = a.sidecar.pipeline.counters.decisions()
        assert decisions["outbound.would_deny.NO_POLICY_PERMITS"] == 1


async def test_drain_lets_a_call_in_flight_finish_and_says_not_serving(mesh: Mesh) -> None:
    """A deployment must not cut calls."""
    await mesh.publish(policy())
    health = {"health": {"listen": sidecars.LOOPBACK}}
    async with (
        sidecars.running(mesh.callee(**health)) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        call = asyncio.create_task(sidecars.unary(a.outbound, UNARY, ask(size=1, sleep_ms=700)))
        await eventually(lambda: mesh.echo.metadata, "the call reached the service")
        a.sidecar.stop.set()
        assert await call == b"\0"
        await a.task
        assert a.sidecar.view.readiness().state == "DRAINING"


async def test_health_tells_node_and_services_and_nothing_before_policy(mesh: Mesh) -> None:
    """A load balancer must not send calls to a sidecar without policy."""
    socket = mesh.home / "health.sock"
    async with (
        sidecars.running(mesh.callee(health={"listen": f"unix://{socket}"})) as b,
        grpc.aio.insecure_channel(f"unix://{socket}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        async def answers() -> list[int]:
            asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", "echo")]
            return [(await stub.Check(one, timeout=5)).status for one in asked]

        assert await answers() == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
        await mesh.publish(policy())
        await b.enforces(1)
        async with asyncio.timeout(60):
            while await answers() != [health_pb2.HealthCheckResponse.SERVING] * 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["workload", "node"])
async def test_admin_answers_operators_only(mesh: Mesh, kind: str) -> None:
    """A valid certificate of the mesh is not enough."""
    async with sidecars.running(mesh.callee()) as b:
        assert (await node_status(mesh, b.admin, "b")).node == "b"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node_status(mesh, b.admin, "b", kind)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.filterwarnings(GRPC_DIES)
async def test_method_name_that_is_no_text_takes_no_listener_of_a_node_away(mesh: Mesh) -> None:
    """One malformed request must end neither health, nor admin, nor the mTLS listener of a service."""
    health = f"unix://{mesh.home / 'health.sock'}"
    node = SpiffeId.of(TRUST_DOMAIN, "node", "b")
    await mesh.publish(policy())
    async with asyncio.timeout(60), sidecars.running(mesh.callee(health={"listen": health})) as b:
        await b.enforces(1)
        for _ in range(2):
            async with grpc.aio.insecure_channel(health) as channel:
                await overall_health(channel)
            await knock_out(health)
            async with as_member(mesh, b.admin, "operator", "olga", node) as channel:
                await overall_health(channel)
            await knock_out(b.admin, tls_of(mesh, "operator", "olga", node))
            async with as_member(mesh, b.inbound["echo"], "workload", "alice", ECHO) as channel:
                assert await channel.unary_unary(UNARY, None, None)(ask(size=1), wait_for_ready=True) == b"\0"
            await knock_out(b.inbound["echo"], tls_of(mesh, "workload", "alice", ECHO))
        async with grpc.aio.insecure_channel(health) as channel:
            await overall_health(channel)
        async with as_member(mesh, b.inbound["echo"], "workload", "alice", ECHO) as channel:
            assert await channel.unary_unary(UNARY, None, None)(ask(size=1), wait_for_ready=True) == b"\0"
        async with as_member(mesh, b.admin, "operator", "olga", node) as channel:
            await overall_health(channel)
        assert not b.task.done()


@pytest.fixture
def fetched_with(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The client certificate of every file that a control plane (started later) sends."""
    shown: list[bytes] = []
    real = DistributionServicer.GetFile

    async def watched(self: DistributionServicer, request: Any, context: Any) -> Any:
        shown.append(context.auth_context()["x509_pem_cert"][0])
        async for chunk in real(self, request, context):
            yield chunk

    monkeypatch.setattr(DistributionServicer, "GetFile", watched)
    return shown


async def test_policy_is_fetched_with_the_renewed_certificate(fetched_with: list[bytes], mesh: Mesh) -> None:
    """A download link that kept its first certificate would end when that expires."""
    await mesh.publish(policy())
    async with sidecars.running(mesh.callee()) as b:
        await b.enforces(1)
        first = set(fetched_with)
        identity = b.sidecar.identity
        assert isinstance(identity, EmbeddedIdentity)
        await identity.renew_now()
        fetched_with.clear()
        await mesh.publish(policy(allow=("bob",)))
        await b.enforces(2)
        held = identity.svid(SpiffeId.of(TRUST_DOMAIN, "node", "b")).chain_pem
        assert len(first) == 1
        assert first.isdisjoint(fetched_with)
        assert all(held.startswith(one.strip()) for one in fetched_with)


async def test_admin_check_decides_without_executing(mesh: Mesh) -> None:
    """`egm check` shows what would happen, and leaves no trace in the counts."""
    await mesh.publish(policy())
    async with sidecars.running(mesh.callee()) as b:
        await b.enforces(1)
        credentials = mesh.domain.credentials("operator", "olga")
        name = SpiffeId.of(TRUST_DOMAIN, "node", "b").dns_name
        async with credentials.channel(b.admin, name) as channel:
            stub = node_pb2_grpc.NodeStub(channel)

            async def check(**fields: str) -> Any:
                return await stub.Check(node_pb2.CheckRequest(**fields), timeout=5)

            asked = {"service": "echo", "method": f"/{SERVICE}/UnaryCall"}
            allowed = await check(caller="alice", **asked)
            assert (allowed.allowed, list(allowed.policies), allowed.policy_version) == (
                True,
                ["alice-may"],
                1,
            )
            refused = await check(caller=f"spiffe://{TRUST_DOMAIN}/workload/bob", **asked)
            assert (refused.allowed, refused.reason) == (False, "NO_POLICY_PERMITS")
            for wrong, word in [
                ({"caller": "../x", **asked}, "caller"),
                ({"caller": "alice", **asked, "service": "nope"}, "nope"),
                ({"caller": "alice", **asked, "request_json": "{}"}, "descriptor"),
            ]:
                with pytest.raises(grpc.aio.AioRpcError, match=word):
                    await check(**wrong)
        assert b.sidecar.pipeline.counters.decisions() == {}


async def test_unix_socket_listener_is_private_and_identifies_its_workload(mesh: Mesh) -> None:
    """Who can open the socket is the workload: nobody else may."""
    await mesh.publish(policy())
    path = mesh.home / "sockets" / "alice.sock"
    outbound = [
        {"workload": "alice", "service": "echo", "listen": f"unix://{path}", "identify": "unix-socket"}
    ]
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"], outbound=outbound)) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert path.stat().st_mode & 0o777 == 0o600
        assert await sidecars.unary(f"unix://{path}", UNARY, ask(size=1)) == b"\0"
    assert not path.exists()


async def test_service_under_another_workload_than_signed_is_refused_by_callers_and_noted(mesh: Mesh) -> None:
    """A node that may hold some certificate must not serve any service with it."""
    await mesh.publish(policy())
    await sidecars.token(mesh.cp, mesh.home / "b", "b", "other")
    services = {"echo": {"addresses": ["127.0.0.1:9"], "workload": "other"}}
    async with (
        sidecars.running(mesh.callee(services=services)) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        await eventually(lambda: list(b.sidecar.view.notes()), "noted")
        assert any("the signed policy says echo" in text for text in b.sidecar.view.status().alarms)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.UPSTREAM_UNAVAILABLE
        assert mesh.echo.metadata == []


async def test_local_level_below_the_signed_one_ends_the_start(mesh: Mesh) -> None:
    """A person who lowers the level must be told that it does nothing."""
    await mesh.publish(policy())
    async with sidecars.running(mesh.callee()) as b:
        await b.enforces(1)
    with pytest.raises(Exception, match="level: 1 is lower than 4"):
        async with sidecars.running(mesh.callee(level=1)) as b:
            await b.task
