"""Waits for something that another task does; says what did not happen."""

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], object], what: str, *, within_s: float = 60.0) -> None:
    """Return as soon as `condition` holds; fail with `what` when it does not in a generous time."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 (the condition is anything at all)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None
