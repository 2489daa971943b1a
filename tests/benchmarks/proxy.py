"""What a governed hop costs: calls per second and CPU per call, against no hop and against a bare hop.

    python -m tests.benchmarks.proxy

Every part is a process of its own: service, hop, client. The bare hop is the least that forwards any gRPC call
correctly with grpc.aio's public API (metadata, deadline, status); the governed hop is a sidecar's inbound listener
with the real pipeline and engine. Both listen with mTLS. The load takes turns between the hops, so that what else
the machine does falls on all alike. The client is one
grpc.aio process: it is what limits calls/s, so compare CPU.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import psutil

from sidecar.core.bundle_state import BundleState, Record
from sidecar.core.call import Direction
from sidecar.core.pipeline import Pipeline
from sidecar.edge import upstream
from sidecar.edge.identify import mtls
from sidecar.edge.proxy import Proxy, build_server
from tests.support.engines import engine, order
from tests.support.interop_service import GenericHandler
from tests.support.pki import Authority, StaticIdentity
from tests.support.proxies import ALICE, DOMAIN, SHOP
from tests.support.sidecar_core import verified
from trust.edge.clock import SystemClock
from trust.edge.tls import Channels, ServerCredentials
from trust.identity import Svid

EOF: Any = cast("Any", grpc.aio).EOF
UNARY = "/shop.Orders/Place"
STREAM = "/shop.Orders/Chat"
CONCURRENCY = 16
ROUNDS = 5
SECONDS_PER_ROUND = 1.5
MESSAGES_PER_STREAM = 50

POLICIES = """
@id("ceiling") forbid(principal, action == Action::"shop.Orders/Place", resource)
  when {{ {when} }};
@id("buyers") permit(principal in Role::"buyers", action in Action::"shop.Orders", resource == Service::"payments");
"""
PLAIN = POLICIES.format(when='context.caller.authn == "loopback"')
READING = POLICIES.format(when="context.request.amount > 1000")


class Echo(GenericHandler):
    """The service: answers what it is asked."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler."""

        async def unary(request: bytes, context: Any) -> bytes:
            return request

        async def stream(requests: Any, context: Any) -> None:
            while (message := await context.read()) is not EOF:
                await context.write(message)

        if handler_call_details.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.stream_stream_rpc_method_handler(cast("Any", stream))


class Bare(GenericHandler):
    """The bare hop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Make the callables once."""
        self._unary = channel.unary_unary(UNARY, None, None)
        self._stream = channel.stream_stream(STREAM, None, None)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler."""
        if handler_call_details.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(cast("Any", self._forward_unary))
        return grpc.stream_stream_rpc_method_handler(cast("Any", self._forward_stream))

    async def _forward_unary(self, request: bytes, context: Any) -> bytes:
        call = self._unary(request, metadata=_crossing(context), timeout=context.time_remaining())
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
        if initial := await call.initial_metadata():
            await context.send_initial_metadata(tuple(initial))
        if trailing := await call.trailing_metadata():
            context.set_trailing_metadata(tuple(trailing))
        return cast("bytes", response)

    async def _forward_stream(self, requests: Any, context: Any) -> None:
        call = self._stream(None, metadata=_crossing(context), timeout=context.time_remaining())

        async def send() -> None:
            while (message := await context.read()) is not EOF:
                await call.write(message)
            await call.done_writing()

        sender = asyncio.ensure_future(send())
        try:
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            while (message := await call.read()) is not EOF:
                await context.write(message)
            if trailing := await call.trailing_metadata():
                context.set_trailing_metadata(tuple(trailing))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
        finally:
            sender.cancel()


def _crossing(context: Any) -> tuple[Any, ...]:
    return tuple(pair for pair in context.invocation_metadata() if pair[0] != "user-agent")


def pipeline(policies: str) -> Pipeline:
    """Return a sidecar's pipeline with these policies in force."""
    clock = SystemClock()
    state = BundleState(Record(), monotonic_ms=clock.monotonic_ms())
    decider = engine(policies)
    lease_ms = clock.now_ms() + decider.mesh.lease.ttl_s * 1000
    policy = verified(1, lease_expires_ms=lease_ms)
    state.offer(policy, decider, now_ms=clock.now_ms(), monotonic_ms=clock.monotonic_ms())
    made = Pipeline(node="bench", trust_domain=DOMAIN, boot_id="boot", state=state, clock=clock)
    made.governance_changed()
    return made


def _write_pki(folder: Path) -> None:
    identity = StaticIdentity(Authority(DOMAIN))
    for name, who in (("alice", ALICE), ("shop", SHOP)):
        svid = identity.svid(who)
        (folder / f"{name}.pem").write_bytes(svid.chain_pem)
        (folder / f"{name}.key").write_bytes(svid.key_pem)
    (folder / "ca.pem").write_bytes(identity.anchors_pem())


