"""Keeps streams of other nodes open while those are vouched for: asks for renewed credentials, tells what lapsed."""

import asyncio
import logging
import random
from typing import Final

from sidecar.core.callers import Callers
from sidecar.core.pipeline import Pipeline
from sidecar.core.trust_state import Caller, TrustState
from sidecar.edge.credentials import CredentialClient
from trust.errors import MeshError
from trust.ports import Clock

logger = logging.getLogger(__name__)

_TICK_S: Final = 0.25  # how soon a lapse is noticed


class CallerWatch:
    """Runs `sidecar.core.callers` for one node. Owned by the event loop."""

    def __init__(
        self,
        trust: TrustState,
        pipeline: Pipeline,
        client: CredentialClient,
        clock: Clock,
    ) -> None:
        """Take the parts.

        Args:
            trust: what is known of other nodes.
            pipeline: holds the open streams.
            client: asks nodes for their newest credential.
            clock: wall and monotonic time.
        """
        self._trust, self._pipeline, self._client = trust, pipeline, client
        self._clock = clock
        self._callers = Callers()
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                self.tick()
                await asyncio.sleep(_TICK_S)
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)
            await self._client.close()

    def tick(self) -> None:
        """Ask whoever must be asked now, and have the streams of those decided again whose time is over."""
        roster = self._trust.roster
        if roster is None:
            return
        due = self._callers.tick(
            self._pipeline.streams.callers,
            self._until_ms,
            ttl_ms=roster.ttl_ms,
            now_ms=self._trust.trusted(self._clock.now_ms()),
            monotonic_ms=self._clock.monotonic_ms(),
        )
        for caller in due.ask:
            task = asyncio.get_running_loop().create_task(self._ask(caller, roster.ttl_ms))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        for caller in due.lapsed:
            logger.warning("nobody vouches for %s any more; its streams are decided again", caller[0])
            self._pipeline.caller_lapsed(caller)

    def _until_ms(self, caller: Caller) -> int:
        try:
            return self._trust.check_caller(caller, now_ms=self._clock.now_ms())
        except MeshError:
            return 0

    async def _ask(self, caller: Caller, ttl_ms: int) -> None:
        try:
            data = await self._client.newest(caller[0])
            self._trust.learn(data, caller, now_ms=self._clock.now_ms())
        except MeshError as error:
            logger.info("no renewed trust credential of %s: %s", caller[0], error)
        finally:
            self._callers.answered(
                caller,
                ttl_ms=ttl_ms,
                monotonic_ms=self._clock.monotonic_ms(),
                jitter=random.random(),  # noqa: S311  # spreads load, guards nothing
            )
