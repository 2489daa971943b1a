"""Who is calling the control plane: decided for every call, before any handler runs, from the certificate alone."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, cast

import grpc
import grpc.aio

from control_plane.core.roles import check_allowed
from trust.edge.grpc_errors import abort
from trust.edge.tls import peer_of
from trust.errors import MeshError, Reason, StateError
from trust.ports import Clock
from trust.spiffe import SpiffeId

_CALLER: Final[ContextVar[SpiffeId]] = ContextVar("egm_caller")
_KINDS: Final = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def current_caller() -> SpiffeId:
    """Return who makes the call that is being handled.

    Raises:
        StateError: INTERNAL, outside of a call that `CheckedCallers` let through.
    """
    caller = _CALLER.get(None)
    if caller is None:
        raise StateError(Reason.INTERNAL, "the caller was not checked")
    return caller


class CheckedCallers(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Lets a call through only if the table of roles allows its caller; metadata is never looked at."""

    def __init__(self, *, trust_domain: str, clock: Clock) -> None:
        self._trust_domain, self._clock = trust_domain, clock

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Wrap the handler that serves the call."""
        handler = cast("Any", await continuation(handler_call_details))
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return cast("grpc.RpcMethodHandler[Any, Any]", None)
        kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
        behaviour = self._checked(getattr(handler, kind), handler_call_details.method)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return cast(
            "grpc.RpcMethodHandler[Any, Any]",
            make(
                behaviour,
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            ),
        )

    def _checked(self, behaviour: Callable[[Any, Any], Any], rpc: str) -> Callable[[Any, Any], Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                await self._check(context, rpc)
                async for response in behaviour(request, context):
                    yield response

            return stream

        async def single(request: Any, context: Any) -> Any:
            await self._check(context, rpc)
            return await behaviour(request, context)

        return single

    async def _check(self, context: grpc.aio.ServicerContext[Any, Any], rpc: str) -> None:
        try:
            caller = peer_of(context, trust_domain=self._trust_domain, now_ms=self._clock.now_ms())
            check_allowed(caller, rpc, trust_domain=self._trust_domain)
        except MeshError as error:
            await abort(context, error)
        _CALLER.set(caller)
