"""One call to an upstream, as close to gRPC core as grpcio allows.

Why not grpcio's call objects: their `write` replaces the status that an upstream already sent by its own INTERNAL
when it loses a race (a service that refuses an upload half way), and their tasks, checks and copies cost more CPU
than all our decisions. This is the only file that touches grpcio below its public surface; `tests/integration/proxy`
holds it to what grpcio promises, so an upgrade that changes it fails there.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import grpc
import grpc.aio

from sidecar.edge.metadata import Pair

EOF: Final[Any] = cast("Any", grpc.aio).EOF
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_CANCELLED_TEXT: Final = "the sidecar cancelled the call"


class UpstreamCall:
    """A call on `channel`. Make it with `unary`, `server_stream` or `stream` of an `Upstream`.

    It is registered with its channel like grpcio's own, so that closing a channel with a grace waits for it.
    """

    __slots__ = ("__weakref__", "_call", "_channel", "_opening", "_sendable")

    def __init__(self, channel: grpc.aio.Channel, path: bytes, timeout: float | None) -> None:
        """Start a call of `path` ("/package.Service/Method"), to end `timeout` seconds from now at the latest."""
        deadline = None if timeout is None else time.time() + timeout
        self._channel = channel
        inside = cast("Any", channel)
        self._call = inside._channel.call(path, deadline, None, None, 0)
        self._opening: Any = None  # a task; asyncio itself keeps only weak references
        self._sendable: Any = None
        inside._register_call(self)

    # What grpcio's channel needs of a registered call

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(self)` when the status is known."""
        self._call.add_done_callback(partial(callback, self))

    def done(self) -> bool:
        """Return whether the status is known."""
        return cast("bool", self._call.done())

    def cancel(self) -> bool:
        """Cancel the call, unless it has ended."""
        if self._call.done():
            return False
        self._call.cancel(_CANCELLED_TEXT)
        return True

    async def code(self) -> grpc.StatusCode:
        """Return the status code, when it is known."""
        return CODES[(await self._call.status()).code()]

    # What the proxy needs

    def connected(self) -> bool:
        """Return whether the channel has a connection now."""
        state: object = self._channel.get_state(try_to_connect=False)
        return state is grpc.ChannelConnectivity.READY

    async def unary(self, request: bytes, metadata: tuple[Pair, ...]) -> bytes | None:
        """Send one request; return the response, None unless the status is OK."""
        try:
            return cast("bytes | None", await self._call.unary_unary(request, metadata))
        finally:
            self.cancel()  # interrupted; otherwise nothing

    def open_stream(self, loop: Any, metadata: tuple[Pair, ...]) -> None:
        """Start a call of any kind; messages may be sent after `sendable`."""
        self._sendable = loop.create_future()
        self._opening = loop.create_task(self._call.initiate_stream_stream(metadata, self._metadata_sent))

    def open_server_stream(self, loop: Any, request: bytes, metadata: tuple[Pair, ...]) -> None:
        """Start a call with its single request."""
        self._opening = loop.create_task(self._call.initiate_unary_stream(request, metadata))

    def _metadata_sent(self) -> None:
        if not self._sendable.done():
            self._sendable.set_result(None)

    async def sendable(self) -> None:
        """Wait until messages may be sent (or the call has ended)."""
        await self._sendable

    async def send(self, message: bytes) -> bool:
        """Send one message, waiting for flow control; return False when the call has ended (see `status`)."""
        try:
            await self._call.send_serialized_message(message)
        except grpc.aio.InternalError:
            return False
        return True

    async def half_close(self) -> None:
        """Say that no more messages follow."""
        try:
            await self._call.send_receive_close()
        except grpc.aio.InternalError:
            return  # the call has ended: nobody is waiting for it

    async def initial_metadata(self) -> tuple[Pair, ...]:
        """Return the initial metadata as soon as they arrive; empty when the call ends without."""
        return cast("tuple[Pair, ...]", await self._call.initial_metadata())

    async def receive(self) -> Any:
        """Return the next message, or `EOF`; then `status` says why."""
        return await self._call.receive_serialized_message()

    async def status(self) -> tuple[grpc.StatusCode, str, tuple[Pair, ...]]:
        """Return (code, message, trailing metadata) when the call has ended."""
        status = await self._call.status()
        return CODES[status.code()], status.details() or "", status.trailing_metadata() or ()
