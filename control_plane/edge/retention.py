"""Keeps the index of executions to its configured age, a little at a time, so that no other writer waits for it."""

import asyncio
import logging
import time
from typing import Final

from control_plane.edge.store import retention
from control_plane.edge.store.database import Database
from trust import limits
from trust.errors import MeshError
from trust.ports import Clock

logger = logging.getLogger(__name__)

_DAY_MS: Final = 24 * 3600 * 1000


class Retention:
    """Forgets records that are older than `days`; the ledgers of the nodes stay the truth."""

    def __init__(self, database: Database, clock: Clock, *, days: int | None) -> None:
        """Keep `days` days of records; None keeps all."""
        self._database, self._clock, self._days = database, clock, days

    async def run(self) -> None:
        """Forget what is too old, again and again, until cancelled.

        A store that fails, or in which a record is damaged, is tried again later: it must not end the control plane.
        """
        while True:
            try:
                forgotten = await self.once()
            except MeshError as error:
                logger.warning("the index could not be shortened, will try again: %s", error)
            else:
                if forgotten:
                    logger.info("%d records are older than %s days and left the index", forgotten, self._days)
            await asyncio.sleep(limits.PRUNE_PERIOD_S)

    async def once(self) -> int:
        """Forget everything that is too old now; return how many records that were."""
        if self._days is None:
            return 0
        before_ms, forgotten = self._clock.now_ms() - self._days * _DAY_MS, 0
        async with self._database.read() as connection:
            followed = await retention.ledgers(connection)
        for ledger in followed:
            gone = limits.PRUNE_BATCH_RECORDS
            while gone == limits.PRUNE_BATCH_RECORDS:
                began = time.monotonic()
                async with self._database.write() as connection:
                    gone = await retention.prune(connection, ledger, before_ms=before_ms)
                forgotten += gone
                # Taking new records and renewing the lease come first: they have the store at least as long as this.
                await asyncio.sleep(time.monotonic() - began)
        return forgotten
