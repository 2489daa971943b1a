"""Whether a permit was used before: every spent one is remembered until it has expired, in bounded memory.

Forgetting must never let a permit in a second time, whatever the wall clock does and whenever the sidecar restarts:

- what is forgotten raises a floor: permits that expire at or before it are refused, so a clock that jumps ahead and
  back opens nothing;
- permits minted before this process started are refused, because what the process before it spent is not known;
- a caller's clock may run ahead, so a permit can be dated after its own use. Before the first such permit is
  accepted a time ahead of it is stored durably, and the next process starts from there.
"""

import heapq
from collections.abc import Callable
from typing import Final

from trust import limits
from trust.errors import CapacityError, Reason, StateError

_FORGET_PER_SPEND: Final = (
    8  # more than one, so that the past always shrinks; few, so that no call waits for it
)
_BUCKET_MS: Final = 1_000
# How far ahead of need the stored time is put: a caller whose clock is fast costs one write in this time, not more.
_AHEAD_MS: Final = 5_000


class ReplayCache:
    """Permits that were spent. Not thread-safe: owned by the event loop.

    Constant work per call: spent permits lie in buckets of one second by their expiry, and every call drops a few
    that are over.
    """

    def __init__(
        self, *, boot_ms: int, remember: Callable[[int], None], capacity: int = limits.MAX_SPENT_PERMITS
    ) -> None:
        """Start empty.

        Args:
            boot_ms: Unix ms; permits minted at or before it are refused: the start of this process, or what
                `remember` stored last, whichever is later.
            remember: stores a Unix time (ms) durably before it returns; rarely called. Raises OSError if it cannot.
            capacity: permits remembered at most.
        """
        self._boot_ms, self._remember, self._capacity = boot_ms, remember, capacity
        self._spent: set[str] = set()
        self._buckets: dict[int, list[str]] = {}
        self._seconds: list[int] = []  # a heap of the keys of `_buckets`
        self._forgotten_ms = 0  # everything forgotten expired at or before this
        self._stored_ms = boot_ms

    def __len__(self) -> int:
        """Return how many permits are remembered."""
        return len(self._spent)

    def spend(self, jti: str, *, iat_ms: int, exp_ms: int, now_ms: int) -> None:
        """Remember a verified permit as used, or refuse it.

        Args:
            jti: what may be used once, such as the id of the execution; nobody else may know it before it is used.
            iat_ms: when it was made, Unix ms; verified to be at most MAX_CLOCK_SKEW_MS ahead.
            exp_ms: when nothing that carries it is valid any more, Unix ms; verified to be soon after `iat_ms`.
            now_ms: Unix ms.

        Raises:
            StateError: PERMIT_REPLAYED; PERMIT_UNVERIFIABLE, if it cannot be told whether it was used.
            CapacityError: PERMIT_UNVERIFIABLE, if there is no room to remember it.
        """
        self._forget(now_ms)
        if jti in self._spent:
            raise StateError(
                Reason.PERMIT_REPLAYED, "the permit was used before; every call needs one of its own"
            )
        if iat_ms <= self._boot_ms:
            raise StateError(
                Reason.PERMIT_UNVERIFIABLE,
                "the permit was minted before this sidecar started, so nobody knows whether it was used; call again",
            )
        if exp_ms <= self._forgotten_ms:
            raise StateError(
                Reason.PERMIT_UNVERIFIABLE,
                "the permit expires before others that were forgotten; the clock of this node was changed: call again",
            )
        if len(self._spent) >= self._capacity:
            raise CapacityError(
                Reason.PERMIT_UNVERIFIABLE,
                f"this sidecar remembers as many permits as it will hold ({self._capacity}); call again later",
            )
        if iat_ms > now_ms and iat_ms > self._stored_ms:
            self._store(max(iat_ms, now_ms) + _AHEAD_MS)
        second = -(-exp_ms // _BUCKET_MS)  # rounded up: never forgotten early
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = []
            heapq.heappush(self._seconds, second)
        bucket.append(jti)
        self._spent.add(jti)

    def _forget(self, now_ms: int) -> None:
        """Drop a few permits that no clock within the skew takes for valid any more."""
        over_ms = now_ms - limits.MAX_CLOCK_SKEW_MS
        for _ in range(_FORGET_PER_SPEND):
            if not self._seconds or self._seconds[0] * _BUCKET_MS > over_ms:
                return
            second = self._seconds[0]
            self._forgotten_ms = max(self._forgotten_ms, second * _BUCKET_MS)
            bucket = self._buckets[second]
            self._spent.discard(bucket.pop())
            if not bucket:
                del self._buckets[second]
                heapq.heappop(self._seconds)

    def _store(self, until_ms: int) -> None:
        try:
            self._remember(until_ms)
        except OSError as error:
            raise StateError(
                Reason.PERMIT_UNVERIFIABLE,
                "the permit is dated ahead of this node's clock, and the disk does not take note of that: "
                f"{error.strerror or error}; compare the clocks of the nodes",
            ) from None
        self._stored_ms = until_ms
