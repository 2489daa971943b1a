"""gRPC server interceptors: nothing of a handler runs before its call was verified."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import grpc.aio

from sidecar.interceptors.current import CURRENT, CurrentCall
from sidecar.interceptors.opening import Check, checking_first, open_requests, open_requests_async, unwrap
from sidecar.interceptors.verification import HEALTH, Guard, Sent
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import status_of
from trust.errors import MeshError
from trust.handover import check_handed_request
from trust.ports import Clock

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
    _Sync = grpc.ServerInterceptor[Any, Any]
    _Aio = grpc.aio.ServerInterceptor[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    _Sync, _Aio = grpc.ServerInterceptor, grpc.aio.ServerInterceptor

_KINDS: Final = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class _Guarded:
    """What both interceptors share: a handler in, a guarded handler out."""

    def __init__(
        self,
        key_file: Path | str,
        workload: str,
        *,
        exempt: Collection[str] = HEALTH,
        clock: Clock | None = None,
    ) -> None:
        """Take where the sidecar's public key is and who this service is.

        Args:
            key_file: `node-key.pub` in the sidecar's data_dir; it may appear later, and is followed when it changes.
            workload: SPIFFE ID of the workload that this service is.
            exempt: what may be called by anybody: "package.Service" or "package.Service/Method", each.
            clock: real or fake.

        Raises:
            EvidenceError: IDENTITY_INVALID, `workload` is no SPIFFE ID.
        """
        self._guard = Guard(Path(key_file), workload, exempt, clock or SystemClock())

    def _wrap(self, handler: Any, details: grpc.HandlerCallDetails, *, aio: bool) -> Handler:
        path = details.method
        if handler is None or self._guard.exempts(path):
            return cast("Handler", handler)
        kind = next(name for name in _KINDS if getattr(handler, name) is not None)
        behaviour, deserialize = getattr(handler, kind), handler.request_deserializer
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        try:
            claims, call = self._guard.admit(path, cast("Sent", details.invocation_metadata or ()))
        except MeshError as error:
            # The requests stay as bytes: not even their parser runs for a call that is refused.
            return cast("Handler", make(_refusal(error, kind, aio=aio)))
        check = None if claims.request_sha256 is None else partial(check_handed_request, claims)
        around = _around_async if aio and _is_async(behaviour) else _around_sync
        guarded = around(
            behaviour, call, check, one=kind.startswith("unary"), streams=kind.endswith("stream")
        )
        return cast(
            "Handler",
            make(
                guarded,
                request_deserializer=deserialize if check is None else checking_first(deserialize, check),
                response_serializer=handler.response_serializer,
            ),
        )


class ServerInterceptor(_Guarded, _Sync):
    """For `grpc.server`: only calls that the own sidecar handed on are executed."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the guarded handler of one call."""
        return self._wrap(continuation(handler_call_details), handler_call_details, aio=False)


class AioServerInterceptor(_Guarded, _Aio):
    """For `grpc.aio.server`: only calls that the own sidecar handed on are executed."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the guarded handler of one call."""
        return self._wrap(await continuation(handler_call_details), handler_call_details, aio=True)


def _is_async(behaviour: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


def _refusal(error: MeshError, kind: str, *, aio: bool) -> Callable[[Any, Any], Any]:
    """Return a behaviour that ends the call."""
    if aio:

        async def refuse_async(_request: Any, context: Any) -> None:
            await _abort(context, error)

        return refuse_async

    def refuse(_request: Any, context: Any) -> None:
        _abort(context, error)

    return refuse


def _abort(context: Any, error: MeshError) -> Any:
    code, text, trailing = status_of(error.reason, error.detail)
    context.set_trailing_metadata(trailing)
    return context.abort(code, text)


def _opened(request: Any, check: Check | None, *, one: bool) -> Any:
    """Return what a blocking handler gets; raises MeshError when it is not what was handed over."""
    if check is None:
        return request
    return unwrap(request) if one else open_requests(request, check)


def _around_sync(
    behaviour: Callable[[Any, Any], Any], call: CurrentCall, check: Check | None, *, one: bool, streams: bool
) -> Callable[[Any, Any], Any]:
    """Return a blocking behaviour, run where `current_call` is this call and no other."""

    def single(request: Any, context: Any) -> Any:
        try:
            opened = _opened(request, check, one=one)
        except MeshError as error:
            return _abort(context, error)
        inside = copy_context()  # the thread serves other calls later
        inside.run(CURRENT.set, call)
        return inside.run(behaviour, opened, context)

    def several(request: Any, context: Any) -> Iterator[Any]:
        try:
            opened = _opened(request, check, one=one)
        except MeshError as error:
            _abort(context, error)
            return
        inside = copy_context()
        inside.run(CURRENT.set, call)
        responses = iter(inside.run(behaviour, opened, context))
        end = object()
        try:
            while (response := inside.run(next, responses, end)) is not end:
                yield response
        finally:
            close = getattr(responses, "close", None)
            if close is not None:
                inside.run(close)

    return several if streams else single


def _around_async(
    behaviour: Callable[[Any, Any], Any], call: CurrentCall, check: Check | None, *, one: bool, streams: bool
) -> Callable[[Any, Any], Any]:
    """Return a behaviour of the same style, in whose task `current_call` is this call: grpc.aio has one per call."""
    if inspect.isasyncgenfunction(behaviour):

        async def several(request: Any, context: Any) -> AsyncIterator[Any]:
            opened, its_context = await _opened_async(request, context, check, one=one)
            CURRENT.set(call)
            async for response in behaviour(opened, its_context):
                yield response

        return several

    async def single(request: Any, context: Any) -> Any:
        opened, its_context = await _opened_async(request, context, check, one=one)
        CURRENT.set(call)
        return await behaviour(opened, its_context)

    return single


async def _opened_async(request: Any, context: Any, check: Check | None, *, one: bool) -> tuple[Any, Any]:
    """Return request and context as a handler on asyncio gets them; ends the call when they are not as handed over."""
    if check is None:
        return request, context
    try:
        if one:
            return unwrap(request), context
        return await open_requests_async(request, context, check)
    except MeshError as error:
        return cast("tuple[Any, Any]", await _abort(context, error))
