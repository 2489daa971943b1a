"""A service that executes only what its own sidecar handed on: with `grpc` and with `grpc.aio`, same methods.

Requests and responses are plain bytes; every answer names the caller. A request b"on" makes the handler call the
same method of the service behind `onward` with the client interceptors, and answer with the status of that.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from sidecar.interceptors import (
    AioClientInterceptors,
    AioServerInterceptor,
    ClientInterceptors,
    ServerInterceptor,
    current_call,
)
from tests.support.interop_service import DUPLEX, INPUT, OUTPUT, UNARY

ON = b"on"
READING = f"{DUPLEX}Reading"  # echoes, with the reader's API of grpc.aio alone
EOF: Any = cast("Any", grpc.aio).EOF
KINDS = {
    UNARY: "unary_unary",
    OUTPUT: "unary_stream",
    INPUT: "stream_unary",
    DUPLEX: "stream_stream",
    READING: "stream_stream",
}


class Seen:
    """What reached the handlers: (method, metadata), and where they call on to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.onward = ""


def _answer(seen: Seen, path: str, context: Any) -> bytes:
    seen.calls.append((path, dict(context.invocation_metadata())))
    call = current_call()
    return b"nobody" if call is None else (call.caller or "unknown").encode()


def _sync_handlers(seen: Seen) -> dict[str, Any]:
    def onward() -> bytes:
        with grpc.insecure_channel(seen.onward) as plain:
            channel = grpc.intercept_channel(plain, *ClientInterceptors())
            try:
                return channel.unary_unary(UNARY, None, None)(b"end", timeout=10)  # type: ignore[no-any-return]
            except grpc.RpcError as error:
                return str(error.code().name).encode()

    def unary(request: bytes, context: Any) -> bytes:
        answer = _answer(seen, UNARY, context)
        return onward() if request == ON else answer

    def output(request: bytes, context: Any) -> Iterator[bytes]:
        yield _answer(seen, OUTPUT, context)
        yield _answer(seen, OUTPUT, context)

    def collect(requests: Iterator[bytes], context: Any) -> bytes:
        return b",".join([*requests, _answer(seen, INPUT, context)])

    def duplex(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for _ in requests:
            yield _answer(seen, DUPLEX, context)

    return {UNARY: unary, OUTPUT: output, INPUT: collect, DUPLEX: duplex}


def _aio_handlers(seen: Seen) -> dict[str, Any]:
    async def onward() -> bytes:
        options: Any = {"interceptors": AioClientInterceptors()}
        async with grpc.aio.insecure_channel(seen.onward, **options) as channel:
            try:
                return await channel.unary_unary(UNARY, None, None)(b"end", timeout=10)  # type: ignore[no-any-return]
            except grpc.aio.AioRpcError as error:
                return error.code().name.encode()

    async def unary(request: bytes, context: Any) -> bytes:
        answer = _answer(seen, UNARY, context)
        return await onward() if request == ON else answer

    async def output(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield _answer(seen, OUTPUT, context)
        yield _answer(seen, OUTPUT, context)

    async def collect(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b",".join([*[one async for one in requests], _answer(seen, INPUT, context)])

    async def duplex(requests: AsyncIterator[bytes], context: Any) -> None:
        async for _ in requests:
            await context.write(_answer(seen, DUPLEX, context))

    async def reading(requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not EOF:
            await context.write(request)

    return {UNARY: unary, OUTPUT: output, INPUT: collect, DUPLEX: duplex, READING: reading}


def _service(handlers: dict[str, Any]) -> Any:
    methods = {
        path.rpartition("/")[2]: getattr(grpc, f"{KINDS[path]}_rpc_method_handler")(handler)
        for path, handler in handlers.items()
    }
    return grpc.method_handlers_generic_handler(UNARY.split("/")[1], methods)


@contextlib.asynccontextmanager
async def guarded(style: str, key_file: Path, workload: str) -> AsyncIterator[tuple[Seen, str]]:
    """Serve; `style` is "sync", "aio" or "mixed" (blocking handlers on grpc.aio)."""
    seen = Seen()
    handlers = _aio_handlers(seen) if style == "aio" else _sync_handlers(seen)
    server: Any
    if style == "sync":
        interceptors: Any = [ServerInterceptor(key_file, workload)]
        server = grpc.server(ThreadPoolExecutor(4), interceptors=interceptors)
    else:
        options: Any = {"interceptors": [AioServerInterceptor(key_file, workload)]}
        server = grpc.aio.server(ThreadPoolExecutor(4), **options)
    server.add_generic_rpc_handlers((_service(handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    started = server.start()
    if started is not None:
        await started
    try:
        yield seen, f"127.0.0.1:{port}"
    finally:
        stopped = server.stop(0)
        if style == "sync":
            stopped.wait()
        else:
            await stopped
