"""How a `MeshError` crosses gRPC: one total table to status codes, and the richer error model both ways.

The status carries `google.rpc.Status` with an ErrorInfo (reason, domain "egm"). Only `MeshError.detail` ever
reaches a peer; any other exception becomes INTERNAL with fixed text.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from trust.errors import CapacityError, EvidenceError, InputError, MeshError, Reason, StateError

logger = logging.getLogger(__name__)

T = TypeVar("T")

ERROR_DOMAIN: Final = "egm"
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
MAX_DETAIL_CHARS: Final = 2_000  # twice in the trailers, and peers may refuse trailers over 8 KiB
INTERNAL_TEXT: Final = "egm: internal error; the log of the server has the details"

_Code = grpc.StatusCode

STATUS_OF: Final[Mapping[Reason, grpc.StatusCode]] = MappingProxyType(
    {
        # A decision that allowed is never an error; were it ever sent as one, it must not look retryable.
        Reason.ALLOWED: _Code.INTERNAL,
        Reason.PASSED_UNGOVERNED: _Code.INTERNAL,
        Reason.GOVERNANCE_UNAVAILABLE: _Code.UNAVAILABLE,
        Reason.POLICY_DENIED: _Code.PERMISSION_DENIED,
        Reason.NO_POLICY_PERMITS: _Code.PERMISSION_DENIED,
        Reason.POLICY_ERROR: _Code.PERMISSION_DENIED,
        Reason.REQUEST_UNREPRESENTABLE: _Code.PERMISSION_DENIED,
        Reason.OBLIGATION_UNSUPPORTED: _Code.PERMISSION_DENIED,
        Reason.RATE_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
        Reason.BUDGET_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
        Reason.OBLIGATION_UNMET: _Code.FAILED_PRECONDITION,
        Reason.POLICY_MISSING: _Code.UNAVAILABLE,
        Reason.POLICY_STALE: _Code.UNAVAILABLE,
        Reason.POLICY_EXPIRED: _Code.UNAVAILABLE,
        Reason.QUORUM_NOT_MET: _Code.FAILED_PRECONDITION,
        Reason.POLICY_ROLLBACK: _Code.FAILED_PRECONDITION,
        Reason.METADATA_INVALID: _Code.INVALID_ARGUMENT,
        Reason.METADATA_UNSAFE: _Code.INVALID_ARGUMENT,
        Reason.DIGEST_MISMATCH: _Code.INVALID_ARGUMENT,
        Reason.SOURCE_UNAVAILABLE: _Code.UNAVAILABLE,
        Reason.DOWNLOAD_TOO_SLOW: _Code.UNAVAILABLE,
        Reason.BUNDLE_MALFORMED: _Code.INVALID_ARGUMENT,
        Reason.BUNDLE_UNSAFE_PATH: _Code.INVALID_ARGUMENT,
        Reason.BUNDLE_TOO_LARGE: _Code.INVALID_ARGUMENT,
        Reason.BUNDLE_POLICY_INVALID: _Code.INVALID_ARGUMENT,
        Reason.BUNDLE_OUT_OF_NAMESPACE: _Code.INVALID_ARGUMENT,
        Reason.BUNDLE_SELF_TEST_FAILED: _Code.INVALID_ARGUMENT,
        Reason.CALLER_UNIDENTIFIED: _Code.UNAUTHENTICATED,
        Reason.CALLER_AMBIGUOUS: _Code.UNAUTHENTICATED,
        Reason.CALLER_CERTIFICATE_EXPIRED: _Code.UNAUTHENTICATED,
        Reason.CALLER_TOKEN_INVALID: _Code.UNAUTHENTICATED,
        Reason.IDENTITY_UNAVAILABLE: _Code.UNAVAILABLE,
        Reason.IDENTITY_INVALID: _Code.INVALID_ARGUMENT,
        Reason.JOIN_TOKEN_INVALID: _Code.UNAUTHENTICATED,
        Reason.NOT_AUTHORIZED: _Code.PERMISSION_DENIED,
        Reason.KEY_UNSAFE: _Code.INVALID_ARGUMENT,
        Reason.KEY_UNREADABLE: _Code.FAILED_PRECONDITION,
        Reason.SIGNATURE_INVALID: _Code.INVALID_ARGUMENT,
        Reason.UNKNOWN_SERVICE: _Code.UNIMPLEMENTED,
        Reason.UPSTREAM_UNAVAILABLE: _Code.UNAVAILABLE,
        Reason.MESSAGE_TOO_LARGE: _Code.RESOURCE_EXHAUSTED,
        Reason.AUTHORIZATION_WITHDRAWN: _Code.PERMISSION_DENIED,
        Reason.DRAINING: _Code.UNAVAILABLE,
        Reason.INTERNAL: _Code.INTERNAL,
        Reason.RECORD_MALFORMED: _Code.INVALID_ARGUMENT,
        Reason.PAYLOAD_INVALID: _Code.INVALID_ARGUMENT,
        Reason.CONFIG_INVALID: _Code.FAILED_PRECONDITION,
        Reason.INPUT_INVALID: _Code.INVALID_ARGUMENT,
        Reason.NOT_FOUND: _Code.NOT_FOUND,
        Reason.CONFLICT: _Code.ABORTED,
        Reason.PERMIT_MISSING: _Code.FAILED_PRECONDITION,
        Reason.PERMIT_INVALID: _Code.PERMISSION_DENIED,
        Reason.PERMIT_MISMATCH: _Code.PERMISSION_DENIED,
        Reason.PERMIT_EXPIRED: _Code.PERMISSION_DENIED,
        Reason.PERMIT_REPLAYED: _Code.ALREADY_EXISTS,
        Reason.PERMIT_UNVERIFIABLE: _Code.UNAVAILABLE,
        Reason.OPENING_MISSING: _Code.FAILED_PRECONDITION,
        Reason.PROOF_INVALID: _Code.INVALID_ARGUMENT,
        Reason.LEDGER_UNAVAILABLE: _Code.UNAVAILABLE,
        Reason.LEDGER_CONTRADICTED: _Code.FAILED_PRECONDITION,
        Reason.NODE_NOT_ATTESTED: _Code.UNAVAILABLE,
        Reason.ATTESTATION_MISSING: _Code.FAILED_PRECONDITION,
        Reason.ATTESTATION_UNKNOWN: _Code.UNAVAILABLE,
        Reason.ATTESTATION_INVALID: _Code.PERMISSION_DENIED,
        Reason.ATTESTATION_EXPIRED: _Code.PERMISSION_DENIED,
        Reason.EVIDENCE_INVALID: _Code.INVALID_ARGUMENT,
        Reason.NONCE_UNKNOWN: _Code.FAILED_PRECONDITION,
        Reason.COUNTER_REGRESSED: _Code.FAILED_PRECONDITION,
        Reason.BOOT_RETURNED: _Code.FAILED_PRECONDITION,
        Reason.MEASUREMENT_REFUSED: _Code.PERMISSION_DENIED,
        Reason.POLICY_BEHIND: _Code.FAILED_PRECONDITION,
        Reason.POLICY_CONFLICT: _Code.FAILED_PRECONDITION,
        Reason.LEVEL_TOO_LOW: _Code.PERMISSION_DENIED,
        Reason.CHECKPOINT_REGRESSED: _Code.FAILED_PRECONDITION,
        Reason.CHECKPOINT_CONFLICT: _Code.FAILED_PRECONDITION,
        Reason.CLOCK_WRONG: _Code.FAILED_PRECONDITION,
        Reason.WITNESS_NOT_LISTED: _Code.FAILED_PRECONDITION,
        Reason.WITNESS_UNAVAILABLE: _Code.UNAVAILABLE,
        Reason.REVOKED: _Code.PERMISSION_DENIED,
        Reason.NODE_QUARANTINED: _Code.PERMISSION_DENIED,
        Reason.REVOCATION_INVALID: _Code.INVALID_ARGUMENT,
        Reason.MISBEHAVIOUR_UNPROVEN: _Code.INVALID_ARGUMENT,
        Reason.SHADOW_ORDER_INVALID: _Code.INVALID_ARGUMENT,
        Reason.APPROVAL_REQUIRED: _Code.FAILED_PRECONDITION,
        Reason.APPROVAL_DENIED: _Code.PERMISSION_DENIED,
        Reason.APPROVAL_EXPIRED: _Code.FAILED_PRECONDITION,
        Reason.APPROVAL_SPENT: _Code.ALREADY_EXISTS,
        Reason.APPROVAL_INVALID: _Code.PERMISSION_DENIED,
        Reason.APPROVAL_UNAVAILABLE: _Code.UNAVAILABLE,
        Reason.LIMIT_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
    }
)

_KINDS: Final[Mapping[str, type[MeshError]]] = MappingProxyType(
    {"evidence": EvidenceError, "state": StateError, "capacity": CapacityError, "input": InputError}
)


def _kind_of(error: MeshError) -> str:
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "state")


def status_of(
    reason: Reason, message: str, metadata: Mapping[str, str] | None = None, *, retry_ms: int = 0
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return (code, message, trailing metadata) that tell a peer `reason` in the richer error model.

    With `retry_ms` a RetryInfo says when to call again. The metadata is a tuple of tuples because `context.abort`
    accepts nothing else.
    """
    code = STATUS_OF[reason]
    text = message[:MAX_DETAIL_CHARS]
    info = error_details_pb2.ErrorInfo(
        reason=reason.value, domain=ERROR_DOMAIN, metadata=dict(metadata or {})
    )
    packed = any_pb2.Any()
    packed.Pack(info)
    details = [packed]
    if retry_ms > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_ms)
        details.append(any_pb2.Any())
        details[-1].Pack(retry)
    status = status_pb2.Status(code=code.value[0], message=text, details=details)
    return code, text, ((STATUS_DETAILS_KEY, status.SerializeToString()),)


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: MeshError) -> NoReturn:
    """End the call with the status of `error`. Never returns."""
    code, text, trailing = status_of(error.reason, error.detail, {"kind": _kind_of(error)})
    # Metadata already set by the handler would be replaced by abort's: keep it.
    kept = tuple(
        (key, value) for key, value in (context.trailing_metadata() or ()) if key != STATUS_DETAILS_KEY
    )
    await context.abort(code, text, cast("Any", (*kept, *trailing)))
    raise AssertionError("abort returned")


