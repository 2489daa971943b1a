"""When a certificate is to be renewed, and how long to wait after a failure. Times are Unix milliseconds."""

from dataclasses import dataclass
from typing import Final

from trust import limits

FIRST_BACKOFF_MS: Final = 1_000
MAX_BACKOFF_MS: Final = 60_000
_JITTER: Final = 0.1  # of the half life: spreads the renewals of nodes that enrolled together


def due_ms(not_before_ms: int, not_after_ms: int, *, draw: float) -> int:
    """Return when to renew: half-way through the usable life, up to a tenth of that earlier.

    Args:
        not_before_ms: of the certificate; the issuer backdated it by `MAX_CLOCK_SKEW_MS`.
        not_after_ms: of the certificate.
        draw: a random number, 0 <= draw < 1.
    """
    issued_ms = min(not_before_ms + limits.MAX_CLOCK_SKEW_MS, not_after_ms)
    half_ms = (not_after_ms - issued_ms) // 2
    return issued_ms + half_ms - int(half_ms * _JITTER * draw)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting times after consecutive failures: doubling, bounded, drawn from the upper half."""

    failures: int = 0

    def wait_ms(self, *, draw: float) -> int:
        """Return how long to wait now; `draw` is random, 0 <= draw < 1."""
        full = min(FIRST_BACKOFF_MS * 2 ** min(self.failures, 16), MAX_BACKOFF_MS)
        return int(full * (0.5 + draw / 2))

    def failed(self) -> "Backoff":
        """Return the backoff after one more failure."""
        return Backoff(self.failures + 1)
