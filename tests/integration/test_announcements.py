"""Announcements over real brokers: the embedded amqtt and a Mosquitto process, under the same cases.

A broker may deliver a message twice (QoS 1; as the retained one and as a new one), so the cases compare sets.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import aiomqtt
import pytest

from control_plane.edge.broker import EmbeddedBroker
from sidecar.edge.feeds import PolicyFeed
from tests.support.eventually import eventually
from tests.support.mosquitto import Mosquitto
from trust import announce, limits
from trust.backoff import Backoff
from trust.edge.mqtt import BrokerUrl, MqttAnnouncer, MqttListener

DOMAIN = "mesh.test"
SOON = Backoff(min_ms=10, max_ms=100)


class Broker(Protocol):
    """What the cases need of a broker."""

    @property
    def url(self) -> str: ...
    @property
    def publisher_url(self) -> str: ...
    async def start(self) -> str: ...
    async def stop(self) -> None: ...


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.component("mosquitto"))])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    made: Broker = EmbeddedBroker(data_dir=tmp_path) if request.param == "embedded" else Mosquitto(tmp_path)
    await made.start()
    yield made
    await made.stop()


def timestamp(version: int, padding: int = 0) -> bytes:
    """Look like a signed timestamp.json; signatures are the fetcher's business."""
    signed = {"_type": "timestamp", "version": version, "x": "a" * padding}
    return json.dumps({"signatures": [], "signed": signed}).encode()


