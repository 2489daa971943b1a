"""How long to wait."""

from hypothesis import given
from hypothesis import strategies as st

from trust.backoff import RECONNECT, RENEW, Backoff


@given(
    st.sampled_from([RECONNECT, RENEW, Backoff(10, 10)]),
    st.integers(-1, 10**9),
    st.floats(0, 1, exclude_max=True),
)
def test_waiting_grows_and_stays_bounded(backoff: Backoff, failures: int, jitter: float) -> None:
    """A control plane that is away for a week is still asked, and never more often than at first."""
    wait_ms = backoff.delay_ms(failures, jitter)
    assert backoff.min_ms // 2 <= wait_ms <= backoff.max_ms
    assert backoff.delay_ms(failures + 1, 0.0) >= wait_ms
