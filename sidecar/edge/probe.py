"""Answers the assessor's reserved methods in the place of the service, which never sees them.

A callee's sidecar identifies, decides and records `egm.v1.Probe/*` as it does every call; only where it would dial
the service it takes this upstream instead. So an assessment touches no service, at any level.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from egm.v1 import probe_pb2
from sidecar.edge.door import Route
from sidecar.edge.metadata import Pair
from sidecar.edge.upstream import Upstream
from sidecar.edge.upstream_call import EOF, UpstreamCall
from trust import limits

PROBE_METHOD: Final = "egm.v1.Probe/Ping"
PROBE_SERVICE: Final = "egm.v1.Probe/"  # nothing below it ever reaches a service


def with_probe(route: Route, *, node: str, service: str) -> Route:
    """Return `route` for everything but the reserved methods, which the node answers itself."""
    answering = ProbeUpstream(lambda request: pong(request, node=node, service=service))

    def chosen(name: str, method: str, metadata: Any) -> Upstream:
        return answering if method.startswith(PROBE_SERVICE) else route(name, method, metadata)

    return chosen


def pong(request: bytes, *, node: str, service: str) -> bytes:
    """Return the answer to a ping; what is no ping, or has too long a nonce, gets one without a nonce."""
    try:
        nonce = probe_pb2.PingRequest.FromString(request).nonce
    except DecodeError:
        nonce = b""
    if len(nonce) > limits.MAX_PROBE_NONCE_BYTES:
        nonce = b""
    return probe_pb2.PingReply(node=node, service=service, nonce=nonce).SerializeToString()


class ProbeUpstream(Upstream):
    """An upstream without a connection."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def call(self, path: bytes, timeout: float | None) -> UpstreamCall:
        """Return a call that is answered here."""
        return _AnsweredCall(self._answer)


class _AnsweredCall(UpstreamCall):
    """One call of the reserved method: the first message is answered, others are ignored."""

    __slots__ = ("_answer", "_given", "_received")

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer, self._given = answer, False
        self._received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        """Whether the answer was given."""
        return self._given

    def cancel(self) -> bool:
        """Nothing is under way that would have to be cancelled."""
        return False

    async def unary(self, request: bytes, metadata: tuple[Pair, ...]) -> bytes | None:
        """Return the answer."""
        return self._answer(request)

    def open_stream(self, loop: Any, metadata: tuple[Pair, ...]) -> None:
        """Wait for the first message."""

    def open_server_stream(self, loop: Any, request: bytes, metadata: tuple[Pair, ...]) -> None:
        """Take the only message."""
        self._received.set_result(request)

    async def sendable(self) -> None:
        """Messages may be sent at once."""

    async def send(self, message: bytes) -> bool:
        """Take the first message."""
        if not self._received.done():
            self._received.set_result(message)
        return True

    async def half_close(self) -> None:
        """Answer a call without a message, too."""
        if not self._received.done():
            self._received.set_result(b"")

    async def initial_metadata(self) -> tuple[Pair, ...]:
        """Return none."""
        return ()

    async def receive(self) -> Any:
        """Return the answer once, then `EOF`."""
        if self._given:
            return EOF
        request = await self._received
        self._given = True
        return self._answer(request)

    async def status(self) -> tuple[grpc.StatusCode, str, tuple[Pair, ...]]:
        """Return OK."""
        return grpc.StatusCode.OK, "", ()
