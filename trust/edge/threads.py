"""When whoever waits for work in a thread may leave: not before it has ended, where others must not begin meanwhile."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_thread_until_done(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread, as `asyncio.to_thread` does; a caller that is cancelled leaves when it has ended.

    A thread cannot be cancelled. A lock that is let go while it still writes protects nothing: what it writes last
    may replace what somebody else wrote after it.

    Raises:
        Exception: whatever `work` raises. asyncio.CancelledError: when it has ended, whatever came of it.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # again; the first is on its way already
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # nobody is left to be told
        raise
