"""When a certificate is to be renewed. Times are Unix milliseconds."""

from typing import Final

from trust import limits

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
