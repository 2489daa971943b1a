"""Whatever arrives in whatever order, the feed looks often enough and never too often."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.feed_state import FeedState, Refresh
from trust.announce import Announced
from trust.backoff import Backoff

POLL = 1_000
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 400),  # ms until it happens
        st.sampled_from(["announce", "tick", "succeed", "fail"]),
        st.integers(1, 30),  # version
        st.floats(0, 0.999),
    ),
    max_size=80,
)


@given(EVENTS)
def test_one_look_at_a_time_and_always_another_one_in_time(events: list[tuple[int, str, int, float]]) -> None:
    """No sequence of hints, successes and failures can stop polling, or have two looks out at once."""
    state = FeedState(poll_ms=POLL, retry=Backoff(100, 400), unkept=Backoff(100, 400))
    now = 0
    out: Refresh | None = None
    held = 0
    for wait, what, version, jitter in events:
        now += wait
        due = None
        if what == "announce":
            due = state.announced(Announced(version, b""), now_ms=now)
        elif what == "tick":
            due = state.tick(now_ms=now)
        elif out is not None and what == "succeed":
            held, out = max(held, version), None
            due = state.refreshed(held, now_ms=now, jitter=jitter)
        elif out is not None:
            out = None
            state.failed(now_ms=now, jitter=jitter)
        assert due is None or out is None, "two looks at once"
        if due is not None:
            assert due.announced is None or due.announced.version > held
            out = due
        wake = state.wake_at_ms()
        assert (wake is None) == (out is not None) == state.running
        assert wake is None or wake <= now + POLL
    if out is None:
        wake = state.wake_at_ms()
        assert wake is not None
        assert state.tick(now_ms=max(wake, now)) is not None


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**9), st.floats(0, 0.999))
def test_a_backoff_stays_within_half_and_whole_of_its_bounds(
    low: int, more: int, failures: int, jitter: float
) -> None:
    """However often it failed: bounded, and never zero."""
    backoff = Backoff(low, low + more)
    delay = backoff.delay_ms(failures, jitter)
    assert max(1, low // 2) <= delay <= low + more
    assert delay <= backoff.delay_ms(failures, 0.0) <= backoff.delay_ms(failures + 1, 0.0)
