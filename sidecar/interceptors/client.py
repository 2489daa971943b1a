"""gRPC client interceptors: a call that a handler makes carries the permit under which the handler runs.

For channels to the own sidecar, which links the chain by it. A permit is spent already: whoever else sees it learns
what it says and can do nothing with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio

from sidecar.interceptors.current import current_call
from trust.permit import PERMIT_KEY

if TYPE_CHECKING:  # generic in the stubs only
    _UnaryUnary = grpc.UnaryUnaryClientInterceptor[Any, Any]
    _UnaryStream = grpc.UnaryStreamClientInterceptor[Any, Any]
    _StreamUnary = grpc.StreamUnaryClientInterceptor[Any, Any]
    _StreamStream = grpc.StreamStreamClientInterceptor[Any, Any]
else:
    _UnaryUnary, _UnaryStream = grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor
    _StreamUnary, _StreamStream = grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor


class _Details(NamedTuple):
    """The fields of `grpc.ClientCallDetails`, which grpcio reads by name."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


def _with_permit(metadata: Any) -> list[tuple[str, str | bytes]] | None:
    """Return the metadata with the current permit; None when there is none, or the handler has copied it itself."""
    call = current_call()
    sent = list(metadata or ())
    if call is None or call.permit is None or any(key == PERMIT_KEY for key, _ in sent):
        return None
    return [*sent, (PERMIT_KEY, call.permit)]


def _carry(continuation: Callable[..., Any], details: Any, request: Any) -> Any:
    metadata = _with_permit(details.metadata)
    if metadata is None:
        return continuation(details, request)
    carried = _Details(
        details.method,
        details.timeout,
        metadata,
        details.credentials,
        getattr(details, "wait_for_ready", None),
        getattr(details, "compression", None),
    )
    return continuation(carried, request)


class _Carrier(_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream):
    """All four kinds: `grpc.intercept_channel` asks for each by its base class."""

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return _carry(continuation, client_call_details, request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return _carry(continuation, client_call_details, request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return _carry(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return _carry(continuation, client_call_details, request_iterator)


def _carry_aio(details: Any) -> Any:
    metadata = _with_permit(details.metadata)
    return details if metadata is None else details._replace(metadata=grpc.aio.Metadata(*metadata))


class _AioUnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # not generic at run time
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_carry_aio(client_call_details), request)


class _AioUnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]  # not generic at run time
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(_carry_aio(client_call_details), request)


class _AioStreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]  # not generic at run time
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_carry_aio(client_call_details), request_iterator)


class _AioStreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]  # not generic at run time
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_carry_aio(client_call_details), request_iterator)


class ClientInterceptors(tuple[Any, ...]):
    """For `grpc.intercept_channel(channel, *ClientInterceptors())`."""

    __slots__ = ()

    def __new__(cls) -> "ClientInterceptors":
        """Return the interceptors; they keep nothing and may be shared."""
        return super().__new__(cls, (_Carrier(),))


class AioClientInterceptors(tuple[Any, ...]):
    """For `grpc.aio.insecure_channel(address, interceptors=AioClientInterceptors())`.

    One of each kind: grpc.aio takes an interceptor for the first kind that it is, and for no other.
    """

    __slots__ = ()

    def __new__(cls) -> "AioClientInterceptors":
        """Return the interceptors; they keep nothing and may be shared."""
        return super().__new__(
            cls, (_AioUnaryUnary(), _AioUnaryStream(), _AioStreamUnary(), _AioStreamStream())
        )
