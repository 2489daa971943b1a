"""Whether the first request that reaches a handler is the one that its sidecar handed over; then the handler may run.

What was read to find that out is given to the handler again, in every way in which it may ask for requests.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import grpc.aio

from trust.errors import MeshError
from trust.permit_claims import NO_MESSAGE

EOF: Final[Any] = cast("Any", grpc.aio).EOF

Deserializer = Callable[[bytes], Any] | None
Check = Callable[[bytes], None]  # digest of the first request, or NO_MESSAGE -> raises MeshError


def checking_first(deserialize: Deserializer, check: Check) -> Callable[[bytes], Any]:
    """Return a deserializer for one call: of its first request (error, message), of all others the message.

    The first is parsed only when it is the one that was handed over.
    """
    to_come = [None]

    def read(data: bytes) -> Any:
        if to_come:
            to_come.pop()
            try:
                check(hashlib.sha256(data).digest())
            except MeshError as error:
                return error, None
            return None, data if deserialize is None else deserialize(data)
        return data if deserialize is None else deserialize(data)

    return read


def unwrap(first: tuple[MeshError | None, Any]) -> Any:
    """Return the first request; raises the MeshError of one that was not handed over."""
    error, message = first
    if error is not None:
        raise error
    return message


def open_requests(requests: Iterator[Any], check: Check) -> Iterator[Any]:
    """Return the requests of a stream for a blocking handler, the first of them read and checked.

    Raises:
        MeshError: it is not the one that was handed over, or there is none and should be.
    """
    try:
        first = next(requests)
    except StopIteration:
        check(NO_MESSAGE)
        return requests
    return _Requests(unwrap(first), requests)


async def open_requests_async(requests: Any, context: Any, check: Check) -> tuple[Any, Any]:
    """Return requests and context of a stream for a handler on asyncio, the first of them read and checked.

    Raises:
        MeshError: it is not the one that was handed over, or there is none and should be.
    """
    first = await context.read()
    if first is EOF:
        check(NO_MESSAGE)
        return requests, context
    opened = _Context(context, unwrap(first))
    return _AsyncRequests(opened), opened


class _Requests:
    """Requests of which the first was read already; as safe to share between threads as grpc's own iterator."""

    def __init__(self, first: Any, rest: Iterator[Any]) -> None:
        self._first, self._rest = [first], rest

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._first.pop()
        except IndexError:
            return next(self._rest)

    next = __next__  # grpc's iterator has that too


class _AsyncRequests:
    """The requests of a `_Context`, in the asynchronous iterator that handlers get."""

    def __init__(self, context: "_Context") -> None:
        self._context = context

    def __aiter__(self) -> "_AsyncRequests":
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is EOF:
            raise StopAsyncIteration
        return message


class _Context:
    """A servicer context whose first request was read already; all else is that of the context itself."""

    def __init__(self, context: Any, first: Any) -> None:
        self._context, self._first = context, [first]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """Return the next request, or EOF."""
        return self._first.pop() if self._first else await self._context.read()