class _Files(StaticIdentity):
    """The identities that the parent process wrote."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Authority(DOMAIN))
        for name, who in (("alice", ALICE), ("shop", SHOP)):
            chain, key = (folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()
            self.held[who] = Svid(who, chain, key, 0, 2**50)
        self._anchors = (folder / "ca.pem").read_bytes()

    def anchors_pem(self) -> bytes:
        return self._anchors


async def serve(role: str, target: str, folder: Path) -> None:
    """Be one process: "echo", "bare", "governed" or "reading"; print the port and serve until killed."""
    identity = _Files(folder)
    handler: GenericHandler
    if role == "echo":
        handler = Echo()
    elif role == "bare":
        handler = Bare(grpc.aio.insecure_channel(target))
    else:
        channels = Channels(None, options=upstream.UPSTREAM_OPTIONS)
        to = upstream.local(channels, target)
        handler = Proxy(
            Direction.INBOUND,
            "payments",
            gate=pipeline(READING if role == "reading" else PLAIN),
            identify=mtls(DOMAIN),
            route=lambda service, method, metadata: to,
            clock=SystemClock(),
        )
    credentials = None if role == "echo" else ServerCredentials(identity, SHOP)
    server, port = build_server([handler], "127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)  # noqa: T201
    await server.wait_for_termination()


@dataclass
class Part:
    """One process under load and what was measured of it."""

    role: str
    process: psutil.Process
    channel: grpc.aio.Channel
    calls: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    def cpu(self) -> float:
        """Return the CPU time used so far, in seconds."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def started(role: str, target: str, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Start a process of this module; yield it and its address."""
    command = [sys.executable, "-m", "tests.benchmarks.proxy", role, target, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def under_load(roles: list[str], folder: Path) -> AsyncIterator[list[Part]]:
    """Start the service and one process for each role; yield the parts."""
    identity = _Files(folder)
    with contextlib.ExitStack() as stack:
        echo, address = stack.enter_context(started("echo", "", folder))
        parts = [Part("direct", echo, grpc.aio.insecure_channel(address))]
        channels = Channels(identity)
        for role in roles:
            process, hop = stack.enter_context(started(role, address, folder))
            parts.append(Part(role, process, channels.get(hop, client=ALICE, server_dns=SHOP.dns_name)))
        yield parts
        await channels.close()
        await parts[0].channel.close(None)


async def unary_load(channel: grpc.aio.Channel, until: float) -> int:
    """Make unary calls until a moment; return how many."""
    call, request, made = channel.unary_unary(UNARY, None, None), order(amount=5), 0
    while time.perf_counter() < until:
        await call(request, timeout=10)
        made += 1
    return made


async def stream_load(channel: grpc.aio.Channel, until: float) -> int:
    """Open streams, exchange messages on each, until a moment; return how many messages came back."""
    stream, request, made = channel.stream_stream(STREAM, None, None), order(amount=5), 0
    while time.perf_counter() < until:
        call = stream(None, timeout=10)
        for _ in range(MESSAGES_PER_STREAM):
            await call.write(request)
            await call.read()
        await call.done_writing()
        await call.read()
        made += MESSAGES_PER_STREAM
    return made


async def measure(
    kind: str, load: Any, roles: list[str], folder: Path, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Put every part under `load` in turns and return one row each."""
    async with under_load(roles, folder) as parts:
        for part in parts:
            await load(part.channel, time.perf_counter() + 0.5)  # connected and warm
        for _ in range(rounds):
            for part in parts:
                cpu, start = part.cpu(), time.perf_counter()
                counts = await asyncio.gather(
                    *(load(part.channel, start + seconds) for _ in range(CONCURRENCY))
                )
                part.calls += sum(counts)
                part.seconds += time.perf_counter() - start
                part.cpu_s += part.cpu() - cpu
    bare = next(part.cpu_s / part.calls for part in parts if part.role == "bare")
    return [
        {
            "kind": kind,
            "hop": part.role,
            "per_s": round(part.calls / part.seconds),
            "cpu_us": round(part.cpu_s / part.calls * 1e6, 1),
            "cpu_ratio_to_bare": round(part.cpu_s / part.calls / bare, 2),
        }
        for part in parts
    ]


def run(rounds: int = ROUNDS, seconds: float = SECONDS_PER_ROUND) -> list[dict[str, Any]]:
    """Measure unary calls and stream messages; return a row per hop.

    `cpu_us` is the CPU time of the hop's process per call (unary) or per message there and back (stream), for
    "direct" that of the service itself.
    """
    import uvloop

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_pki(folder)
        roles = ["bare", "governed", "reading"]
        unary = uvloop.run(measure("unary", unary_load, roles, folder, rounds, seconds))
        stream = uvloop.run(measure("stream", stream_load, roles[:2], folder, rounds, seconds))
    return [*unary, *stream]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        import uvloop

        uvloop.run(serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
    else:
        print(json.dumps(run(), indent=1))  # noqa: T201
