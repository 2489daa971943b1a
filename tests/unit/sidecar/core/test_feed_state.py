"""When the feed looks for newer policy."""

import pytest

from sidecar.core.feed_state import (
    MAX_POLL_INTERVAL_MS,
    MIN_POLL_INTERVAL_MS,
    Cause,
    FeedState,
    Refresh,
    poll_interval_ms,
)
from trust.announce import Announced
from trust.backoff import Backoff

POLL = 20_000


def hint(version: int, raw: bytes = b"") -> Announced:
    return Announced(version, raw)


def settled(held: int = 5, poll_ms: int = POLL) -> FeedState:
    """A feed that looked once, at time 0, and holds version `held`."""
    state = FeedState(poll_ms=poll_ms, retry=Backoff(100, 1_600), unkept=Backoff(500, 4_000))
    assert state.tick(now_ms=0) == Refresh(Cause.START)
    assert state.refreshed(held, now_ms=0, jitter=0.0) is None
    return state


def test_the_first_look_is_at_once() -> None:
    """A node must not wait for a poll interval to get its first policy."""
    state = FeedState(poll_ms=POLL)
    assert state.wake_at_ms() == 0
    assert state.tick(now_ms=0) == Refresh(Cause.START)


def test_polling_goes_on_without_any_announcement() -> None:
    """A dead broker costs only delay."""
    state = settled()
    assert state.wake_at_ms() == POLL
    assert state.tick(now_ms=POLL - 1) is None
    assert state.tick(now_ms=POLL) == Refresh(Cause.POLL)


def test_a_newer_announcement_is_looked_for_at_once() -> None:
    """The hint travels with the look, so that the driver need not fetch what it already has."""
    assert settled().announced(hint(6, b"raw"), now_ms=10) == Refresh(Cause.ANNOUNCED, hint(6, b"raw"))


@pytest.mark.parametrize("version", [5, 4, 1])
def test_a_replayed_or_repeated_announcement_is_ignored(version: int) -> None:
    """What is held already, or older, is never a reason to look."""
    state = settled(held=5)
    assert state.announced(hint(version), now_ms=10) is None
    assert (state.ignored, state.wake_at_ms()) == (1, POLL)


def test_only_one_look_is_out_and_the_newest_of_the_hints_waits() -> None:
    """A burst leads to one more look, whatever its order."""
    state = settled(held=5)
    assert state.announced(hint(6), now_ms=10) is not None
    for version in (8, 10, 9, 7):
        assert state.announced(hint(version), now_ms=11) is None
    assert state.tick(now_ms=10**9) is None
    assert state.wake_at_ms() is None
    assert state.refreshed(6, now_ms=20, jitter=0.0) == Refresh(Cause.ANNOUNCED, hint(10))


def test_a_hint_that_the_look_under_way_already_satisfied_is_dropped() -> None:
    """MQTT and the Watch stream both deliver; the second copy changes nothing."""
    state = settled(held=5)
    state.announced(hint(6, b"x"), now_ms=10)
    state.announced(hint(6, b"x"), now_ms=11)
    state.announced(hint(7, b"y"), now_ms=12)
    assert state.refreshed(7, now_ms=20, jitter=0.0) is None


def test_a_forged_version_does_not_mask_a_real_one() -> None:
    """While the look for a forged high version is out, a real announcement must still be kept."""
    state = settled(held=5)
    assert state.announced(hint(2**53 - 1), now_ms=10) is not None
    assert state.announced(hint(6), now_ms=11) is None
    assert state.refreshed(5, now_ms=20, jitter=0.0) is None  # forged: the next hint waits for 500 ms
    assert state.wake_at_ms() == 520
    assert state.tick(now_ms=520) == Refresh(Cause.ANNOUNCED, hint(6))


