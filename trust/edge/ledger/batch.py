"""Records that become durable together, and how their callers' loop is told from the writer's thread."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from trust import limits
from trust.errors import Reason, StateError

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Batch:
    """Records that are written and synced together."""

    first: int
    frames: list[bytes] = field(default_factory=list)  # header, record, header, record, …
    digests: list[bytes] = field(default_factory=list)  # SHA-256 of each record: the entries of the tree
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    size_bytes: int = 0
    since_ms: int = 0  # monotonic, of the first record
    done: bool = False

    @property
    def count(self) -> int:
        """How many records."""
        return len(self.digests)

    def due(self, now_ms: int) -> bool:
        """Whether it is time to write: somebody waits, there is much, or the first record has lingered."""
        count = len(self.digests)
        return bool(count) and (
            bool(self.waiters)
            or count >= limits.LEDGER_LINGER_RECORDS
            or now_ms - self.since_ms >= limits.LEDGER_LINGER_MS
        )


@dataclass(slots=True)
class Pending:
    """A record that was appended and is not yet known to be durable (see `Ledger.durable`)."""

    index: int
    batch: Batch


def unavailable(what: str) -> StateError:
    """Return the error of a ledger that takes nothing more."""
    return StateError(Reason.LEDGER_UNAVAILABLE, f"the ledger cannot be written: {what}")


def settle(futures: Sequence[asyncio.Future[T]], result: T, error: Exception | None = None) -> None:
    """Resolve futures of the callers' loop, from another thread."""
    if not futures:
        return
    try:
        futures[0].get_loop().call_soon_threadsafe(_resolve, futures, result, error)
    except RuntimeError:
        logger.debug("the loop of %d callers is closed; nobody waits any more", len(futures))


def _resolve(futures: Sequence[asyncio.Future[T]], result: T, error: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
