"""Decides when to look for newer policy: on a promising announcement, on the poll interval, or after a failure.

Announcements are unverified hints, so they may only bring a look forward; that a look happens at all is up to the
poll interval alone. One look at a time; of the hints that arrive meanwhile the newest is kept.
"""

import enum
from dataclasses import dataclass
from typing import Final

from trust.announce import Announced
from trust.backoff import RECONNECT, Backoff

# Hints that lead to nothing (forged, or not yet served) push the next hint away, at most this far.
UNKEPT_PROMISE: Final = Backoff(min_ms=500, max_ms=30_000)
MIN_POLL_INTERVAL_MS: Final = 250
MAX_POLL_INTERVAL_MS: Final = 8 * 3600 * 1000


@enum.unique
class Cause(enum.StrEnum):
    """Why a look was due."""

    START = "start"
    ANNOUNCED = "announced"
    POLL = "poll"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Refresh:
    """Look now. `announced` is the hint that caused it, if one did: unverified."""

    cause: Cause
    announced: Announced | None = None


def poll_interval_ms(lease_ttl_s: float) -> int:
    """Return the poll interval for a lease: a third of it, so that two lost looks still leave one in time."""
    return min(max(int(lease_ttl_s * 1000 / 3), MIN_POLL_INTERVAL_MS), MAX_POLL_INTERVAL_MS)


class FeedState:
    """When the next look is due. Every method takes the monotonic time, and at most one Refresh is out at a time.

    The edge calls `announced` for every hint, `tick` when `wake_at_ms` has come, and `refreshed` or `failed` when
    the Refresh it was given has ended.
    """

    def __init__(
        self,
        *,
        poll_ms: int,
        held_version: int = 0,
        retry: Backoff = RECONNECT,
        unkept: Backoff = UNKEPT_PROMISE,
    ) -> None:
        self._poll_ms = _check_poll(poll_ms)
        self._retry, self._unkept = retry, unkept
        self._held = held_version
        self._hint: Announced | None = None
        self._running: Refresh | None = None
        self._due_ms: int | None = None  # None: at once, nothing was ever looked for
        self._due_cause = Cause.START
        self._hints_from_ms = 0  # hints before this wait until then
        self._promises_unkept = 0
        self.failures = 0  # consecutive
        self.ignored = 0  # announcements of nothing newer

    @property
    def held_version(self) -> int:
        """Version of timestamp.json held when last told; 0 when none."""
        return self._held

    @property
    def running(self) -> bool:
        """Whether a Refresh is out."""
        return self._running is not None

    def set_poll_interval(self, poll_ms: int, *, now_ms: int) -> None:
        """Adopt the interval of a new lease; a look that was due later than the new interval is brought forward."""
        self._poll_ms = _check_poll(poll_ms)
        if self._due_ms is not None and self._due_cause is Cause.POLL:
            self._due_ms = min(self._due_ms, now_ms + poll_ms)

    def announced(self, announced: Announced, *, now_ms: int) -> Refresh | None:
        """Take a hint: old ones and repetitions are ignored, of several the newest counts."""
        newest = max(self._held, self._hint.version if self._hint is not None else 0)
        # The look under way answers its own hint, not every lower one: a forged version must not mask a real one.
        if announced.version <= newest or (
            self._running is not None and announced == self._running.announced
        ):
            self.ignored += 1
            return None
        self._hint = announced
        return self.tick(now_ms=now_ms)

    def tick(self, *, now_ms: int) -> Refresh | None:
        """Return the look that is due now, if one is and none is out."""
        if self._running is not None:
            return None
        if self._due_ms is None or now_ms >= self._due_ms:
            return self._start(self._due_cause)
        # After a failure hints wait for the retry: a broker must not be able to make us hammer a broken source.
        if self._hint is not None and self.failures == 0 and now_ms >= self._hints_from_ms:
            return self._start(Cause.ANNOUNCED)
        return None

    def refreshed(self, held_version: int, *, now_ms: int, jitter: float) -> Refresh | None:
        """Note that the look succeeded (whether or not it found something); return the next one if it is due.

        Args:
            held_version: version of timestamp.json now held.
            now_ms: monotonic.
            jitter: random, 0.0 <= jitter < 1.0; takes up to a tenth off the poll interval.
        """
        done = self._end()
        self.failures = 0
        self._held = held_version
        if done.announced is not None and held_version < done.announced.version:
            self._promises_unkept += 1
            self._hints_from_ms = now_ms + self._unkept.delay_ms(self._promises_unkept, jitter)
        elif done.announced is not None:
            self._promises_unkept = 0
        if self._hint is not None and self._hint.version <= held_version:
            self._hint = None
        self._due_ms, self._due_cause = now_ms + int(self._poll_ms * (1.0 - 0.1 * jitter)), Cause.POLL
        return self.tick(now_ms=now_ms)

    def failed(self, *, now_ms: int, jitter: float) -> None:
        """Note that the look failed: the next is after a backoff, never later than the poll interval."""
        self._end()
        self.failures += 1
        delay_ms = min(self._retry.delay_ms(self.failures, jitter), self._poll_ms)
        self._due_ms, self._due_cause = now_ms + delay_ms, Cause.RETRY

    def wake_at_ms(self) -> int | None:
        """Return when `tick` may have something to do; None while a look is out (its end will say)."""
        if self._running is not None:
            return None
        if self._due_ms is None:
            return 0
        if self._hint is not None and self.failures == 0:
            return min(self._due_ms, self._hints_from_ms)
        return self._due_ms

    def _start(self, cause: Cause) -> Refresh:
        self._running, self._hint = Refresh(cause, self._hint), None
        return self._running

    def _end(self) -> Refresh:
        if self._running is None:
            raise RuntimeError("no refresh is out")
        done, self._running = self._running, None
        return done


def _check_poll(poll_ms: int) -> int:
    if not MIN_POLL_INTERVAL_MS <= poll_ms <= MAX_POLL_INTERVAL_MS:
        raise ValueError(f"poll interval must be {MIN_POLL_INTERVAL_MS} to {MAX_POLL_INTERVAL_MS} ms")
    return poll_ms
