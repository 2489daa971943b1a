"""The client side of gRPC's public interoperability test cases: each returns what a caller saw, to be compared."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import grpc
import grpc.aio

from tests.support.interop_service import (
    DUPLEX,
    ECHO_INITIAL,
    ECHO_TRAILING,
    EMPTY,
    INPUT,
    OUTPUT,
    SERVICE,
    UNARY,
    ask,
)

EOF: Any = cast("Any", grpc.aio).EOF
Seen = dict[str, Any]
SPECIAL_MESSAGE = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


def target_of(channel: grpc.aio.Channel) -> str:
    """Return the address that a channel was made for."""
    target: bytes = cast("Any", channel)._channel.target
    return target.decode().removeprefix("dns:///")


async def status(call: Any) -> Seen:
    """Return how a call ended, as its caller sees it."""
    return {
        "code": (await call.code()).name,
        "details": await call.details(),
        "initial": sorted((await call.initial_metadata()) or ()),
        "trailing": sorted((await call.trailing_metadata()) or ()),
    }


async def one(channel: grpc.aio.Channel, path: str, request: bytes, **options: Any) -> Seen:
    """Make a unary call and return its response (length) and end."""
    call = channel.unary_unary(path, None, None)(request, **options)
    response: bytes | None = None
    try:
        response = await call
    except grpc.aio.AioRpcError:
        pass  # the status says it
    except asyncio.CancelledError:
        pass
    return {"response": None if response is None else len(response), **await status(call)}


async def drain(call: Any) -> list[int]:
    """Return the lengths of all responses."""
    lengths: list[int] = []
    try:
        while (message := await call.read()) is not EOF:
            lengths.append(len(message))
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    return lengths


async def empty_unary(channel: grpc.aio.Channel) -> Seen:
    """Empty request, empty response."""
    return await one(channel, EMPTY, b"")


async def large_unary(channel: grpc.aio.Channel) -> Seen:
    """A request of 271,828 bytes, a response of 314,159."""
    request = ask(size=314159)
    return await one(channel, UNARY, request + bytes(271828 - len(request)))


async def client_streaming(channel: grpc.aio.Channel) -> Seen:
    """Four requests, one response."""
    call = channel.stream_unary(INPUT, None, None)(None)
    for size in (27182, 8, 1828, 45904):
        await call.write(bytes(size))
    await call.done_writing()
    return {"response": json.loads(await call), **await status(call)}


async def server_streaming(channel: grpc.aio.Channel) -> Seen:
    """One request, four responses."""
    call = channel.unary_stream(OUTPUT, None, None)(ask(sizes=[31415, 9, 2653, 58979]))
    return {"responses": await drain(call), **await status(call)}


async def ping_pong(channel: grpc.aio.Channel) -> Seen:
    """Each request waits for the response before."""
    call = channel.stream_stream(DUPLEX, None, None)(None)
    got = []
    for asked, answered in ((27182, 31415), (64, 9), (1828, 2653), (45904, 58979)):
        request = ask(sizes=[answered])
        await call.write(request + bytes(max(0, asked - len(request))))
        got.append(len(cast("bytes", await call.read())))
    await call.done_writing()
    return {"responses": got, "rest": await drain(call), **await status(call)}


async def empty_stream(channel: grpc.aio.Channel) -> Seen:
    """Half-close without a message."""
    call = channel.stream_stream(DUPLEX, None, None)(None)
    await call.done_writing()
    return {"responses": await drain(call), **await status(call)}


async def cancel_after_begin(channel: grpc.aio.Channel) -> Seen:
    """Cancel before any message."""
    call = channel.stream_unary(INPUT, None, None)(None)
    await asyncio.sleep(0.02)
    call.cancel()
    return {"code": (await call.code()).name}


async def cancel_after_first_response(channel: grpc.aio.Channel) -> Seen:
    """Cancel in the middle of a conversation."""
    call = channel.stream_stream(DUPLEX, None, None)(None)
    await call.write(ask(sizes=[31415]))
    first = len(cast("bytes", await call.read()))
    call.cancel()
    return {"first": first, "code": (await call.code()).name}


async def timeout_on_sleeping_server(channel: grpc.aio.Channel) -> Seen:
    """The deadline passes while the server sleeps."""
    call = channel.stream_stream(DUPLEX, None, None)(None, timeout=0.1)
    await call.write(ask(sleep_ms=20_000))
    await drain(call)
    return {"code": (await call.code()).name}


async def custom_metadata(channel: grpc.aio.Channel) -> Seen:
    """Initial metadata as text, trailing metadata as bytes, repeated keys; unary and stream."""
    sent = (
        (ECHO_INITIAL, "test_initial_metadata_value"),
        (ECHO_TRAILING, b"\xab\xab\xab"),
        (ECHO_TRAILING, b"\x00\xff"),
    )
    unary = await one(channel, UNARY, ask(size=8), metadata=sent)
    call = channel.stream_stream(DUPLEX, None, None)(None, metadata=sent)
    await call.write(ask(sizes=[9]))
    await call.done_writing()
    return {"unary": unary, "responses": await drain(call), "stream": await status(call)}


async def status_code_and_message(channel: grpc.aio.Channel) -> Seen:
    """A status of the application's own, unary and stream, with details and trailing metadata."""
    asked = ask(code=2, message="test status message", details_bin="0802120474657374")
    sent = ((ECHO_TRAILING, b"\x01"),)
    unary = await one(channel, UNARY, asked, metadata=sent)
    call = channel.stream_stream(DUPLEX, None, None)(None, metadata=sent)
    await call.write(asked)
    await call.done_writing()
    return {"unary": unary, "responses": await drain(call), "stream": await status(call)}


