"""Topologies for proxy tests: a client in front of a service, directly, through one sidecar, or through two."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from sidecar.core.call import Direction
from sidecar.core.gate import Gate, Shape
from sidecar.edge import upstream
from sidecar.edge.identify import fixed, mtls
from sidecar.edge.proxy import Proxy, build_server
from tests.support.interop_service import EMPTY, FLOOD, OUTPUT, UNARY, GenericHandler, InteropService
from tests.support.open_gate import OpenGate
from tests.support.pki import Authority, StaticIdentity
from trust.edge.clock import SystemClock
from trust.edge.tls import Channels, ServerCredentials
from trust.policy.types import Authn
from trust.spiffe import SpiffeId

DOMAIN = "mesh.local"
ALICE = SpiffeId.of(DOMAIN, "workload", "alice")
SHOP = SpiffeId.of(DOMAIN, "workload", "shop")

KNOWN: Mapping[str, Shape] = {
    EMPTY[1:]: Shape.UNARY,
    UNARY[1:]: Shape.UNARY,
    OUTPUT[1:]: Shape.SERVER_STREAM,
    FLOOD[1:]: Shape.SERVER_STREAM,
}
UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    *upstream.BOUNDED_WINDOW,
]


@dataclass
class Path:
    """What a test holds: the client's channel, the service at the end, and the gates on the way (caller's first)."""

    channel: grpc.aio.Channel
    service: InteropService
    gates: list[OpenGate]
    addresses: list[str]
    identity: StaticIdentity | None


@contextlib.asynccontextmanager
async def served(service: GenericHandler) -> AsyncIterator[str]:
    """Serve in plaintext; yield the address."""
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def pool(identity: StaticIdentity | None = None) -> AsyncIterator[Channels]:
    """Yield a pool of channels as a sidecar would hold."""
    channels = Channels(identity, options=upstream.UPSTREAM_OPTIONS)
    try:
        yield channels
    finally:
        await channels.close()


@contextlib.asynccontextmanager
async def hop(
    to: upstream.Upstream,
    gate: Gate,
    *,
    direction: Direction = Direction.OUTBOUND,
    identity: StaticIdentity | None = None,
    listen: str = "127.0.0.1:0",
    **options: Any,
) -> AsyncIterator[str]:
    """Run one sidecar listener in front of `to`: mTLS as the shop with `identity`, else plaintext for alice."""
    identify = fixed(ALICE, Authn.LOOPBACK) if identity is None else mtls(DOMAIN)
    proxy = Proxy(
        direction,
        "shop",
        gate=gate,
        identify=options.pop("identify", identify),
        route=options.pop("route", lambda service, method, metadata: to),
        clock=options.pop("clock", SystemClock()),
        **options,
    )
    credentials = None if identity is None else ServerCredentials(identity, SHOP)
    limit = {key: options[key] for key in ("max_message_bytes",) if key in options}
    server, port = build_server([proxy], listen, credentials, **limit)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def path(
    sidecars: int, *, known: bool = True, gate: OpenGate | None = None, **options: Any
) -> AsyncIterator[Path]:
    """Yield a client in front of the interoperability service through 0, 1 or 2 sidecars (mTLS between the two).

    Args:
        sidecars: how many.
        known: whether the gates know the methods' shapes; otherwise everything takes the general path.
        gate: the gate of the sidecar nearest to the service; default: allows everything.
        options: for every `Proxy`.
    """
    service = InteropService()
    shapes = KNOWN if known else {}
    gates: list[OpenGate] = []
    identity: StaticIdentity | None = None
    async with contextlib.AsyncExitStack() as stack:
        address = await stack.enter_async_context(served(service))
        addresses = [address]
        if sidecars:
            identity = StaticIdentity(Authority(DOMAIN)) if sidecars == 2 else None
            last = gate or OpenGate(shapes=shapes)
            channels = await stack.enter_async_context(pool(identity))
            to = upstream.local(channels, address)
            address = await stack.enter_async_context(
                hop(to, last, direction=Direction.INBOUND, identity=identity, **options)
            )
            gates.insert(0, last)
            addresses.insert(0, address)
            if identity is not None:
                first = OpenGate(shapes=shapes)
                far = upstream.remote(channels, [address], client=ALICE, server_dns=SHOP.dns_name)
                address = await stack.enter_async_context(hop(far, first, **options))
                gates.insert(0, first)
                addresses.insert(0, address)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, UNLIMITED))
        yield Path(channel, service, gates, addresses, identity)
