"""The general path: any number of messages both ways, one in flight each way, cut when the right is gone."""

import asyncio
from typing import Any, Final, cast

import grpc
import grpc.aio

from sidecar.core.call import Decision, Permitted
from sidecar.edge.door import Door, Execution
from sidecar.edge.metadata import from_upstream
from sidecar.edge.refusals import Context

_EOF: Final[Any] = cast("Any", grpc.aio).EOF  # the stubs lack it


async def serve_stream(door: Door, path: str, context: Context) -> None:
    """Decide one call of any kind and carry its messages until it ends.

    It is decided before its first message, unless a policy reads the request.

    Raises:
        grpc.aio.AbortError: the call has ended with a status other than OK.
    """
    execution = Execution(door, path[1:], context)
    try:
        first: Any = None
        if door.gate.needs_request(execution.attempt):
            first = await context.read()
        permitted = await execution.authorize(first if isinstance(first, bytes) else None)
        upstream = await execution.upstream()
        timeout = await execution.timeout()
        call = upstream.stream(path)(None, metadata=execution.metadata, timeout=timeout)
        await _Carrier(door, execution, call, permitted).carry(first, requests=True)
    finally:
        execution.close()


async def serve_server_stream(door: Door, path: str, request: bytes, context: Context) -> None:
    """Decide one call with a single request, known from a descriptor, and carry its responses.

    Raises:
        grpc.aio.AbortError: the call has ended with a status other than OK.
    """
    execution = Execution(door, path[1:], context)
    try:
        permitted = await execution.authorize(request)
        upstream = await execution.upstream()
        timeout = await execution.timeout()
        call = upstream.server_stream(path)(request, metadata=execution.metadata, timeout=timeout)
        await _Carrier(door, execution, call, permitted).carry(None, requests=False)
    finally:
        execution.close()


class _Carrier:
    """Carries the messages of one permitted call between its caller (`context`) and its upstream (`call`)."""

    __slots__ = ("_call", "_context", "_cut_by", "_door", "_execution", "_permitted", "_task", "_too_large")

    def __init__(self, door: Door, execution: Execution, call: Any, permitted: Permitted) -> None:
        self._door = door
        self._execution = execution
        self._context = execution.context
        self._call = call
        self._permitted = permitted
        self._cut_by: Decision | None = None
        self._too_large: int | None = None
        self._task: asyncio.Task[Any] | None = asyncio.current_task()

    async def carry(self, first: Any, *, requests: bool) -> None:
        """Carry until either side ends. `first` is a message that was already read, EOF, or None."""
        handle = self._door.gate.opened(self._permitted, self._cut)
        sender = asyncio.ensure_future(self._carry_requests(first)) if requests else None
        try:
            await self._carry_responses()
        except grpc.aio.AioRpcError as error:
            await self._execution.relay(error)
        except asyncio.CancelledError:
            self._call.cancel()
            await self._interrupted()
            raise
        finally:
            self._door.gate.closed(handle)
            if sender is not None:
                sender.cancel()

    def _cut(self, decision: Decision) -> None:
        """End the call because its right was withdrawn; called on the loop, at any moment."""
        self._cut_by = decision
        self._interrupt()

    def _interrupt(self) -> None:
        self._call.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _interrupted(self) -> None:
        """Tell the caller why, when it was this sidecar that interrupted the call."""
        if self._cut_by is None and self._too_large is None:
            return  # the caller went away
        if self._task is not None:
            self._task.uncancel()
        if self._cut_by is not None:
            await self._execution.withdrawn(self._cut_by)
        await self._execution.too_large(self._too_large)

    async def _carry_requests(self, first: Any) -> None:
        context, call, limit = self._context, self._call, self._door.max_message_bytes
        try:
            message = await context.read() if first is None else first
            while message is not _EOF:
                if len(message) > limit:
                    self._too_large = len(message)
                    self._interrupt()
                    return
                await call.write(message)
                message = await context.read()
            await call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            # The call has ended; the response side knows how.
            return

    async def _carry_responses(self) -> None:
        context, call = self._context, self._call
        initial = await call.initial_metadata()
        if initial or not call.done():
            # At once, even when empty: a caller may wait for it before it sends its first message.
            await context.send_initial_metadata(from_upstream(initial))
        while (message := await call.read()) is not _EOF:
            await context.write(message)
        trailing = await call.trailing_metadata()
        if trailing:
            context.set_trailing_metadata(from_upstream(trailing))
        details = await call.details()
        if details:
            context.set_details(details)
        self._execution.status = "OK"
