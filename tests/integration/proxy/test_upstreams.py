"""Real upstreams of every kind: several addresses, Unix sockets, TLS, and the standard services behind them."""

import asyncio
import stat
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from sidecar.core.call import Attempt, Decision
from sidecar.core.gate import Gate, Metadata, Observer
from sidecar.edge import upstream
from sidecar.edge.proxy import build_server
from tests.integration.proxy.test_transparency import until
from tests.support.errors import outcome
from tests.support.interop_service import DUPLEX, EMPTY, UNARY, InteropService, ask
from tests.support.open_gate import OpenGate
from tests.support.pki import Authority
from tests.support.proxies import ALICE, DOMAIN, SHOP, hop, path, pool, served
from trust.errors import Reason


async def test_calls_are_spread_over_all_addresses_and_survive_the_loss_of_one() -> None:
    """Several instances of a service share the load; a dead one costs nothing."""
    first, second = InteropService(), InteropService()
    async with served(first) as a, served(second) as b, pool() as channels:
        target = upstream.targets([a, b, "127.0.0.1:1"])
        to = upstream.Upstream([lambda: channels.plain(target[0])])
        async with hop(to, OpenGate()) as front, grpc.aio.insecure_channel(front) as channel:
            call = channel.unary_unary(EMPTY, None, None)
            await call(b"")
            await until(lambda: channels.plain(target[0]).get_state() is grpc.ChannelConnectivity.READY)
            async with asyncio.timeout(60):
                while not (first.metadata and second.metadata):
                    await call(b"")


async def test_unix_sockets_work_on_both_sides_and_the_listener_is_the_owners(tmp_path: Path) -> None:
    """A workload is identified by its socket: nobody else may open it."""
    service = InteropService()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    behind, front = f"unix://{tmp_path}/behind", f"unix://{tmp_path}/front"
    server.add_insecure_port(behind)
    await server.start()
    async with pool() as channels:
        to = upstream.local(channels, behind)
        async with hop(to, OpenGate(), listen=front), grpc.aio.insecure_channel(front) as channel:
            assert stat.S_IMODE((tmp_path / "front").stat().st_mode) == 0o600
            assert await channel.unary_unary(UNARY, None, None)(ask(size=3)) == bytes(3)
    await server.stop(0)


async def test_local_service_behind_tls_is_verified_by_its_ca_and_name() -> None:
    """The last stretch may be TLS too; the wrong CA is an unavailable service, not a plaintext one."""
    authority = Authority(DOMAIN)
    svid = authority.svid(SHOP)
    credentials = grpc.ssl_server_credentials([(svid.key_pem, svid.chain_pem)])
    server, port = build_server([InteropService()], "127.0.0.1:0", lambda: credentials)
    await server.start()
    async with pool() as channels:
        for ca, expected in ((authority, None), (Authority(DOMAIN), "UPSTREAM_UNAVAILABLE")):
            to = upstream.local(channels, f"127.0.0.1:{port}", ca_pem=ca.pem, server_name=SHOP.dns_name)
            async with hop(to, OpenGate()) as front, grpc.aio.insecure_channel(front) as channel:
                call = channel.unary_unary(EMPTY, None, None)(b"", timeout=10)
                if expected is None:
                    assert await call == b""
                else:
                    _, _, info = await outcome(call)
                    assert info["reason"] == expected
    await server.stop(0)


async def test_health_and_reflection_of_the_service_pass() -> None:
    """Tools that ask a service about itself must not notice the sidecar."""
    server = grpc.aio.server()
    servicer = cast("Any", health).aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("shop", health_pb2.HealthCheckResponse.NOT_SERVING)
    reflection.enable_server_reflection(["shop.Payments", reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with pool() as channels:
        to = upstream.local(channels, f"127.0.0.1:{port}")
        async with hop(to, OpenGate()) as front, grpc.aio.insecure_channel(front) as channel:
            asked = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="shop")
            )
            assert asked.status == health_pb2.HealthCheckResponse.NOT_SERVING
            watching = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="shop")
            )
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await servicer.set("shop", health_pb2.HealthCheckResponse.SERVING)
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            watching.cancel()
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            talk = stub.ServerReflectionInfo()
            await talk.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            listed = await talk.read()
            assert "shop.Payments" in {one.name for one in listed.list_services_response.service}
            await talk.done_writing()
    await server.stop(0)


class Notebook:
    """A second implementation of the observer: writes everything down."""

    def __init__(self) -> None:
        """Start empty."""
        self.lines: list[str] = []

    def begin(self, attempt: Attempt, metadata: Metadata) -> tuple[object, Metadata]:
        """Add a trace header."""
        self.lines.append(f"begin {attempt.method.rpartition('/')[2]}")
        return len(self.lines), [*metadata, ("traceparent", "ours")]

    def decided(self, handle: object, decision: Decision) -> None:
        """Note the decision."""
        self.lines.append(f"decided {decision.reason}")

    def end(self, handle: object, status: str) -> None:
        """Note the end."""
        self.lines.append(f"end {status}")


async def test_observer_hears_of_each_execution_once_and_its_trace_context_is_forwarded() -> None:
    """Spans must not leak, whether a call succeeds, is refused, fails or is cancelled."""
    notebook = Notebook()
    refused: list[Reason] = []
    gate = OpenGate(refuse=lambda attempt, request: refused[0] if refused else None)
    async with path(1, gate=gate, observer=notebook) as through:
        await through.channel.unary_unary(EMPTY, None, None)(b"")
        assert dict(through.service.metadata[0])["traceparent"] == "ours"
        await outcome(through.channel.unary_unary(UNARY, None, None)(ask(code=5)))
        cancelled = through.channel.stream_stream(DUPLEX, None, None)(None)
        await until(lambda: len(through.service.metadata) == 3)
        cancelled.cancel()
        await until(lambda: "end CANCELLED" in notebook.lines)
        refused.append(Reason.POLICY_STALE)
        await outcome(through.channel.unary_unary(EMPTY, None, None)(b""))
        await until(lambda: len(notebook.lines) == 12)
    assert notebook.lines == [
        *("begin EmptyCall", "decided ALLOWED", "end OK"),
        *("begin UnaryCall", "decided ALLOWED", "end NOT_FOUND"),
        *("begin FullDuplexCall", "decided ALLOWED", "end CANCELLED"),
        *("begin EmptyCall", "decided POLICY_STALE", "end UNAVAILABLE"),
    ]


def test_fakes_implement_the_ports() -> None:
    """The type checker holds the fakes to the ports; this keeps them imported."""
    implementations: tuple[Gate, Observer, Any] = (OpenGate(), Notebook(), ALICE)
    assert all(implementations)
