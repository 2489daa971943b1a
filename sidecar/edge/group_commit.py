"""Whether a call that waits for the disk waits a moment for others first, so that one sync serves them all.

A sync costs CPU (two switches of threads, a journal commit), whatever number of calls it is for. A call that is alone
never waits for company. A disk that hangs is one that failed: nobody waits for it without end.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from trust import limits
from trust.edge.ledger import Pending
from trust.errors import Reason, StateError

GATHER_S: Final = limits.LEDGER_GATHER_MS / 1000


class GroupCommit:
    """Makes records durable for the calls of one event loop. Not thread-safe."""

    def __init__(
        self,
        durable: Callable[[Pending], Awaitable[object]],
        in_flight: Callable[[], int],
        *,
        timeout_s: float = limits.LEDGER_SYNC_TIMEOUT_S,
    ) -> None:
        """Start idle.

        Args:
            durable: returns when a record, and all before it, are on disk; may raise MeshError.
            in_flight: executions that are open now.
            timeout_s: how long a sync may take.
        """
        self._durable, self._in_flight, self._timeout_s = durable, in_flight, timeout_s
        self._waiters: list[asyncio.Future[None]] = []
        self._last: Pending | None = None
        self._syncs: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references

    async def durable(self, pending: Pending) -> None:
        """Return when the record, and all before it, are on disk.

        Raises:
            StateError: LEDGER_UNAVAILABLE.
        """
        if self._in_flight() < limits.LEDGER_GATHER_CALLS:
            await self._in_time(pending)
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        if not self._waiters:
            loop.call_later(GATHER_S, self._sync, loop)
        self._waiters.append(waiter)
        if self._last is None or pending.index > self._last.index:
            self._last = pending
        await waiter

    async def _in_time(self, pending: Pending) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._durable(pending)
        except TimeoutError:
            what = f"the disk of the ledger has not answered for {self._timeout_s:g} s"
            raise StateError(Reason.LEDGER_UNAVAILABLE, what) from None

    def _sync(self, loop: asyncio.AbstractEventLoop) -> None:
        waiters, self._waiters = self._waiters, []
        last, self._last = self._last, None
        if last is not None:
            task = loop.create_task(self._tell(waiters, last))
            self._syncs.add(task)
            task.add_done_callback(self._syncs.discard)

    async def _tell(self, waiters: list[asyncio.Future[None]], last: Pending) -> None:
        failure: Exception | None = None
        try:
            await self._in_time(last)
        except asyncio.CancelledError:
            for waiter in waiters:
                waiter.cancel()
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is: no waiter is left, nor told that all is well
            failure = error
        for waiter in waiters:
            if waiter.done():  # its call was cancelled
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(failure)
