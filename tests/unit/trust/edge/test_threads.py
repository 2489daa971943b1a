"""Who waits for a thread, and how long."""

import asyncio
import threading

import pytest

from trust.edge.threads import to_thread_until_done


async def test_a_lock_is_held_until_the_thread_has_ended_also_by_a_caller_that_is_cancelled() -> None:
    """Cancelled twice, even: the next one begins when the first writes no more."""
    lock, begun, go_on = asyncio.Lock(), threading.Event(), threading.Event()
    order: list[str] = []

    def slow() -> None:
        begun.set()
        go_on.wait(10)
        order.append("first")

    async def first() -> None:
        async with lock:
            await to_thread_until_done(slow)

    async def second() -> None:
        async with lock:
            await to_thread_until_done(order.append, "second")

    running = asyncio.create_task(first())
    await asyncio.to_thread(begun.wait, 10)
    following = asyncio.create_task(second())
    for _ in range(2):
        running.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not running.done()
    go_on.set()
    await following
    assert order == ["first", "second"]
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_results_and_failures_come_back() -> None:
    """As from `asyncio.to_thread`."""
    assert await to_thread_until_done(int, "12", base=8) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        await to_thread_until_done(int, "x")


async def test_a_failure_that_nobody_waits_for_is_no_error_of_the_loop() -> None:
    """The caller has left; what failed is theirs to find when they look again."""
    begun, go_on = threading.Event(), threading.Event()

    def fails() -> None:
        begun.set()
        go_on.wait(10)
        raise OSError("late")

    running = asyncio.create_task(to_thread_until_done(fails))
    await asyncio.to_thread(begun.wait, 10)
    running.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
