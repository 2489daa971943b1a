"""Where a permitted call goes, and which failures are the connection's rather than the service's."""

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from sidecar.edge.upstream_call import UpstreamCall
from trust import limits
from trust.edge.tls import Channels
from trust.errors import InputError, Reason
from trust.spiffe import SpiffeId

ROUND_ROBIN: Final = '{"loadBalancingConfig":[{"round_robin":{}}]}'
# gRPC would grow what it takes ahead of a slow reader with the speed of the link (measured: 40 MB for one stream).
BOUNDED_WINDOW: Final[list[tuple[str, Any]]] = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", limits.STREAM_WINDOW_BYTES),
]
# For every channel to an upstream: spread over all addresses; no retries beyond gRPC's own transparent ones,
# because only the caller knows whether its call may run twice.
UPSTREAM_OPTIONS: Final[list[tuple[str, Any]]] = [
    *BOUNDED_WINDOW,
    ("grpc.service_config", ROUND_ROBIN),
    ("grpc.service_config_disable_resolution", 1),  # DNS TXT records must not configure us
]

# How gRPC core words an UNAVAILABLE that it made up itself because the connection failed (strings of grpc 1.8x).
_OF_THE_CONNECTION: Final = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "dns resolution failed",
    "empty address list",
    "socket closed",
    "connection reset",
    "connection refused",
    "connection aborted",
    "broken pipe",
    "connection attempt timed out",
    "goaway received",
    "goaway sent",
    "endpoint read failed",
    "endpoint closing",
    "transport closed",
    "transport destroyed",
    "stream removed",
    "keepalive timeout",
    "keepalive watchdog",
    "ping timeout",
    "too_many_pings",
    "last stream closed after sending goaway",
    "trying to connect an http1.x server",
    "channel closed",
    "recvmsg",
    "sendmsg",
    "ipv4:",
    "ipv6:",
    "unix:",
)


# Of these, said before anything was sent.
_NO_CONNECTION: Final = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "dns resolution failed",
    "empty address list",
)


class Upstream:
    """One service: one or more channels.

    The channels are asked for at every call, because certificates rotate by replacing channels.
    """

    __slots__ = ("_sources", "_turn")

    def __init__(self, sources: Sequence[Callable[[], grpc.aio.Channel]]) -> None:
        """Take what returns each channel; it may raise StateError (IDENTITY_UNAVAILABLE).

        Raises:
            InputError: CONFIG_INVALID, without any.
        """
        if not sources:
            raise InputError(Reason.CONFIG_INVALID, "an upstream needs at least one address")
        self._sources = tuple(sources)
        self._turn = 0

    def call(self, path: bytes, timeout: float | None) -> UpstreamCall:
        """Return a new call of `path` ("/package.Service/Method"), to end in `timeout` seconds at the latest.

        Raises:
            StateError: IDENTITY_UNAVAILABLE, when there is no certificate to dial with (`Channels.get`).
        """
        return UpstreamCall(self._next(), path, timeout)

    def _next(self) -> grpc.aio.Channel:
        """Take turns, passing over channels that cannot connect while others may."""
        sources = self._sources
        if len(sources) == 1:
            return sources[0]()
        for _ in sources:
            self._turn = (self._turn + 1) % len(sources)
            channel = sources[self._turn]()
            if channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return channel
        return sources[self._turn]()


def targets(addresses: Sequence[str]) -> list[str]:
    """Return gRPC targets that reach every address: numeric ones share a channel, each name gets its own.

    Args:
        addresses: "host:port", "[v6]:port" or "unix:///path".

    Raises:
        InputError: CONFIG_INVALID, naming the address.
    """
    numeric: dict[str, list[str]] = {"ipv4": [], "ipv6": []}
    others: list[str] = []
    for address in addresses:
        if address.startswith("unix:"):
            others.append(address)
            continue
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(
                Reason.CONFIG_INVALID,
                f"{address!r} is no address: write host:port, [v6]:port or unix:///path",
            )
        try:
            version = ipaddress.ip_address(host.strip("[]")).version
        except ValueError:
            others.append(f"dns:///{address}")
        else:
            numeric[f"ipv{version}"].append(address)
    return [f"{kind}:{','.join(found)}" for kind, found in numeric.items() if found] + others


def local(
    channels: Channels, address: str, *, ca_pem: bytes | None = None, server_name: str | None = None
) -> Upstream:
    """Return the service next to this sidecar: plaintext or `unix:`, or TLS when `ca_pem` is given."""

    def source_of(target: str) -> Callable[[], grpc.aio.Channel]:
        return lambda: channels.plain(target, ca_pem=ca_pem, server_name=server_name)

    return Upstream([source_of(target) for target in targets([address])])


def remote(channels: Channels, addresses: Sequence[str], *, client: SpiffeId, server_dns: str) -> Upstream:
    """Return a service across the mesh: mTLS as `client`, to whoever proves the DNS name `server_dns`."""

    def source_of(target: str) -> Callable[[], grpc.aio.Channel]:
        return lambda: channels.get(target, client=client, server_dns=server_dns)

    return Upstream([source_of(target) for target in targets(addresses)])


def never_sent(details: str, *, connected: bool) -> bool:
    """Return whether an UNAVAILABLE of the connection says that there was none, so that nobody saw the call.

    A connection that was reset may have carried it. A service whose own upstream is away may answer in the very words
    of gRPC; then there is a connection to the service.

    Args:
        details: of the status.
        connected: whether the channel has a connection now.
    """
    return not connected and details.lower().startswith(_NO_CONNECTION)


def broke_off(code: grpc.StatusCode, details: str | None, *, has_trailers: bool) -> bool:
    """Return whether the connection to the upstream failed, as opposed to the upstream answering UNAVAILABLE.

    gRPC reports both as a status; only the wording differs, and trailing metadata is proof of an answer.
    """
    if code is not grpc.StatusCode.UNAVAILABLE or has_trailers:
        return False
    text = (details or "").lower()
    return any(part in text for part in _OF_THE_CONNECTION)
