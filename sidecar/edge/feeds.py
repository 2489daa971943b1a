"""Brings announcements, the Watch stream and polling together: one refresh at a time, whenever one is due."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sidecar.core.feed_state import FeedState, Refresh
from trust.announce import parse_announcement
from trust.edge.clock import SystemClock
from trust.errors import MeshError
from trust.ports import Clock

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Something that hands over announcements while `run` runs: `MqttListener`, `WatchListener`."""

    connected: bool
    last_error: str | None

    async def run(self) -> None:
        """Listen until cancelled; may return at once when there is nothing to listen to."""
        ...


# Given the function that takes an announcement (and raises EvidenceError for garbage), makes the listener.
ListenerFactory = Callable[[Callable[[bytes], None]], Listener]


@dataclass(frozen=True, slots=True)
class FeedStats:
    """What the feed has done since start, for status and telemetry."""

    announcements: int  # parsed, of any version
    garbage: int  # not announcements at all
    ignored: int  # nothing newer
    refreshes: int  # succeeded
    failures: int  # consecutive, now
    last_error: str | None  # why the last refresh failed; None when it succeeded
    last_success_ms: int | None  # monotonic
    connected: Mapping[str, bool]  # by listener name


class PolicyFeed:
    """Runs listeners and calls `refresh` when `FeedState` says so.

    Args:
        listeners: name -> factory; for example
            `{"mqtt": lambda take: MqttListener(url, trust_domain, take)}`. None at all means polling alone.
        refresh: looks for newer policy. Gets the raw announcement that caused the look, or None. A MeshError or
            OSError counts as a failure and is retried; anything else is a bug and ends `run`.
        held_version: version of timestamp.json now held, 0 when none; asked after each refresh.
        poll_ms: interval in force, asked after each refresh (see `feed_state.poll_interval_ms`).
    """

    def __init__(
        self,
        listeners: Mapping[str, ListenerFactory],
        refresh: Callable[[bytes | None], Awaitable[None]],
        *,
        held_version: Callable[[], int],
        poll_ms: Callable[[], int],
        clock: Clock | None = None,
        state: FeedState | None = None,
    ) -> None:
        self._refresh, self._held_version, self._poll_ms = refresh, held_version, poll_ms
        self._clock = clock or SystemClock()
        self._state = state or FeedState(poll_ms=poll_ms(), held_version=held_version())
        self._listeners = {name: make(self.offer) for name, make in listeners.items()}
        self._wake = asyncio.Event()
        self._next: Refresh | None = None
        self._announcements = self._garbage = self._refreshes = 0
        self._last_error: str | None = None
        self._last_success_ms: int | None = None

    @property
    def connected(self) -> bool:
        """Whether at least one listener hears announcements; polling goes on either way."""
        return any(listener.connected for listener in self._listeners.values())

    @property
    def stats(self) -> FeedStats:
        """A snapshot of the counters."""
        return FeedStats(
            announcements=self._announcements,
            garbage=self._garbage,
            ignored=self._state.ignored,
            refreshes=self._refreshes,
            failures=self._state.failures,
            last_error=self._last_error,
            last_success_ms=self._last_success_ms,
            connected={name: listener.connected for name, listener in self._listeners.items()},
        )

    def notes(self) -> tuple[str, ...]:
        """Return what is wrong with the feed, for the alarms of the status."""
        stats = self.stats
        notes = [] if self.connected else ["no announcements arrive (broker and watch); polling goes on"]
        if stats.last_error is not None:
            notes.append(f"policy refresh fails: {stats.last_error}")
        return tuple(notes)

    def offer(self, payload: bytes) -> None:
        """Take an announcement from any source, in the event loop.

        Raises:
            EvidenceError: METADATA_INVALID; it was counted and changes nothing.
        """
        try:
            announced = parse_announcement(payload)
        except MeshError:
            self._garbage += 1
            raise
        self._announcements += 1
        self._note(self._state.announced(announced, now_ms=self._clock.monotonic_ms()))

    async def run(self) -> None:
        """Listen, poll and refresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, listener in self._listeners.items():
                group.create_task(listener.run(), name=f"listener {name}")
            group.create_task(self._work(), name="policy feed")

    def _note(self, due: Refresh | None) -> None:
        if due is not None:
            self._next = due
        self._wake.set()

    async def _work(self) -> None:
        while True:
            if self._next is None:
                self._next = self._state.tick(now_ms=self._clock.monotonic_ms())
            if (due := self._next) is not None:
                self._next = None
                await self._look(due)
            else:
                await self._sleep()

    async def _look(self, due: Refresh) -> None:
        try:
            await self._refresh(due.announced.raw if due.announced is not None else None)
        except (MeshError, OSError) as error:
            self._failed(due, error)
            return
        now_ms = self._clock.monotonic_ms()
        self._refreshes += 1
        self._last_success_ms = now_ms
        if self._last_error is not None:
            _log.info("policy refresh works again")
        self._last_error = None
        self._state.set_poll_interval(self._poll_ms(), now_ms=now_ms)
        self._note(self._state.refreshed(self._held_version(), now_ms=now_ms, jitter=random.random()))  # noqa: S311 (spreads load)

    def _failed(self, due: Refresh, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        level = logging.WARNING if reason != self._last_error else logging.DEBUG
        _log.log(level, "policy refresh (%s) failed: %s; will retry", due.cause, reason)
        self._last_error = reason
        self._state.failed(now_ms=self._clock.monotonic_ms(), jitter=random.random())  # noqa: S311 (spreads load)

    async def _sleep(self) -> None:
        self._wake.clear()
        wake_at = self._state.wake_at_ms()
        if wake_at is None:
            raise RuntimeError("a refresh is out but nobody works on it")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(wake_at - self._clock.monotonic_ms(), 1) / 1000):
                await self._wake.wait()