def error_from_rpc(error: grpc.RpcError) -> MeshError:
    """Return the `MeshError` that a failed call reports; SOURCE_UNAVAILABLE when the peer named no reason."""
    call = cast("grpc.Call", error)
    code, details = call.code(), call.details() or ""
    info = _error_info(call)
    if info is not None and info.domain == ERROR_DOMAIN and info.reason in Reason.__members__:
        kind = _KINDS.get(info.metadata.get("kind", ""), StateError)
        return kind(Reason(info.reason), details[:MAX_DETAIL_CHARS])
    return StateError(Reason.SOURCE_UNAVAILABLE, f"{code.name}: {details}"[:MAX_DETAIL_CHARS])


def readable(answer: T | None) -> T:
    """Return what a peer answered; grpc.aio gives None for bytes that are no such message.

    Every loop that asks others needs this: an AttributeError would end the process, at the word of a peer.

    Raises:
        StateError: SOURCE_UNAVAILABLE.
    """
    if answer is None:
        raise StateError(Reason.SOURCE_UNAVAILABLE, "the peer answered what nobody can read")
    return answer


@contextlib.contextmanager
def closed_is_a_failure() -> Iterator[None]:
    """Make the end of a call whose channel was closed under it, as a rotation does in time, a failure like any other.

    grpc.aio raises CancelledError then, as if the task had been cancelled. The loop that reads the stream would end,
    and where it is one of a TaskGroup nobody would notice.

    Raises:
        StateError: SOURCE_UNAVAILABLE.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StateError(Reason.SOURCE_UNAVAILABLE, "the connection was closed on this side") from None


def _error_info(call: grpc.Call) -> error_details_pb2.ErrorInfo | None:
    try:
        status = rpc_status.from_call(call)
        for detail in () if status is None else status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info
    except Exception:  # noqa: BLE001  # whatever the peer put there: without a readable reason it has none
        logger.debug("unreadable status details from a peer")
    return None


class FixedInternalErrors(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """The outermost server interceptor: a `MeshError` becomes its status, all else INTERNAL with fixed text.

    grpc.aio sends the text of an uncaught exception to the caller; this keeps it in the log.
    """

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Wrap the handler that serves the call."""
        handler = cast("Any", await continuation(handler_call_details))
        if handler is None:
            return cast("grpc.RpcMethodHandler[Any, Any]", None)
        method = handler_call_details.method
        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                return cast("grpc.RpcMethodHandler[Any, Any]", make(_guarded(behaviour, method), **coders))
        return cast("grpc.RpcMethodHandler[Any, Any]", handler)


def _guarded(behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
    """Return `behaviour` with its exceptions turned into statuses; same style: grpc.aio inspects it."""
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(request, context):
                    yield response
            except Exception as error:  # noqa: BLE001  # the boundary: nothing may pass as text
                await _end(context, error, method)

        return stream
    if inspect.iscoroutinefunction(behaviour):

        async def single(request: Any, context: Any) -> Any:
            try:
                return await behaviour(request, context)
            except Exception as error:  # noqa: BLE001
                await _end(context, error, method)

        return single

    def blocking(request: Any, context: Any) -> Any:
        try:
            return behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except MeshError as error:
            return context.abort(*status_of(error.reason, error.detail, {"kind": _kind_of(error)}))
        except Exception:
            logger.exception("uncaught error in %s", method)
            return context.abort(*status_of(Reason.INTERNAL, INTERNAL_TEXT))

    return blocking


async def _end(context: "grpc.aio.ServicerContext[Any, Any]", error: Exception, method: str) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, MeshError):
        await abort(context, error)
    logger.error("uncaught error in %s", method, exc_info=error)
    await abort(context, StateError(Reason.INTERNAL, INTERNAL_TEXT))
