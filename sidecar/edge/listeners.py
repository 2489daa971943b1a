"""The listeners of one node: an inbound one per local service, an outbound one per workload and service."""

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sidecar.config import UNIX, Inbound, Outbound, SidecarConfig
from sidecar.core.call import Direction
from sidecar.core.gate import Gate, Observer
from sidecar.edge import identify, upstream
from sidecar.edge.door import Route
from sidecar.edge.metadata import Pair
from sidecar.edge.notary import Notary
from sidecar.edge.probe import with_probe
from sidecar.edge.proxy import Proxy, build_server
from trust.edge.grpc_errors import FixedInternalErrors
from trust.edge.jwt_bundles import JwtBundles, verifier
from trust.edge.serving import SteadyServer, new_server
from trust.edge.tls import Channels, ServerCredentials, read_ca_file, server_options
from trust.errors import InputError, Reason
from trust.identity import IdentitySource
from trust.policy.types import Authn
from trust.ports import Clock
from trust.spiffe import SpiffeId

_SOCKET_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Parts:
    """What every listener is made of."""

    config: SidecarConfig
    gate: Gate
    identity: IdentitySource
    channels: Channels
    clock: Clock
    serves: Callable[[str], str | None]  # service -> workload that may serve it, by signed policy
    observer: Observer | None = None
    notary: Notary | None = None
    jwt: JwtBundles | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the listeners really are: port 0 has been replaced."""

    inbound: dict[str, str]
    outbound: tuple[dict[str, str], ...]  # workload, service, addr


class Listeners:
    """Started and stopped together."""

    def __init__(self, parts: Parts) -> None:
        """Prepare; nothing is bound yet."""
        self._parts = parts
        self._servers: list[grpc.aio.Server] = []
        self._sockets: list[Path] = []

    async def start(self) -> Addresses:
        """Bind and serve all of them, or none.

        Raises:
            InputError: CONFIG_INVALID, naming the address that cannot be bound.
            StateError: IDENTITY_UNAVAILABLE, when a service's certificate is missing.
        """
        config = self._parts.config
        inbound = {one.service: self._inbound(one) for one in config.inbound}
        outbound = tuple(
            {"workload": one.workload, "service": one.service, "addr": self._outbound(one)}
            for one in config.outbound
        )
        for server in self._servers:
            await server.start()
        return Addresses(inbound, outbound)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish for at most `grace_s` seconds, then cut them."""
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
        self._servers.clear()
        for socket in self._sockets:
            socket.unlink(missing_ok=True)

    def _inbound(self, one: Inbound) -> str:
        parts, config = self._parts, self._parts.config
        tls = one.upstream.tls
        target = upstream.local(
            parts.channels,
            one.upstream.address,
            ca_pem=None if tls is None else read_ca_file(tls.ca),
            server_name=None if tls is None else tls.server_name,
        )
        by_certificate = one.identify == "mtls"
        identifier = identify.mtls(config.trust_domain) if by_certificate else self._jwt_identifier()
        served_by = config.spiffe_id("workload", config.workload_of(one.service))
        credentials = ServerCredentials(parts.identity, served_by, require_client=by_certificate)
        route = with_probe(lambda *_: target, node=config.node, service=one.service)
        proxy = self._proxy(Direction.INBOUND, one.service, identifier, route, hand_over=one.handover)
        return self._serve(proxy, one.listen, credentials)

    def _outbound(self, one: Outbound) -> str:
        workload = self._parts.config.spiffe_id("workload", one.workload)
        if one.identify == "jwt-svid":
            identifier = self._jwt_identifier(only=workload)
        else:
            authn = Authn.UNIX_SOCKET if one.identify == "unix-socket" else Authn.LOOPBACK
            identifier = identify.fixed(workload, authn)
        proxy = self._proxy(Direction.OUTBOUND, one.service, identifier, self._route(one))
        return self._serve(proxy, one.listen, None)

    def _route(self, one: Outbound) -> Route:
        """Return the way to a service: to whoever the signed policy (or, without a word there, we) say serves it."""
        parts, config = self._parts, self._parts.config
        client = config.spiffe_id("workload", one.workload)
        known: dict[str, upstream.Upstream] = {}

        def route(service: str, method: str, metadata: Sequence[Pair]) -> upstream.Upstream:
            server = parts.serves(service) or config.workload_of(service)
            found = known.get(server)
            if found is None:
                known.clear()  # the policy changed who serves it
                dns = config.spiffe_id("workload", server).dns_name
                addresses = config.services[service].addresses
                found = known[server] = upstream.remote(
                    parts.channels, addresses, client=client, server_dns=dns
                )
            return found

        return route

    def _jwt_identifier(self, only: SpiffeId | None = None) -> identify.Identifier:
        jwt, bundles = self._parts.config.jwt, self._parts.jwt
        if jwt is None or bundles is None:
            raise InputError(Reason.CONFIG_INVALID, "identify jwt-svid needs a jwt section with an audience")
        return identify.jwt_svid(verifier(bundles, jwt.audience), only)

    def _proxy(
        self,
        direction: Direction,
        service: str,
        identifier: identify.Identifier,
        route: Route,
        *,
        hand_over: bool = False,
    ) -> Proxy:
        parts = self._parts
        return Proxy(
            direction,
            service,
            gate=parts.gate,
            identify=identifier,
            route=route,
            clock=parts.clock,
            observer=parts.observer,
            notary=parts.notary,
            max_message_bytes=parts.config.limits.max_message_bytes,
            hand_over=hand_over,
        )

    def _serve(self, proxy: Proxy, listen: str, credentials: ServerCredentials | None) -> str:
        max_bytes = self._parts.config.limits.max_message_bytes
        if not listen.startswith(UNIX):
            server, port = bind(
                lambda: build_server([proxy], listen, credentials, max_message_bytes=max_bytes), listen
            )
            self._servers.append(server)
            return with_port(listen, port)
        path = Path(listen.removeprefix(UNIX))
        prepare_socket(path)
        before = os.umask(
            0o777 ^ _SOCKET_MODE
        )  # the socket must never be reachable by others, not for a moment
        try:
            server, _ = bind(
                lambda: build_server([proxy], listen, credentials, max_message_bytes=max_bytes), listen
            )
        finally:
            os.umask(before)
        self._servers.append(server)
        self._sockets.append(path)
        return listen