@contextlib.asynccontextmanager
async def running(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless jobs beside the test; an unexpected end of one fails it."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        yield
        for task in tasks:
            assert not task.done() or task.exception() is None, task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def announcer_of(broker: Broker) -> MqttAnnouncer:
    return MqttAnnouncer(BrokerUrl.parse(broker.publisher_url), DOMAIN, reconnect=SOON)


def listener_of(broker: Broker, take: Callable[[bytes], None], domain: str = DOMAIN) -> MqttListener:
    return MqttListener(BrokerUrl.parse(broker.url), domain, take, reconnect=SOON)


def _ends_with(heard: list[bytes], payload: bytes) -> bool:
    return heard[-1:] == [payload]


async def publish(url: str, payload: bytes, *, retain: bool = False, topic: str | None = None) -> None:
    """Publish as anybody with `url` could."""
    where = BrokerUrl.parse(url)
    client = aiomqtt.Client(where.host, where.port, username=where.username, password=where.password)
    async with client:
        await client.publish(topic or announce.topic(DOMAIN), payload, qos=1, retain=retain)


async def test_a_late_listener_gets_the_retained_announcement_verbatim(broker: Broker) -> None:
    """A sidecar that starts after publication must not wait for the next lease renewal."""
    announcer, heard = announcer_of(broker), list[bytes]()
    payload = timestamp(7)
    async with running(announcer.run()):
        await announcer.announce(payload)
        await eventually(lambda: announcer.acknowledged == payload, "the broker confirms")
        late = listener_of(broker, heard.append)
        async with running(late.run()):
            await eventually(lambda: set(heard) == {payload}, "the late listener hears it")
            assert late.connected


async def test_each_later_announcement_reaches_every_listener(broker: Broker) -> None:
    """One publication, many sidecars."""
    announcer, heard = announcer_of(broker), (list[bytes](), list[bytes]())
    listeners = [listener_of(broker, one.append) for one in heard]
    async with running(announcer.run(), *(one.run() for one in listeners)):
        await eventually(lambda: all(one.connected for one in listeners), "listeners connect")
        for version in range(1, 6):
            await announcer.announce(timestamp(version))
            for one in heard:
                await eventually(partial(_ends_with, one, timestamp(version)), f"version {version} arrives")


async def test_a_killed_broker_costs_only_delay(broker: Broker) -> None:
    """Announcer and listener come back by themselves; what was announced meanwhile arrives, and is retained again."""
    announcer, heard = announcer_of(broker), list[bytes]()
    listener = listener_of(broker, heard.append)
    async with running(announcer.run(), listener.run()):
        await announcer.announce(timestamp(1))
        await eventually(lambda: set(heard) == {timestamp(1)}, "version 1 arrives")
        await broker.stop()
        await eventually(lambda: not announcer.connected and not listener.connected, "the loss is noticed")
        await announcer.announce(timestamp(2))  # returns although there is no broker
        await broker.start()
        await eventually(lambda: heard[-1] == timestamp(2), "version 2 arrives after the restart")


async def test_an_announcer_without_a_broker_publishes_when_one_appears(tmp_path: Path) -> None:
    """Policy publication never waits for a broker."""
    broker = Mosquitto(tmp_path)
    await broker.start()
    await broker.stop()
    announcer, heard = announcer_of(broker), list[bytes]()
    async with running(announcer.run(), listener_of(broker, heard.append).run()):
        await announcer.announce(timestamp(3))
        await eventually(lambda: announcer.last_error is not None, "the failure is reported")
        await broker.start()
        await eventually(lambda: set(heard) == {timestamp(3)}, "it is published in the end")
    await broker.stop()


async def test_a_stranger_cannot_publish(broker: Broker) -> None:
    """Anonymous clients read; what they publish reaches nobody and is not retained."""
    announcer, heard = announcer_of(broker), list[bytes]()
    async with running(announcer.run()):
        await announcer.announce(timestamp(1))
        await eventually(lambda: announcer.acknowledged is not None, "version 1 is retained")
        with contextlib.suppress(aiomqtt.MqttError):
            await publish(broker.url, timestamp(999), retain=True)
        async with running(listener_of(broker, heard.append).run()):
            await eventually(lambda: heard, "something arrives")
            await announcer.announce(timestamp(2))
            await eventually(lambda: heard[-1] == timestamp(2), "version 2 arrives")
    assert set(heard) == {timestamp(1), timestamp(2)}


async def test_a_wrong_password_is_refused(broker: Broker) -> None:
    """A guessed publisher gets no connection, and is told why."""
    url = BrokerUrl.parse(broker.url)
    wrong = BrokerUrl(url.host, url.port, "control-plane", "guess")
    announcer = MqttAnnouncer(wrong, DOMAIN, reconnect=SOON)
    async with running(announcer.run()):
        await eventually(lambda: announcer.last_error is not None, "the refusal is reported")
        assert not announcer.connected


async def test_other_trust_domains_are_not_heard(broker: Broker) -> None:
    """One broker may serve several meshes."""
    mine, other = list[bytes](), list[bytes]()
    one, two = listener_of(broker, mine.append), listener_of(broker, other.append, "other.test")
    announcer = announcer_of(broker)
    async with running(announcer.run(), one.run(), two.run()):
        await eventually(lambda: one.connected and two.connected, "both listen")
        await announcer.announce(timestamp(1))
        await eventually(lambda: mine, "mine arrives")
    assert other == []


async def test_garbage_replay_duplicates_and_oversize_change_nothing_but_delay(broker: Broker) -> None:
    """Whatever a broker (or a thief of its password) sends, only newer versions lead to a look."""
    looked = list[int]()
    held = 0

    async def refresh(payload: bytes | None) -> None:
        nonlocal held
        if payload is not None:
            held = announce.parse_announcement(payload).version
            looked.append(held)

    feed = PolicyFeed(
        {"mqtt": lambda take: listener_of(broker, take)},
        refresh,
        held_version=lambda: held,
        poll_ms=lambda: 3_600_000,
    )
    async with running(feed.run()):
        await eventually(lambda: feed.connected and feed.stats.refreshes == 1, "it listens")
        send = broker.publisher_url
        await publish(send, timestamp(5))
        await eventually(lambda: looked == [5], "version 5 is looked for")
        too_large = timestamp(9, padding=limits.MAX_ANNOUNCEMENT_BYTES)
        for payload in (
            timestamp(5),
            timestamp(4),
            timestamp(1),
            b"\xff\x00",
            b"{}",
            b"[" * 60_000,
            too_large,
        ):
            await publish(send, payload)
        await publish(send, timestamp(6))
        await eventually(lambda: looked == [5, 6], "version 6 is looked for")
        stats = feed.stats
    assert stats.garbage >= 3
    assert stats.ignored >= 3
    assert looked == [5, 6]


async def test_a_burst_is_coalesced_to_the_newest(broker: Broker) -> None:
    """A hundred announcements while a look is out lead to one more look, for the newest of them."""
    looked = list[int]()
    release = asyncio.Event()

    async def refresh(payload: bytes | None) -> None:
        if payload is not None:
            looked.append(announce.parse_announcement(payload).version)
            await release.wait()

    feed = PolicyFeed(
        {"mqtt": lambda take: listener_of(broker, take)},
        refresh,
        held_version=lambda: looked[-1] if looked else 0,
        poll_ms=lambda: 3_600_000,
    )
    announcer = announcer_of(broker)
    async with running(feed.run(), announcer.run()):
        await eventually(lambda: feed.connected and announcer.connected, "both connect")
        await announcer.announce(timestamp(1))
        await eventually(lambda: looked == [1], "the first look is out")
        for version in range(2, 102):
            await announcer.announce(timestamp(version))
            await asyncio.sleep(0)
        await eventually(lambda: announcer.acknowledged == timestamp(101), "the newest is published")
        await publish(broker.publisher_url, timestamp(101))
        release.set()
        await eventually(lambda: looked[-1] == 101, "the newest is looked for")
    assert looked == [1, 101]
