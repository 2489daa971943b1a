"""The quick path: one request, one response, known to be so from a descriptor."""

from typing import Any, Final, cast

from sidecar.core.call import Permitted
from sidecar.edge.door import Door, Execution
from sidecar.edge.refusals import Context
from trust.errors import Reason, StateError

NO_MESSAGE_TEXT: Final = "the service reported success without a response message"


async def serve_unary(door: Door, path: bytes, method: str, request: bytes, context: Context) -> bytes:
    """Decide one unary call, forward it, and return its response message.

    Initial metadata of the upstream reaches the caller together with the response: a unary caller cannot
    act on it earlier.

    Raises:
        grpc.aio.AbortError: the call has ended with a status other than OK.
    """
    execution = Execution(door, method, context)
    try:
        permitted = await execution.authorize(request)
        return await _forward(permitted, execution, path, request)
    finally:
        execution.close()


async def _forward(permitted: Permitted, execution: Execution, path: bytes, request: bytes) -> bytes:
    """Forward a call that `permitted` allows."""
    call = await execution.dial(path)
    response = await call.unary(request, execution.metadata)
    if response is not None and len(response) > execution.max_message_bytes:
        await execution.too_large(len(response))
    execution.exchanged(request, response)
    if response is not None:
        await execution.keep(response)
    initial = await call.initial_metadata()
    shown = execution.crossing(initial)
    if shown or initial:
        await execution.context.send_initial_metadata(cast("Any", shown))
    await execution.relay(call)
    if response is None:
        await execution.failed(StateError(Reason.INTERNAL, NO_MESSAGE_TEXT))
    return response
