"""How long to wait before trying again: exponential, bounded, spread by a jitter that the caller draws."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays from `min_ms` doubling to `max_ms`; jitter takes off up to half: no beating in step."""

    min_ms: int
    max_ms: int

    def __post_init__(self) -> None:
        if not 0 < self.min_ms <= self.max_ms:
            raise ValueError("a backoff needs 0 < min_ms <= max_ms")

    def delay_ms(self, failures: int, jitter: float) -> int:
        """Return the wait after `failures` (1 or more) consecutive failures, in milliseconds.

        Args:
            failures: consecutive failures so far; values below 1 count as 1.
            jitter: a random number, 0.0 <= jitter < 1.0.
        """
        # Capped before the power: a node that was cut off for a week must not compute 2**600000.
        doublings = min(max(failures, 1) - 1, 32)
        whole = min(self.max_ms, self.min_ms * 2**doublings)
        return max(1, int(whole * (1.0 - 0.5 * min(max(jitter, 0.0), 1.0))))


# To control planes and brokers. What a mesh takes to heal after they return is mostly this maximum.
RECONNECT: Final = Backoff(min_ms=250, max_ms=2_000)
# For certificates: much time is left when a renewal fails for the first time.
RENEW: Final = Backoff(min_ms=1_000, max_ms=60_000)
