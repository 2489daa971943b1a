"""Which TLS every mesh link uses, and how it follows rotating certificates without dropping a call.

Servers fetch their certificate per connection. gRPC clients cannot reload theirs, so `Channels` opens new
channels after a rotation and lets the old ones finish the calls they carry.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from trust import limits
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.identity import IdentitySource
from trust.spiffe import SpiffeId
from trust.x509 import check_peer

logger = logging.getLogger(__name__)

Options = list[tuple[str, Any]]
# A handshake that has asked for the certificate takes it within microseconds: it gets this long.
_BEFORE_ROTATION_S: Final = 0.05
_KEEPALIVE_MS: Final = 30_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000
# Exponential between these two. gRPC's own wait grows to two minutes: a lease would lapse while it sleeps.
_FIRST_RECONNECT_MS: Final = 100
_MAX_RECONNECT_MS: Final = 1_000
_CONNECT_TIMEOUT_MS: Final = 5_000
# A retired channel takes no new calls; those that it carries may go on, at most a certificate's lifetime.
MAX_RETIREMENT_S: Final = float(limits.SVID_TTL_S)
# a caller that fetched the old channel just before the rotation still gets to use it
_HAND_OVER_S: Final = 0.5


def _limits_of_messages() -> Options:
    return [
        ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES_PER_CALL),
        ("grpc.absolute_max_metadata_size", limits.MAX_METADATA_BYTES_PER_CALL),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ]


def server_options(*, max_connection_age_ms: int = limits.MAX_CONNECTION_AGE_MS) -> Options:
    """Return the options of every mesh server: message caps, connection age, no silent port sharing.

    Open connections survive certificate expiry and CA removal: the connection age bounds that.
    """
    return [
        *_limits_of_messages(),
        ("grpc.max_connection_age_ms", max_connection_age_ms),
        ("grpc.max_concurrent_streams", limits.MAX_CONCURRENT_STREAMS),
        ("grpc.so_reuseport", 0),  # two servers on one port would each get some of the calls
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


@dataclass(frozen=True, slots=True)
class _Presented:
    key_pem: bytes
    chain_pem: bytes
    anchors_pem: bytes | None  # that clients must lead to; None: they are not asked

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key_pem, self.chain_pem)], self.anchors_pem)


def channel_options(server: SpiffeId | str | None = None) -> Options:
    """Return the options of a mesh channel to `server`: its SPIFFE ID or DNS SAN, None when there is none.

    The server's certificate must carry that DNS name, whatever address was dialled. How soon a lost connection is
    tried again is decided here, for every channel of the mesh.
    """
    options: Options = [
        *_limits_of_messages(),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),  # despite its name: what one attempt may take
    ]
    if server is not None:
        name = server.dns_name if isinstance(server, SpiffeId) else server
        options += [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
    return options


class ServerCredentials:
    """Makes credentials that present the current SVID of one member on every new connection.

    Call it for every listener that is bound, also when one is bound again: gRPC hands "unchanged" only to a
    listener that has a certificate already.
    """

    def __init__(self, source: IdentitySource, spiffe_id: SpiffeId, *, require_client: bool = True) -> None:
        """Take the SVID that there is now.

        Args:
            source: supplies the SVID and the anchors that client certificates must lead to.
            spiffe_id: who the server is.
            require_client: refuse connections without a client certificate. False (the enrolment listener
                only): clients are not asked for one.

        Raises:
            StateError: IDENTITY_UNAVAILABLE, if there is no SVID to start with.
        """
        self._source, self._spiffe_id, self._require_client = source, spiffe_id, require_client
        self._newest = self._read()

    def __call__(self) -> grpc.ServerCredentials:
        """Return the credentials of one listener."""
        fetch = _CertificateFetcher(self.newest)
        return grpc.dynamic_ssl_server_credentials(
            fetch.first(),
            fetch,  # type: ignore[arg-type]  # the stub forgets that None means: no change
            require_client_authentication=self._require_client,
        )

    def newest(self) -> _Presented:
        """Return what to present now; what was presented last while there is no current SVID."""
        try:
            self._newest = self._read()
        except MeshError as error:
            # Clients refuse an expired certificate themselves; readiness reports it (see IdentitySource.svid).
            logger.error("no current certificate for %s: %s", self._spiffe_id, error)
        return self._newest

    def _read(self) -> _Presented:
        svid = self._source.svid(self._spiffe_id)
        anchors = self._source.anchors_pem() if self._require_client else None
        return _Presented(svid.key_pem, svid.chain_pem, anchors)


class _CertificateFetcher:
    """Called by gRPC's threads before each handshake of one listener. gRPC would lose an exception."""

    def __init__(self, newest: Callable[[], _Presented]) -> None:
        self._newest = newest
        self._presented = newest()

    def first(self) -> grpc.ServerCertificateConfiguration:
        """Return the configuration to start with."""
        return self._presented.configuration()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a new configuration after a rotation, None as long as there is none.

        gRPC frees the old configuration while another connection may be about to use it (its issue 36693): with
        a new one at every connection, connecting often enough crashed the server, before any TLS. gRPC holds a
        lock while this runs, so those who asked before are waited for.
        """
        newest = self._newest()
        if newest == self._presented:
            return None
        self._presented = newest
        time.sleep(_BEFORE_ROTATION_S)
        return newest.configuration()


def channel_credentials(source: IdentitySource, client: SpiffeId | None) -> grpc.ChannelCredentials:
    """Return client credentials with the SVID of `client` as it is now; None presents no certificate.

    Raises:
        StateError: IDENTITY_UNAVAILABLE, if there is no current SVID.
    """
    if client is None:
        return grpc.ssl_channel_credentials(source.anchors_pem())
    svid = source.svid(client)
    return grpc.ssl_channel_credentials(source.anchors_pem(), svid.key_pem, svid.chain_pem)


def peer_of(context: "grpc.aio.ServicerContext[Any, Any]", *, trust_domain: str, now_ms: int) -> SpiffeId:
    """Return who the mTLS peer of this call is, checked now (expiry too), not only at the handshake.

    Raises:
        EvidenceError: CALLER_UNIDENTIFIED, CALLER_AMBIGUOUS or CALLER_CERTIFICATE_EXPIRED.
    """
    found = list(context.auth_context().get("x509_pem_cert", ()))
    if len(found) != 1:
        raise EvidenceError(Reason.CALLER_UNIDENTIFIED, "the caller presented no client certificate")
    return check_peer(found[0], trust_domain=trust_domain, now_ms=now_ms)


@dataclass(frozen=True, slots=True)
class _MeshKey:
    target: str
    client: SpiffeId
    server_dns: str


@dataclass(frozen=True, slots=True)
class _PlainKey:
    target: str
    ca_pem: bytes | None
    server_name: str | None


class Channels:
    """A pool of channels: one per (target, client, server) on the mesh, and plain ones to local upstreams.

    One event loop. Ask for the channel at every call (`get` is a dictionary lookup): after a rotation
    it returns a new channel, and the old one closes when the calls that it carries have ended.
    `generation` counts rotations, for those who cache what hangs on a channel.
    """

    def __init__(
        self,
        source: IdentitySource | None,
        *,
        options: Options | None = None,
        retirement_s: float = MAX_RETIREMENT_S,
    ) -> None:
        self._source = source
        self._options = options or []
        self._retirement_s = retirement_s
        self._mesh: dict[_MeshKey, grpc.aio.Channel] = {}
        self._plain: dict[_PlainKey, grpc.aio.Channel] = {}
        self._retiring: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self.generation = 0
        if source is not None:
            source.subscribe(self._rotated)

    def get(self, target: str, *, client: SpiffeId, server_dns: str) -> grpc.aio.Channel:
        """Return the mTLS channel to `target` as `client`; the server must prove the DNS name `server_dns`.

        Raises:
            StateError: IDENTITY_UNAVAILABLE, if `client` has no current SVID.
        """
        key = _MeshKey(target, client, server_dns)
        channel = self._mesh.get(key)
        if channel is None:
            if self._source is None:
                raise TypeError("this pool has no identity source: only plain channels")
            credentials = channel_credentials(self._source, client)
            options = [*channel_options(server_dns), *self._options]
            channel = self._mesh[key] = grpc.aio.secure_channel(target, credentials, options)
        return channel

    def plain(
        self, target: str, *, ca_pem: bytes | None = None, server_name: str | None = None
    ) -> grpc.aio.Channel:
        """Return a channel to a local upstream: plaintext (or `unix:`), or TLS when `ca_pem` is given."""
        key = _PlainKey(target, ca_pem, server_name)
        channel = self._plain.get(key)
        if channel is None:
            options = [*channel_options(server_name if ca_pem is not None else None), *self._options]
            if ca_pem is None:
                channel = grpc.aio.insecure_channel(target, options)
            else:
                channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca_pem), options)
            self._plain[key] = channel
        return channel

    def _rotated(self) -> None:
        """Retire every mesh channel: certificates or anchors changed."""
        old, self._mesh = list(self._mesh.values()), {}
        self.generation += 1
        for channel in old:
            task = asyncio.get_running_loop().create_task(self._retire(channel))
            self._retiring[task] = channel
            task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.pop(task, None)

    async def _retire(self, channel: grpc.aio.Channel) -> None:
        await asyncio.sleep(_HAND_OVER_S)
        await channel.close(self._retirement_s)

    async def close(self, grace_s: float | None = None) -> None:
        """Close every channel; calls in flight get `grace_s` seconds."""
        channels, retiring = [*self._mesh.values(), *self._plain.values()], dict(self._retiring)
        self._mesh, self._plain = {}, {}
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        # Here, not in the task that retires it: one that is cancelled before it began does nothing at all.
        await asyncio.gather(*(channel.close(None) for channel in retiring.values()))
        await asyncio.gather(*(channel.close(grace_s) for channel in channels))


def read_ca_file(path: Path) -> bytes:
    """Return the CA certificates of an upstream from `path` (PEM).

    Raises:
        InputError: CONFIG_INVALID, naming the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(Reason.CONFIG_INVALID, f"{path}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise InputError(Reason.CONFIG_INVALID, f"{path}: holds no PEM certificate")
    return data
