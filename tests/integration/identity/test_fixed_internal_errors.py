"""No internal text reaches a caller, whatever kind of handler fails and however."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from trust.edge.grpc_errors import INTERNAL_TEXT, FixedInternalErrors, abort, error_from_rpc
from trust.errors import CapacityError, MeshError, Reason, StateError

SECRET = "password=hunter2"


def fail(what: bytes) -> None:
    if what == b"crash":
        raise RuntimeError(SECRET)
    if what == b"mesh":
        raise CapacityError(Reason.LIMIT_EXCEEDED, "too many")


async def unary(request: bytes, context: Any) -> bytes:
    fail(request)
    if request == b"abort":
        context.set_trailing_metadata((("x-kept", "yes"),))
        await abort(context, StateError(Reason.NOT_FOUND, "no such thing"))
    return request


async def server_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    fail(request)


async def bidi(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        fail(request)
        yield request


async def writer(request: bytes, context: Any) -> None:
    await context.write(b"first")
    fail(request)


def blocking(request: bytes, context: Any) -> bytes:
    fail(request)
    return request


class Service(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """One method per kind of handler."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of the method."""
        return {
            "/t.T/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/t.T/Stream": grpc.unary_stream_rpc_method_handler(server_stream),
            "/t.T/Bidi": grpc.stream_stream_rpc_method_handler(bidi),
            "/t.T/Writer": grpc.unary_stream_rpc_method_handler(writer),
            "/t.T/Blocking": grpc.unary_unary_rpc_method_handler(blocking),
        }.get(handler_call_details.method)


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the service behind the interceptor."""
    server = grpc.aio.server(interceptors=[FixedInternalErrors()])
    server.add_generic_rpc_handlers([Service()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(None)


async def call(channel: Any, method: str, request: bytes) -> list[bytes]:
    path = f"/t.T/{method}"
    if method in {"Unary", "Blocking", "Missing"}:
        return [await channel.unary_unary(path)(request, timeout=10)]
    if method == "Bidi":
        return [item async for item in channel.stream_stream(path)(iter([request]), timeout=10)]
    return [item async for item in channel.unary_stream(path)(request, timeout=10)]


@pytest.mark.parametrize("method", ["Unary", "Stream", "Bidi", "Writer", "Blocking"])
async def test_an_uncaught_exception_becomes_fixed_text(channel: grpc.aio.Channel, method: str) -> None:
    """The caller learns that it was us, and nothing else."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, method, b"crash")
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == INTERNAL_TEXT
    assert SECRET not in repr(failed.value.trailing_metadata())
    assert error_from_rpc(failed.value).reason is Reason.INTERNAL


@pytest.mark.parametrize("method", ["Unary", "Stream", "Bidi", "Writer", "Blocking"])
async def test_an_uncaught_refusal_becomes_its_status(channel: grpc.aio.Channel, method: str) -> None:
    """A `MeshError` that a servicer did not catch still carries its reason."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, method, b"mesh")
    error = error_from_rpc(failed.value)
    assert (type(error), error.reason, error.detail) == (CapacityError, Reason.LIMIT_EXCEEDED, "too many")


@pytest.mark.parametrize("method", ["Unary", "Stream", "Bidi", "Writer", "Blocking"])
async def test_what_succeeds_passes_unchanged(channel: grpc.aio.Channel, method: str) -> None:
    """Every style of handler still works."""
    assert await call(channel, method, b"ok") == [b"first" if method in {"Stream", "Writer"} else b"ok"]


async def test_a_deliberate_abort_and_its_metadata_pass(channel: grpc.aio.Channel) -> None:
    """The interceptor does not take an abort for a crash."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "Unary", b"abort")
    assert error_from_rpc(failed.value).reason is Reason.NOT_FOUND
    trailing: Any = failed.value.trailing_metadata()
    assert trailing["x-kept"] == "yes"


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    """No handler, no crash."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(channel, "Missing", b"")
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert isinstance(error_from_rpc(failed.value), MeshError)
