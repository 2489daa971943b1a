"""Ids of executions: UUIDv7 (RFC 9562), each greater than every one before it, unless the clock is set back."""

import os
import threading
import time
from collections.abc import Callable
from typing import Final

_RANDOM_BITS: Final = 74  # 12 of rand_a, 62 of rand_b
_LIMIT: Final = 1 << _RANDOM_BITS
_STEP_BYTES: Final = 4  # ids of one millisecond are 1 to 2**32 apart: nobody guesses the next
_MAX_MS: Final = (1 << 48) - 1
_MAX_AHEAD_MS: Final = 1_000  # of a clock that was set back: an id says when its execution began


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class ExecutionIds:
    """Draws ids, 16 bytes each. Thread-safe.

    Within one millisecond, and while the clock stands or goes back a little, the random part counts up by a random
    step (RFC 9562 section 6.2, method 2), so that ids sort as they were drawn. A clock that is set back by more than a
    second is followed: relying parties hold the time in an id against that of its permit.
    """

    def __init__(
        self, *, now_ms: Callable[[], int] = _wall_ms, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        """Take a clock (Unix time in milliseconds) and a source of random bytes; tests supply their own."""
        self._now_ms, self._entropy = now_ms, entropy
        self._lock = threading.Lock()
        self._ms = -1
        self._random = 0

    def new(self) -> bytes:
        """Return the next id."""
        with self._lock:
            ms = min(max(self._now_ms(), 0), _MAX_MS)
            if ms > self._ms or ms < self._ms - _MAX_AHEAD_MS:
                self._ms, self._random = ms, self._draw()
            else:
                self._random += 1 + int.from_bytes(self._entropy(_STEP_BYTES))
                if self._random >= _LIMIT:  # the millisecond is used up: borrow the next
                    self._ms, self._random = min(self._ms + 1, _MAX_MS), self._draw()
            return _compose(self._ms, self._random)

    def _draw(self) -> int:
        # the top bit stays clear, so that a millisecond has room for 2**41 steps
        return int.from_bytes(self._entropy(10)) >> (80 - _RANDOM_BITS + 1)


def _compose(ms: int, random: int) -> bytes:
    high, low = random >> 62, random & ((1 << 62) - 1)
    return (ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low).to_bytes(16)
