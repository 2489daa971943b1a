"""When to renew."""

from hypothesis import given
from hypothesis import strategies as st

from trust import limits
from trust.renewal import due_ms

draws = st.floats(0, 1, exclude_max=True)


def test_renewal_is_due_half_way_and_never_later() -> None:
    """Half the life is left for a control plane that is away."""
    start, end = -limits.MAX_CLOCK_SKEW_MS, 1_000_000
    assert due_ms(start, end, draw=0.0) == 500_000
    assert due_ms(start, end, draw=0.5) == 475_000


@given(st.integers(0, 2**41), st.integers(0, 2**40), draws)
def test_renewal_is_due_within_the_life_of_any_certificate(start: int, life: int, draw: float) -> None:
    """Also of one that is shorter than the clock skew."""
    assert start <= due_ms(start, start + life, draw=draw) <= start + life
