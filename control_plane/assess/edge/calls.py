"""Calls of the reserved method, with whatever identity and metadata an attempt wants to show; the answer as a value."""

import asyncio
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import grpc
import grpc.aio
from cryptography import x509
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from control_plane.assess.answers import UNREACHED, Answer
from egm.v1 import probe_pb2
from trust.address import split_address
from trust.edge.grpc_errors import ERROR_DOMAIN

METHOD: Final = "egm.v1.Probe/Ping"
OTHERS: Final = tuple(f"egm.v1.Probe/Other{number}" for number in range(1, 13))  # reserved, too
TIMEOUT_S: Final = 8.0
_OPTIONS: Final = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
]
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a connection shows: PEM of chain and key (empty: none), and whom it trusts."""

    anchors: bytes
    chain: bytes = b""
    key: bytes = field(default=b"", repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return credentials for one connection."""
        return grpc.ssl_channel_credentials(self.anchors, self.key or None, self.chain or None)


def ping(run: str) -> bytes:
    """Return the bytes of a new ping."""
    return probe_pb2.PingRequest(run=run, nonce=secrets.token_bytes(16)).SerializeToString()


async def call(
    address: str,
    request: bytes,
    *,
    identity: Identity | None,
    server_dns: str = "",
    metadata: Metadata = (),
    timeout_s: float = TIMEOUT_S,
    method: str = METHOD,
) -> Answer:
    """Call the reserved method once, on a connection of its own; return what answered. Never raises.

    Args:
        address: HOST:PORT or unix:///PATH.
        request: of `ping`.
        identity: None: plaintext.
        server_dns: the name that the server must prove; "" without TLS.
        metadata: sent along.
        timeout_s: for everything.
        method: a reserved one.
    """
    options = [*_OPTIONS, *([("grpc.ssl_target_name_override", server_dns)] if server_dns else [])]
    if identity is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, identity.credentials(), options=options)
    async with channel:
        try:
            reply = await channel.unary_unary(f"/{method}", None, None)(
                request, timeout=timeout_s, metadata=tuple(metadata)
            )
        except grpc.aio.AioRpcError as error:
            return answer_of(error)
        except (TimeoutError, OSError, grpc.aio.UsageError) as error:
            return Answer(UNREACHED, detail=str(error))
    return _replied(bytes(reply), request)


def answer_of(error: grpc.aio.AioRpcError) -> Answer:
    """Return what a failed call says; without a reason of the mesh, whether anything answered at all."""
    info = _info(error)
    detail = str(error.details() or "")
    if info is not None:
        about = info.metadata
        return Answer(
            error.code().name,
            info.reason,
            detail,
            decision_id=about.get("decision_id", ""),
            policy_version=about.get("policy_version", ""),
            level=about.get("level", ""),
        )
    gone = error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    return Answer(UNREACHED if gone else error.code().name, detail=detail)


def _info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):
        return None  # whatever is there is not ours
    for detail in () if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            if info.domain == ERROR_DOMAIN:
                return info
    return None


def _replied(reply: bytes, request: bytes) -> Answer:
    """A service that happens to have a method of this name does not know the nonce's place."""
    try:
        pong = probe_pb2.PingReply.FromString(reply)
        sent = probe_pb2.PingRequest.FromString(request)
    except DecodeError:
        return Answer("OK", detail="something else than a sidecar answered")
    if not pong.node or pong.nonce != sent.nonce:
        return Answer("OK", detail="something else than a sidecar answered")
    return Answer("OK", replied=True, detail=f"sidecar {pong.node} answered in the place of {pong.service}")


async def call_anyhow(target: str, run: str, timeout_s: float) -> Answer:
    """Call with TLS, trusting whatever certificate the server shows: this asks who is let in, not who answers."""
    host, port = split_address(target)
    try:
        # In time by itself: a thread that waits for a silent server would keep the whole command from ending.
        pem = await asyncio.to_thread(ssl.get_server_certificate, (host, port), timeout=timeout_s)
    except (OSError, ValueError, TimeoutError) as error:
        return Answer(UNREACHED, detail=f"no TLS: {error}"[:200])
    return await call(
        target,
        ping(run),
        identity=Identity(pem.encode()),
        server_dns=_name_in(pem.encode()),
        timeout_s=timeout_s,
    )


def _name_in(pem: bytes) -> str:
    """Return a DNS name of a certificate; empty when it has none."""
    try:
        names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return ""
    return next(iter(names.value.get_values_for_type(x509.DNSName)), "")
