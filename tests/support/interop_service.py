"""A service shaped like gRPC's interoperability TestService, speaking JSON so that nobody needs its descriptor.

A request is a JSON object: `size` (bytes of payload to answer), `sizes` (one answer each), `code` and `message` (status
to end with), `sleep_ms`. Metadata: what arrives as `x-grpc-test-echo-initial` comes back as initial metadata, what
arrives as `x-grpc-test-echo-trailing-bin` as trailing metadata (the public test description, "custom_metadata").
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

SERVICE = "grpc.testing.TestService"
EMPTY = f"/{SERVICE}/EmptyCall"
UNARY = f"/{SERVICE}/UnaryCall"
INPUT = f"/{SERVICE}/StreamingInputCall"
OUTPUT = f"/{SERVICE}/StreamingOutputCall"
DUPLEX = f"/{SERVICE}/FullDuplexCall"
FLOOD = f"/{SERVICE}/Flood"
ECHO_INITIAL = "x-grpc-test-echo-initial"
ECHO_TRAILING = "x-grpc-test-echo-trailing-bin"
FLOOD_CHUNK = 256 * 1024
ENDS_S = 0.02  # to grpc.aio a cancelled call looks like the end of its requests, until a later await

Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
    GenericHandler = grpc.GenericRpcHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    GenericHandler = grpc.GenericRpcHandler


def ask(**fields: Any) -> bytes:
    """Return a request."""
    return json.dumps(fields).encode()


class InteropService(GenericHandler):
    """The handlers; `seen` collects what a test wants to know of the upstream's side."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.metadata: list[tuple[tuple[str, str | bytes], ...]] = []
        self.remaining: list[float | None] = []
        self.cancelled: list[str] = []
        self.clean_ends = 0
        self.flooded = 0
        self._handlers: dict[str, Handler] = {
            EMPTY: grpc.unary_unary_rpc_method_handler(self._guard(self.empty)),
            UNARY: grpc.unary_unary_rpc_method_handler(self._guard(self.unary)),
            INPUT: grpc.stream_unary_rpc_method_handler(self._guard(self.streaming_input)),
            OUTPUT: grpc.unary_stream_rpc_method_handler(self._guard(self.streaming_output)),
            DUPLEX: grpc.stream_stream_rpc_method_handler(self._guard(self.full_duplex)),
            FLOOD: grpc.unary_stream_rpc_method_handler(self._guard(self.flood)),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler, None for what is unimplemented."""
        return self._handlers.get(handler_call_details.method)

    def _guard(self, behaviour: Callable[..., Any]) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            metadata = tuple((key, value) for key, value in context.invocation_metadata() or ())
            self.metadata.append(metadata)
            self.remaining.append(context.time_remaining())
            initial = tuple(pair for pair in metadata if pair[0] == ECHO_INITIAL)
            trailing = tuple(pair for pair in metadata if pair[0] == ECHO_TRAILING)
            try:
                if initial:
                    await context.send_initial_metadata(initial)
                if trailing:
                    context.set_trailing_metadata(trailing)
                return await behaviour(request, context)
            except (
                asyncio.CancelledError,
                grpc.aio.InternalError,
            ):  # the latter: a write failed for that reason
                self.cancelled.append(behaviour.__name__)
                raise

        return guarded

    @staticmethod
    async def _end(asked: dict[str, Any], context: Context) -> None:
        if asked.get("sleep_ms"):
            await asyncio.sleep(asked["sleep_ms"] / 1000)
        if asked.get("code"):
            code = next(code for code in grpc.StatusCode if code.value[0] == asked["code"])
            details = asked.get("details_bin")
            trailing = (*(context.trailing_metadata() or ()),)
            if details is not None:
                trailing = (*trailing, ("grpc-status-details-bin", bytes.fromhex(details)))
            await context.abort(code, asked.get("message", ""), trailing)

    async def empty(self, request: bytes, context: Context) -> bytes:
        """Answer the empty message."""
        return b""

    async def unary(self, request: bytes, context: Context) -> bytes:
        """Answer `size` zero bytes, or the text `answer`."""
        asked = json.loads(request.rstrip(b"\0"))
        await self._end(asked, context)
        if "answer" in asked:
            return str(asked["answer"]).encode()
        return bytes(asked.get("size", 0))

    async def streaming_input(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Answer how many bytes came, in how many messages."""
        total = count = 0
        async for message in requests:
            if message.startswith(b"{"):
                await self._end(json.loads(message), context)
            total += len(message)
            count += 1
        await asyncio.sleep(ENDS_S)
        self.clean_ends += 1
        return json.dumps({"bytes": total, "messages": count}).encode()

    async def streaming_output(self, request: bytes, context: Context) -> None:
        """Answer one message per entry of `sizes`."""
        asked = json.loads(request)
        for size in asked.get("sizes", ()):
            await context.write(bytes(size))
        await self._end(asked, context)

    async def full_duplex(self, requests: Any, context: Context) -> None:
        """Answer each request with its `sizes`."""
        async for message in requests:
            asked = json.loads(message.rstrip(b"\0"))
            await self._end(asked, context)
            for size in asked.get("sizes", ()):
                await context.write(bytes(size))
        await asyncio.sleep(ENDS_S)

    async def flood(self, request: bytes, context: Context) -> None:
        """Write `FLOOD_CHUNK` bytes again and again, as fast as they are taken, up to `chunks`."""
        chunk = bytes(FLOOD_CHUNK)
        for _ in range(json.loads(request)["chunks"]):
            await context.write(chunk)
            self.flooded += len(chunk)
