"""The general path: any number of messages both ways, one in flight each way, cut when the right is gone."""

import asyncio
from typing import Any, cast

import grpc.aio

from sidecar.core.call import Decision, Permitted
from sidecar.edge.door import Door, Execution, no_cancellation_follows
from sidecar.edge.refusals import Context
from sidecar.edge.upstream_call import EOF, UpstreamCall


async def serve_stream(door: Door, path: bytes, method: str, context: Context) -> None:
    """Decide one call of any kind and carry its messages until it ends.

    It is decided before its first message, unless a policy reads the request, or its permit is to bind that message.

    Raises:
        grpc.aio.AbortError: the call has ended with a status other than OK.
    """
    execution = Execution(door, method, context)
    try:
        first = await execution.opening()
        message = first if isinstance(first, bytes) else None
        permitted = await execution.authorize(message, ended=first is EOF)
        call = await execution.dial(path)
        call.open_stream(asyncio.get_running_loop(), execution.metadata)
        await _Carrier(door, execution, call, permitted).carry(first, requests=True)
    finally:
        execution.close()


async def serve_server_stream(door: Door, path: bytes, method: str, request: bytes, context: Context) -> None:
    """Decide one call with a single request, known from a descriptor, and carry its responses.

    Raises:
        grpc.aio.AbortError: the call has ended with a status other than OK.
    """
    execution = Execution(door, method, context)
    try:
        permitted = await execution.authorize(request)
        call = await execution.dial(path)
        call.open_server_stream(asyncio.get_running_loop(), request, execution.metadata)
        if execution.case is not None:
            execution.case.request_messages, execution.case.request_bytes = 1, len(request)
        await _Carrier(door, execution, call, permitted).carry(None, requests=False)
    finally:
        execution.close()


class _Carrier:
    """Carries the messages of one permitted call between its caller (`context`) and its upstream (`call`)."""

    __slots__ = (
        "_call",
        "_context",
        "_cut_by",
        "_door",
        "_execution",
        "_failure",
        "_permitted",
        "_task",
        "_too_large",
    )

    def __init__(self, door: Door, execution: Execution, call: UpstreamCall, permitted: Permitted) -> None:
        self._door = door
        self._execution = execution
        self._context = execution.context
        self._call = call
        self._permitted = permitted
        self._cut_by: Decision | None = None
        self._too_large: int | None = None
        self._failure: Exception | None = None
        self._task: asyncio.Task[Any] | None = asyncio.current_task()

    async def carry(self, first: Any, *, requests: bool) -> None:
        """Carry until either side ends. `first` is a message that was already read, EOF, or None."""
        handle = self._door.gate.opened(self._permitted, self._cut)
        sender = None
        if requests:
            sender = asyncio.get_running_loop().create_task(self._carry_requests(first))
        try:
            await self._carry_responses()
        except asyncio.CancelledError:
            self._call.cancel()
            await self._interrupted()
            raise
        finally:
            self._door.gate.closed(handle)
            if sender is not None:
                sender.cancel()
            self._call.cancel()  # nothing, when it has ended

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
        if self._cut_by is None and self._too_large is None and self._failure is None:
            return  # the caller went away
        if cast("Any", self._context).done():
            return  # it has been answered already
        if self._task is not None:
            self._task.uncancel()
        if self._cut_by is not None:
            await self._execution.withdrawn(self._cut_by)
        if self._too_large is not None:
            await self._execution.too_large(self._too_large)
        if self._failure is not None:
            raise self._failure

    async def _carry_requests(self, first: Any) -> None:
        try:
            await self._carry_each_request(first)
        except grpc.aio.BaseError:
            return  # the caller's side has ended, and with it the call
        except Exception as error:  # noqa: BLE001  # raised again where the call is answered
            self._failure = error
            self._interrupt()

    async def _carry_each_request(self, first: Any) -> None:
        context, call, limit = self._context, self._call, self._execution.max_message_bytes
        case = self._execution.case
        await call.sendable()
        message = await context.read() if first is None else first
        while message is not EOF:
            if len(message) > limit:
                self._too_large = len(message)
                self._interrupt()
                return
            if not await call.send(message):
                return  # the call has ended; the response side knows how
            if case is not None:
                case.request_messages += 1
                case.request_bytes += len(message)
            message = await context.read()
        await no_cancellation_follows()
        await call.half_close()

    async def _carry_responses(self) -> None:
        context, call, limit = self._context, self._call, self._execution.max_message_bytes
        case = self._execution.case
        initial = await call.initial_metadata()
        if initial or not call.done():
            # At once, even when empty: a caller may wait for it before it sends its first message.
            await context.send_initial_metadata(cast("Any", self._execution.crossing(initial)))
        while (message := await call.receive()) is not EOF:
            if len(message) > limit:
                call.cancel()
                await self._execution.too_large(len(message))
            await context.write(message)
            if case is not None:
                case.response_messages += 1
                case.response_bytes += len(message)
        await self._execution.relay(call)