def test_forged_versions_cause_fewer_and_fewer_looks() -> None:
    """A hostile broker must not be able to make every node hammer the control plane."""
    state = settled(held=5, poll_ms=3_600_000)
    now, looks = 10, 0
    while now < 60_000:
        due = state.announced(hint(10**6 + now), now_ms=now) or state.tick(now_ms=now)
        if due is not None:
            looks += 1
            state.refreshed(5, now_ms=now, jitter=0.0)
        now += 10
    assert looks <= 20


def test_a_kept_promise_restores_trust_in_hints() -> None:
    """One forged announcement must not slow real ones down for good."""
    state = settled(held=5)
    state.announced(hint(99), now_ms=10)
    state.refreshed(5, now_ms=10, jitter=0.0)
    state.announced(hint(6), now_ms=20)
    assert state.tick(now_ms=510) is not None
    state.refreshed(6, now_ms=511, jitter=0.0)
    assert state.announced(hint(7), now_ms=512) is not None
    state.refreshed(7, now_ms=513, jitter=0.0)
    assert state.announced(hint(8), now_ms=514) is not None


def test_failures_are_retried_after_growing_waits_never_beyond_the_poll_interval() -> None:
    """A source that is down is asked again soon, then less often."""
    state = settled(poll_ms=1_000)
    now, waits = 1_000, []
    assert state.tick(now_ms=now) is not None
    for _ in range(6):
        state.failed(now_ms=now, jitter=0.0)
        wake = state.wake_at_ms()
        assert wake is not None
        waits.append(wake - now)
        now = wake
        assert state.tick(now_ms=now) == Refresh(Cause.RETRY)
    assert waits == [100, 200, 400, 800, 1_000, 1_000]
    assert state.failures == 6
    state.refreshed(6, now_ms=now, jitter=0.0)
    assert (state.failures, state.wake_at_ms()) == (0, now + 1_000)


def test_hints_wait_for_the_retry_after_a_failure() -> None:
    """Announcements cannot turn a failing source into a busy loop; the retry takes the hint along."""
    state = settled()
    state.announced(hint(6), now_ms=10)
    state.failed(now_ms=20, jitter=0.0)
    assert state.announced(hint(7), now_ms=21) is None
    assert state.wake_at_ms() == 120
    assert state.tick(now_ms=120) == Refresh(Cause.RETRY, hint(7))


def test_a_shorter_lease_brings_the_next_poll_forward() -> None:
    """A new policy may shorten the lease; the poll that was due much later must move."""
    state = settled()
    state.set_poll_interval(1_000, now_ms=500)
    assert state.wake_at_ms() == 1_500
    state.set_poll_interval(30_000, now_ms=500)
    assert state.wake_at_ms() == 1_500


def test_jitter_only_shortens_the_poll_interval() -> None:
    """A lease must not lapse because of jitter."""
    state = settled()
    state.tick(now_ms=POLL)
    state.refreshed(5, now_ms=POLL, jitter=0.999)
    wake = state.wake_at_ms()
    assert wake is not None
    assert POLL + 0.9 * POLL <= wake <= POLL + POLL


@pytest.mark.parametrize(
    ("ttl_s", "expected"),
    [(60, 20_000), (2, 666), (0.1, MIN_POLL_INTERVAL_MS), (24 * 3600, MAX_POLL_INTERVAL_MS)],
)
def test_the_poll_interval_is_a_third_of_the_lease(ttl_s: float, expected: int) -> None:
    """Two lost looks leave a third one in time."""
    assert poll_interval_ms(ttl_s) == expected


@pytest.mark.parametrize("poll_ms", [0, MIN_POLL_INTERVAL_MS - 1, MAX_POLL_INTERVAL_MS + 1])
def test_an_interval_out_of_bounds_is_refused(poll_ms: int) -> None:
    """Neither a busy loop nor a feed that never looks."""
    with pytest.raises(ValueError, match="poll interval"):
        FeedState(poll_ms=poll_ms)


def test_ending_a_look_that_was_never_started_is_a_bug() -> None:
    """The edge must not lose count."""
    with pytest.raises(RuntimeError):
        settled().failed(now_ms=1, jitter=0.0)
