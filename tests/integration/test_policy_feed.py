"""The feed with every source at once: what it calls, how it recovers, what it reports."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest

from sidecar.core.feed_state import FeedState
from sidecar.edge.feeds import Listener, ListenerFactory, PolicyFeed
from tests.support.eventually import eventually
from trust.backoff import Backoff
from trust.edge.mqtt import BrokerUrl, MqttListener
from trust.errors import EvidenceError, Reason, StateError

HOUR_MS = 3_600_000


def timestamp(version: int) -> bytes:
    return json.dumps({"signed": {"_type": "timestamp", "version": version}}).encode()


class HandListener:
    """A listener whose announcements the test hands over."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.take = take
        self.connected = False
        self.last_error: str | None = None

    async def run(self) -> None:
        self.connected = True
        try:
            await asyncio.Event().wait()
        finally:
            self.connected = False


class Source:
    """A policy source that yields what it is told, and counts."""

    def __init__(self) -> None:
        self.held = 0
        self.calls = list[bytes | None]()
        self.next_error: Exception | None = None

    async def refresh(self, payload: bytes | None) -> None:
        self.calls.append(payload)
        if self.next_error is not None:
            raise self.next_error
        if payload is not None:
            self.held = json.loads(payload)["signed"]["version"]


@contextlib.asynccontextmanager
async def fed(
    source: Source, listeners: dict[str, ListenerFactory] | None = None, *, poll_ms: int = HOUR_MS
) -> AsyncIterator[tuple[PolicyFeed, asyncio.Task[None]]]:
    feed = PolicyFeed(
        listeners or {},
        source.refresh,
        held_version=lambda: source.held,
        poll_ms=lambda: poll_ms,
        state=FeedState(poll_ms=poll_ms, retry=Backoff(10, 50), unkept=Backoff(10, 50)),
    )
    task = asyncio.ensure_future(feed.run())
    try:
        yield feed, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_looks_at_once_and_then_for_each_newer_announcement_from_any_source() -> None:
    """MQTT and the Watch stream deliver the same; each version is looked for once."""
    source = Source()
    hands = list[HandListener]()

    def make(take: Callable[[bytes], None]) -> Listener:
        hands.append(HandListener(take))
        return hands[-1]

    async with fed(source, {"mqtt": make, "watch": make}) as (feed, _task):
        await eventually(lambda: source.calls == [None] and feed.connected, "the first look")
        for version in (1, 2, 3):
            for hand in hands:
                hand.take(timestamp(version))
            await eventually(lambda: source.calls[-1] == timestamp(source.held), "a look")
            await eventually(lambda version=version: source.held == version, f"version {version}")  # type: ignore[misc]
        stats = feed.stats
    assert source.calls == [None, timestamp(1), timestamp(2), timestamp(3)]
    assert stats.connected == {"mqtt": True, "watch": True}
    assert (stats.announcements, stats.ignored, stats.refreshes) == (6, 3, 4)


async def test_garbage_is_refused_to_the_listener_and_counted() -> None:
    """So that the listener can count it too."""
    source = Source()
    async with fed(source) as (feed, _task):
        with pytest.raises(EvidenceError):
            feed.offer(b"garbage")
        await eventually(lambda: feed.stats.refreshes == 1, "the first look")
    assert (feed.stats.garbage, source.calls) == (1, [None])


@pytest.mark.parametrize("error", [StateError(Reason.SOURCE_UNAVAILABLE, "down"), ConnectionError("down")])
async def test_a_failing_source_is_retried_until_it_works(error: Exception) -> None:
    """A killed control plane costs only delay; meanwhile the reason is there to be read."""
    source = Source()
    source.next_error = error
    async with fed(source) as (feed, _task):
        await eventually(lambda: feed.stats.failures >= 3, "it keeps trying")
        assert "down" in str(feed.stats.last_error)
        assert feed.stats.last_success_ms is None
        source.next_error = None
        await eventually(lambda: feed.stats.refreshes, "it works again")
    assert (feed.stats.failures, feed.stats.last_error) == (0, None)
    assert feed.stats.last_success_ms is not None


async def test_a_bug_in_the_refresh_ends_the_feed_loudly() -> None:
    """A feed that swallowed it would look healthy and never update."""
    source = Source()
    source.next_error = TypeError("bug")
    async with fed(source) as (_feed, task):
        await asyncio.wait({task})
        assert isinstance(task.exception(), BaseExceptionGroup)


async def test_without_any_listener_polling_alone_brings_policy() -> None:
    """No broker, no stream: still never later than the poll interval."""
    source = Source()
    async with fed(source, {"mqtt": _no_broker}, poll_ms=250) as (feed, _task):
        await eventually(lambda: len(source.calls) >= 3, "three polls")
        assert not feed.connected
        assert feed.stats.connected == {"mqtt": False}


def _no_broker(take: Callable[[bytes], None]) -> Listener:
    return MqttListener(BrokerUrl.parse("none"), "mesh.test", take)
