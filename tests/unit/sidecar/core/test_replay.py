"""The replay cache: each permit once, in bounded memory, whatever clocks and restarts do."""

import errno
import itertools

import pytest

from sidecar.core.replay import ReplayCache
from trust import limits
from trust.errors import CapacityError, MeshError, Reason, StateError

BOOT_MS = 1_800_000_000_000
NOW_MS = BOOT_MS + 60_000
SKEW_MS = limits.MAX_CLOCK_SKEW_MS
LIFE_MS = limits.MAX_PERMIT_LIFETIME_S * 1000


class Disk:
    """Remembers the latest time, or fails."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.broken = False

    def remember(self, ms: int) -> None:
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.stored.append(ms)


def cache(disk: Disk | None = None, *, boot_ms: int = BOOT_MS, capacity: int = 1000) -> ReplayCache:
    return ReplayCache(boot_ms=boot_ms, remember=(disk or Disk()).remember, capacity=capacity)


def spend(replay: ReplayCache, jti: str = "a", *, iat_ms: int = NOW_MS, now_ms: int = NOW_MS) -> None:
    replay.spend(jti, iat_ms=iat_ms, exp_ms=iat_ms + LIFE_MS, now_ms=now_ms)


def refused(replay: ReplayCache, jti: str = "a", *, iat_ms: int = NOW_MS, now_ms: int = NOW_MS) -> MeshError:
    with pytest.raises(MeshError) as error:
        spend(replay, jti, iat_ms=iat_ms, now_ms=now_ms)
    return error.value


def test_a_permit_is_spent_once_until_it_has_expired_everywhere() -> None:
    """Up to the last millisecond in which a verifier still takes it for valid."""
    replay = cache()
    spend(replay)
    for now_ms in (NOW_MS, NOW_MS + LIFE_MS, NOW_MS + LIFE_MS + SKEW_MS - 1):
        error = refused(replay, now_ms=now_ms)
        assert (type(error), error.reason) == (StateError, Reason.PERMIT_REPLAYED)


def test_others_are_not_touched() -> None:
    """Different permits of the same second."""
    replay = cache()
    for number in range(100):
        spend(replay, str(number))
    assert len(replay) == 100


def test_a_permit_minted_before_this_boot_is_refused_and_not_remembered() -> None:
    """What the process before this one spent is not known."""
    replay = cache()
    for iat_ms in (BOOT_MS, BOOT_MS - 1, BOOT_MS - 20_000):
        error = refused(replay, iat_ms=iat_ms)
        assert (error.reason, len(replay)) == (Reason.PERMIT_UNVERIFIABLE, 0)
    spend(replay, iat_ms=BOOT_MS + 1)


def test_a_permit_dated_ahead_of_its_use_does_not_survive_a_restart() -> None:
    """A fast clock dates a permit after the restart; the stored time keeps it out all the same."""
    disk = Disk()
    ahead_ms = NOW_MS + SKEW_MS
    spend(cache(disk), iat_ms=ahead_ms)
    restarted_ms = NOW_MS + 1_000  # before the permit's own date
    after = cache(boot_ms=max(restarted_ms, *disk.stored))
    error = refused(after, iat_ms=ahead_ms, now_ms=restarted_ms + 10)
    assert error.reason is Reason.PERMIT_UNVERIFIABLE


def test_a_fast_clock_costs_one_write_in_seconds_and_others_none() -> None:
    """The disk is not asked for every call."""
    disk = Disk()
    replay = cache(disk)
    for number in range(100):
        spend(replay, f"right{number}", iat_ms=NOW_MS - number)
    assert disk.stored == []
    for number in range(0, 4_000, 10):
        spend(replay, f"fast{number}", iat_ms=NOW_MS + number + 1_000, now_ms=NOW_MS + number)
    assert len(disk.stored) == 1


def test_a_disk_that_fails_refuses_permits_dated_ahead_and_only_those() -> None:
    """Fail closed where the restart could not be defended."""
    disk = Disk()
    replay = cache(disk)
    disk.broken = True
    error = refused(replay, iat_ms=NOW_MS + 1)
    assert (error.reason, len(replay)) == (Reason.PERMIT_UNVERIFIABLE, 0)
    assert "No space left" in error.detail
    spend(replay, iat_ms=NOW_MS)
    disk.broken = False
    spend(replay, "b", iat_ms=NOW_MS + 1)


def test_a_full_cache_refuses_instead_of_forgetting() -> None:
    """Dropping the oldest would let it in again."""
    replay = cache(capacity=10)
    for number in range(10):
        spend(replay, str(number))
    error = refused(replay, "11")
    assert (type(error), error.reason) == (CapacityError, Reason.PERMIT_UNVERIFIABLE)
    assert refused(replay, "0").reason is Reason.PERMIT_REPLAYED
    later_ms = NOW_MS + LIFE_MS + SKEW_MS + 1_000
    spend(replay, "11", iat_ms=later_ms, now_ms=later_ms)


def test_expired_permits_leave_a_few_per_call() -> None:
    """No call waits for the whole past, and memory returns."""
    replay = cache(capacity=10_000)
    for number in range(1_000):
        spend(replay, str(number), iat_ms=NOW_MS + number)
    later_ms = NOW_MS + 1_000 + LIFE_MS + SKEW_MS + 1_000
    sizes = []
    for number in range(200):
        spend(replay, f"new{number}", iat_ms=later_ms, now_ms=later_ms)
        sizes.append(len(replay))
    assert max(before - after for before, after in itertools.pairwise(sizes)) <= 8
    assert sizes[-1] == 200


def test_a_clock_that_jumps_ahead_and_back_opens_nothing() -> None:
    """What was forgotten during the jump is refused afterwards, not accepted again."""
    replay = cache()
    spend(replay, "used")
    hour_ms = NOW_MS + 3_600_000
    for number in range(5):
        spend(replay, f"jump{number}", iat_ms=hour_ms, now_ms=hour_ms)
    error = refused(replay, "used", now_ms=NOW_MS + 1_000)
    assert error.reason is Reason.PERMIT_UNVERIFIABLE
    late_ms = NOW_MS + 2_000  # minted after what was forgotten: served at once
    spend(replay, "fresh", iat_ms=late_ms, now_ms=late_ms)


def test_a_clock_that_goes_back_forgets_nothing() -> None:
    """Expiry is judged by the clock, so nothing is dropped before its time."""
    replay = cache()
    spend(replay, "used")
    for step in range(50):
        earlier_ms = NOW_MS - step * 1_000
        spend(replay, f"x{step}", iat_ms=max(earlier_ms, BOOT_MS + 1), now_ms=earlier_ms)
    assert refused(replay, "used").reason is Reason.PERMIT_REPLAYED