async def special_status_message(channel: grpc.aio.Channel) -> Seen:
    """Whitespace and characters outside the basic plane in a status message."""
    return await one(channel, UNARY, ask(code=2, message=SPECIAL_MESSAGE))


async def unavailable_by_the_service(channel: grpc.aio.Channel) -> Seen:
    """UNAVAILABLE said by the application is not a broken connection."""
    return await one(channel, UNARY, ask(code=14, message="closed for lunch"))


async def error_after_responses(channel: grpc.aio.Channel) -> Seen:
    """A server stream that ends with an error after its messages."""
    call = channel.unary_stream(OUTPUT, None, None)(ask(sizes=[1, 2, 3], code=9, message="and now this"))
    return {"responses": await drain(call), **await status(call)}


async def early_error_while_sending(channel: grpc.aio.Channel) -> Seen:
    """The server refuses after the first of many requests: its status must survive the ones still coming."""

    def upload() -> Seen:
        # The asyncio client loses this race by itself now and then, even without a sidecar.
        first = ask(code=7, message="no more, thank you")
        requests = [first, *[bytes(100_000)] * 50]
        with grpc.insecure_channel(target_of(channel)) as plain:
            try:
                plain.stream_unary(INPUT, None, None)(iter(requests))
            except grpc.RpcError as error:
                ended = cast("grpc.Call", error)
                return {"code": ended.code().name, "details": ended.details()}
        return {"code": "OK"}

    return await asyncio.to_thread(upload)


async def unimplemented_method(channel: grpc.aio.Channel) -> Seen:
    """A method that the service lacks."""
    return await one(channel, f"/{SERVICE}/UnimplementedCall", b"")


async def unimplemented_service(channel: grpc.aio.Channel) -> Seen:
    """A service that the server lacks."""
    return await one(channel, "/grpc.testing.UnimplementedService/UnimplementedCall", b"")


CASES: Mapping[str, Callable[[grpc.aio.Channel], Awaitable[Seen]]] = MappingProxyType(
    {
        case.__name__: case
        for case in (
            empty_unary,
            large_unary,
            client_streaming,
            server_streaming,
            ping_pong,
            empty_stream,
            cancel_after_begin,
            cancel_after_first_response,
            timeout_on_sleeping_server,
            custom_metadata,
            status_code_and_message,
            special_status_message,
            unavailable_by_the_service,
            error_after_responses,
            early_error_while_sending,
            unimplemented_method,
            unimplemented_service,
        )
    }
)

# What the public description demands, where it demands something definite.
DEMANDED: Mapping[str, str] = MappingProxyType(
    {
        "empty_unary": "OK",
        "large_unary": "OK",
        "client_streaming": "OK",
        "server_streaming": "OK",
        "ping_pong": "OK",
        "empty_stream": "OK",
        "cancel_after_begin": "CANCELLED",
        "cancel_after_first_response": "CANCELLED",
        "timeout_on_sleeping_server": "DEADLINE_EXCEEDED",
        "special_status_message": "UNKNOWN",
        "unimplemented_method": "UNIMPLEMENTED",
        "unimplemented_service": "UNIMPLEMENTED",
    }
)
