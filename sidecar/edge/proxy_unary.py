"""The quick path: one request, one response, known to be so from a descriptor."""

import grpc
import grpc.aio

from sidecar.core.call import Permitted
from sidecar.edge.door import Door, Execution
from sidecar.edge.metadata import from_upstream
from sidecar.edge.refusals import Context
from trust.errors import Reason, StateError

NO_MESSAGE_TEXT = "the service reported success without a response message"


async def serve_unary(door: Door, path: str, request: bytes, context: Context) -> bytes:
    """Decide one unary call, forward it, and return its response message.

    Initial metadata of the upstream reaches the caller together with the response: a unary caller cannot
    act on it earlier.

    Raises:
        grpc.aio.AbortError: the call has ended with a status other than OK.
    """
    execution = Execution(door, path[1:], context)
    try:
        permitted = await execution.authorize(request)
        return await _forward(permitted, execution, path, request, context)
    finally:
        execution.close()


async def _forward(
    permitted: Permitted, execution: Execution, path: str, request: bytes, context: Context
) -> bytes:
    """Forward a call that `permitted` allows."""
    upstream = await execution.upstream()
    timeout = await execution.timeout()
    call = upstream.unary(path)(request, metadata=execution.metadata, timeout=timeout)
    try:
        response: bytes | None = await call
    except grpc.aio.AioRpcError as error:
        initial = error.initial_metadata()
        if initial:
            await context.send_initial_metadata(from_upstream(initial))
        await execution.relay(error)
    if response is None:
        await execution.failed(StateError(Reason.INTERNAL, NO_MESSAGE_TEXT))
    initial = await call.initial_metadata()
    if initial:
        await context.send_initial_metadata(from_upstream(initial))
    trailing = await call.trailing_metadata()
    if trailing:
        context.set_trailing_metadata(from_upstream(trailing))
    details = await call.details()
    if details:
        context.set_details(details)
    execution.status = "OK"
    return response