def bind(build: Callable[[], tuple[grpc.aio.Server, int]], listen: str) -> tuple[grpc.aio.Server, int]:
    """Build a bound server.

    Raises:
        InputError: CONFIG_INVALID, naming the address.
    """
    try:
        server, port = build()
    except RuntimeError:
        port = 0
    if port == 0:
        raise InputError(
            Reason.CONFIG_INVALID,
            f"{listen}: cannot listen there; is another process using it, does it exist?",
        )
    return server, port


def with_port(listen: str, port: int) -> str:
    """Return "host:port" with the port that was really bound."""
    return listen if listen.startswith(UNIX) else f"{listen.rpartition(':')[0]}:{port}"


def prepare_socket(path: Path) -> None:
    """Make the directory of a socket and remove a socket that an earlier run left.

    Raises:
        InputError: CONFIG_INVALID, when something else is in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InputError(Reason.CONFIG_INVALID, f"{path} exists and is not a socket; choose another path")
    path.unlink()


def own_server(
    add: Callable[[grpc.aio.Server], None],
    listen: str,
    credentials: ServerCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> tuple[grpc.aio.Server, str]:
    """Return a bound server for our own services, and its real address. It has the limits of every mesh server.

    Raises:
        InputError: CONFIG_INVALID, naming the address.
    """

    def build(at: str) -> tuple[grpc.aio.Server, int]:
        server = new_server(interceptors=[FixedInternalErrors()], options=[*server_options(), *options])
        add(server)
        if credentials is None:
            return server, server.add_insecure_port(at)
        return server, server.add_secure_port(at, credentials())

    if listen.startswith(UNIX):
        prepare_socket(Path(listen.removeprefix(UNIX)))

    def steady() -> tuple[grpc.aio.Server, int]:
        made = SteadyServer(build, listen)
        return made, made.port

    server, port = bind(steady, listen)
    return server, with_port(listen, port)
