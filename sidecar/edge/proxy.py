"""The transparent proxy: which path each call takes; and the server that a listener runs."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio

from sidecar.core.call import Direction
from sidecar.core.gate import Gate, Observer, Shape
from sidecar.edge.door import Door, Route
from sidecar.edge.identify import Identifier
from sidecar.edge.notary import Notary
from sidecar.edge.proxy_stream import serve_server_stream, serve_stream
from sidecar.edge.proxy_unary import serve_unary
from sidecar.edge.refusals import Context, fail_internal
from sidecar.edge.upstream import BOUNDED_WINDOW
from trust import limits
from trust.edge.serving import SteadyServer, new_server
from trust.edge.tls import server_options
from trust.ports import Clock

logger = logging.getLogger(__name__)

MAX_CACHED_METHODS: Final = 4096
MAX_LOGGED_METHOD_CHARS: Final = 200
_OWNER_ONLY: Final = 0o177
# gRPC core refuses what exceeds its own limit without a reason; up to here the proxy can say which limit it was.
_ROOM_TO_EXPLAIN_BYTES: Final = 1024 * 1024

# What is decided must be what is forwarded: one leading slash, then a name that policies can spell.
_PATH: Final = re.compile(r"/[^/\s]+/[^/\s]+\Z")

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
    GenericHandler = grpc.GenericRpcHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    GenericHandler = grpc.GenericRpcHandler


class Proxy(GenericHandler):
    """Takes every call of one listener, whatever its method, decides it through `gate` and forwards it."""

    def __init__(
        self,
        direction: Direction,
        service: str,
        *,
        gate: Gate,
        identify: Identifier,
        route: Route,
        clock: Clock,
        observer: Observer | None = None,
        notary: Notary | None = None,
        max_message_bytes: int = limits.MAX_MESSAGE_BYTES,
        hand_over: bool = False,
        opening_timeout_s: float = limits.OPENING_MESSAGE_TIMEOUT_S,
    ) -> None:
        """Take the parts of one listener.

        Args:
            direction: which side of the mesh the callers are on.
            service: logical name that this listener stands for.
            gate: decides and watches.
            identify: says who calls.
            route: (service, method, metadata) -> Upstream; may raise MeshError (UNKNOWN_SERVICE, ...).
            clock: time for decisions.
            observer: telemetry; None when it is off.
            notary: verifies and mints permits and writes executions down; None where nothing is recorded.
            max_message_bytes: larger messages are refused (MESSAGE_TOO_LARGE), both ways.
            hand_over: sign every admitted call for the service that it is forwarded to.
            opening_timeout_s: how long a stream may take to send the message that its permit binds.
        """
        self._door = Door(
            direction,
            service,
            gate,
            identify,
            route,
            clock,
            observer,
            max_message_bytes,
            notary,
            hand_over,
            opening_timeout_s,
        )
        self._methods: dict[str, _Method] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler of one call, by what is known of its method now (policies bring descriptors)."""
        path = handler_call_details.method
        method = self._methods.get(path)
        if method is None:
            if not _PATH.match(path):
                return cast("Handler", None)  # UNIMPLEMENTED: no policy can name it
            method = _Method(self._door, path)
            # Method names come from callers: a flood of invented ones must neither fill memory nor, for good, take
            # the place of those that are called.
            if len(self._methods) >= MAX_CACHED_METHODS:
                self._methods.pop(next(iter(self._methods)))
            self._methods[path] = method
        return method.handlers[self._door.gate.shape(self._door.service, method.name)]


class _Method:
    """One method of one listener, and its handler for each shape that it may turn out to have."""

    __slots__ = ("_door", "_path", "handlers", "name")

    def __init__(self, door: Door, path: str) -> None:
        self._door = door
        self._path = path.encode()
        self.name = path[1:]
        self.handlers: dict[Shape, Handler] = {
            Shape.UNARY: grpc.unary_unary_rpc_method_handler(cast("Any", self._unary)),
            Shape.SERVER_STREAM: grpc.unary_stream_rpc_method_handler(cast("Any", self._server_stream)),
            Shape.STREAM: grpc.stream_stream_rpc_method_handler(cast("Any", self._stream)),
        }

    async def _unary(self, request: bytes, context: Context) -> bytes:
        try:
            return await serve_unary(self._door, self._path, self.name, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  # the boundary: gRPC would send the text to the caller
            await self._unexpected(error, context)
            return b""  # never sent: the call has been aborted

    async def _server_stream(self, request: bytes, context: Context) -> None:
        try:
            await serve_server_stream(self._door, self._path, self.name, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001
            await self._unexpected(error, context)

    async def _stream(self, requests: object, context: Context) -> None:
        try:
            await serve_stream(self._door, self._path, self.name, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001
            await self._unexpected(error, context)

    async def _unexpected(self, error: Exception, context: Context) -> None:
        if isinstance(error, grpc.aio.InternalError):
            # An operation on the connection failed: usually the caller has gone.
            logger.debug("call of %s ended: %s", self.name[:MAX_LOGGED_METHOD_CHARS], type(error).__name__)
        else:
            logger.error("call of %s failed", self.name[:MAX_LOGGED_METHOD_CHARS], exc_info=error)
        if cast("Any", context).done():
            return  # answered, but nobody was left to hear it
        try:
            await fail_internal(context)
        except grpc.aio.InternalError:
            logger.debug("nobody was left to tell")


def build_server(
    handlers: Sequence[GenericHandler],
    listen: str,
    credentials: Callable[[], grpc.ServerCredentials] | None,
    *,
    max_message_bytes: int = limits.MAX_MESSAGE_BYTES,
    options: Sequence[tuple[str, Any]] = (),
) -> tuple[grpc.aio.Server, int]:
    """Return a server that is bound but not started, and its port (0 is chosen by the system; 1 for a Unix socket).

    Args:
        handlers: usually one `Proxy`; asked in order.
        listen: "host:port" or "unix:///path".
        credentials: makes those of one listener; None for plaintext, which is right only for loopback and Unix sockets.
        max_message_bytes: as given to the proxy.
        options: further gRPC channel arguments; they win.

    Raises:
        RuntimeError: the address cannot be bound (grpc's own wording names it).
    """
    channel_arguments = [
        *server_options(),
        *BOUNDED_WINDOW,
        ("grpc.max_receive_message_length", max_message_bytes + _ROOM_TO_EXPLAIN_BYTES),
        ("grpc.max_send_message_length", -1),  # what came in may go out
        *options,
    ]

    def build(address: str) -> tuple[grpc.aio.Server, int]:
        server = new_server(options=channel_arguments)
        server.add_generic_rpc_handlers(tuple(handlers))
        if credentials is not None:
            return server, server.add_secure_port(address, credentials())
        if not address.startswith("unix:"):
            return server, server.add_insecure_port(address)
        before = os.umask(
            _OWNER_ONLY
        )  # who may connect is who the caller is: never anybody else, not for a moment
        try:
            return server, server.add_insecure_port(address)
        finally:
            os.umask(before)

    steady = SteadyServer(build, listen)
    return steady, steady.port
