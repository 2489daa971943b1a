"""Archives a running ledger from time to time. A place that fails is an alarm and is tried again; nothing is lost."""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from trust import limits
from trust.edge.ledger.archive import archive
from trust.edge.ledger.place import Place, open_place
from trust.errors import MeshError, Reason, StateError

logger = logging.getLogger(__name__)


class Archiver:
    """Moves what may go of one ledger to one place. `last_error` is why the last attempt failed, or None."""

    def __init__(
        self,
        directory: Path,
        where: str,
        *,
        before: Callable[[], int],
        period_s: float = limits.ARCHIVE_PERIOD_S,
        place: Place | None = None,
    ) -> None:
        """Take what to archive and where.

        Args:
            directory: the ledger's.
            where: a path, file:///PATH or s3://BUCKET/PREFIX, for this ledger alone.
            before: asked at each attempt, on the loop: only what ends below this record may go.
            period_s: between attempts.
            place: instead of the one that `where` names.

        Raises:
            InputError: CONFIG_INVALID, for a place that cannot be used on this machine.
        """
        self._directory, self._before, self._period_s = directory, before, period_s
        self._place = place or open_place(where)
        self._stopping = threading.Event()
        self.segments = 0  # moved since this process started
        self.last_error: str | None = None

    async def run(self) -> None:
        """Archive until cancelled. What is under way then ends with the file that is being sent."""
        try:
            while True:
                await self.once()
                await asyncio.sleep(self._period_s)
        finally:
            self._stopping.set()

    async def once(self) -> None:
        """Make one attempt."""
        try:
            # asked here: what it looks at changes with every call, and belongs to this loop
            await asyncio.to_thread(self._archive, self._before())
        except (MeshError, OSError) as error:
            text = str(error)
            if text != self.last_error:
                logger.warning("the ledger is not archived, will try again: %s", text)
            self.last_error = text
        else:
            self.last_error = None

    def _archive(self, before: int) -> None:
        place = _Stoppable(self._place, self._stopping)
        archive(self._directory, place, before=before, moved=self._moved)

    def _moved(self, first: int) -> None:
        self.segments += 1
        last = first + limits.LEDGER_SEGMENT_RECORDS - 1
        logger.info("records %d to %d are archived at %s", first, last, self._place.url)


class _Stoppable:
    """A place that takes nothing more once the process stops; the next attempt goes on."""

    def __init__(self, place: Place, stopping: threading.Event) -> None:
        self._place, self._stopping = place, stopping
        self.url, self.parallel = place.url, place.parallel
        self.size, self.read, self.open, self.names = place.size, place.read, place.open, place.names

    def put(self, name: str, source: Path) -> None:
        """See `trust.edge.ledger.place.Place`."""
        if self._stopping.is_set():
            raise StateError(Reason.DRAINING, "the node stops; archiving goes on when it runs again")
        self._place.put(name, source)
