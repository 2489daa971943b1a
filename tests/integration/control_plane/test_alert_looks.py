"""Alerts in steps: events, retries that give up, several control planes on one store, a store that is away."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from control_plane.config import WebhookConfig
from control_plane.core.approvals import Stored
from control_plane.edge.observing import ObservationDesk
from control_plane.edge.store import alerts
from control_plane.edge.store.database import Database
from control_plane.edge.store.fleet import StoredNode
from control_plane.edge.store.models import alert_deliveries as deliveries
from egm.v1 import operator_pb2
from tests.support.approvers import ticket
from tests.support.control_plane import Domain, source
from tests.support.sidecar_core import ManualClock
from tests.support.webhook import SECRET
from trust import limits
from trust.alerting import EventKind
from trust.bundle import read_claimed_bundle
from trust.edge.files import write_atomic
from trust.edge.mqtt import BrokerUrl
from trust.errors import StateError
from trust.mesh import MeshSettings
from trust.policy.source import build

RULES = b"""
alerts:
  told: {when: event, events: [node_alarm, approval_requested, incident_opened], to: [webhook:down, mqtt]}
  gone: {when: node_silent, window_s: 60, to: [webhook:down]}
"""


class Nodes:
    """What nodes reported."""

    def __init__(self) -> None:
        self.said: list[StoredNode] = []

    async def records(self) -> Sequence[StoredNode]:
        """Return the last report of every node."""
        return self.said

    def say(self, node: str, at_ms: int, *alarms: str) -> None:
        """Take a report."""
        status = operator_pb2.NodeStatus(node=node, alarms=alarms).SerializeToString()
        self.said = [*(one for one in self.said if one.node != node), StoredNode(node, at_ms, 0, status)]


class World:
    """Control planes on one store, with a webhook at which nobody answers."""

    def __init__(self, database: Database, domain: Domain, home: Path) -> None:
        write_atomic(home / "secret", SECRET, mode=0o600)
        files = source()
        self.settings: MeshSettings | None = read_claimed_bundle(
            build(files | {"bundle.yaml": files["bundle.yaml"] + RULES})
        ).mesh
        self.database, self.clock, self.nodes = database, ManualClock(), Nodes()
        hook = WebhookConfig(url="https://127.0.0.1:1/", secret_file=home / "secret")
        self._config = domain.config(webhooks={"down": hook})

    def plane(self) -> ObservationDesk:
        """Return one control plane."""
        return ObservationDesk(
            self._config,
            self.database,
            self.clock,
            reports=self.nodes,
            settings=lambda: self.settings,
            broker=BrokerUrl.parse("none"),
        )

    async def firing(self) -> dict[str, str]:
        """Return rule -> subject of what fires."""
        async with self.database.read() as connection:
            found = await alerts.listing(connection, everything=False, most=99)
        return {one.rule: one.subject for one in found}


@pytest.fixture
def world(database: Database, domain: Domain, tmp_path: Path) -> World:
    """One mesh."""
    return World(database, domain, tmp_path)


async def test_a_call_that_waits_for_approvers_is_told_once_by_all_control_planes(world: World) -> None:
    """The office that opened the ticket tells; the others see it in the store and stay quiet."""
    planes = [world.plane(), world.plane()]
    stored = Stored(ticket(), "a", False, 4, 1, 2, 0, None, 0)
    for plane in planes:
        plane.ticket_opened(stored)
    for plane in planes:
        await plane.alerting.look()
    assert await world.firing() == {"event:approval_requested": stored.ticket.id}
    async with world.database.read() as connection:
        (alert,) = await alerts.listing(connection, everything=True, most=9)
        sent = await alerts.deliveries_of(connection, alert.id)
    assert "approvals list" in alert.detail
    assert sorted(d.channel for d in sent) == ["mqtt", "webhook:down"]


async def test_what_cannot_be_delivered_is_tried_so_often_and_then_said_to_have_failed(world: World) -> None:
    """Nothing is tried for ever, and nothing is lost without a word."""
    desk = world.plane()
    desk.alerting.event(EventKind.INCIDENT_OPENED, "i-1", "replayed permits")
    await desk.alerting.look()
    tries = 0
    for _ in range(200):
        tries += await desk.alerting.deliver()
        world.clock.pass_ms(60_000)
    assert tries == 2 * limits.WEBHOOK_ATTEMPTS
    async with world.database.read() as connection:
        (alert,) = await alerts.listing(connection, everything=True, most=9)
        sent = {d.channel: d for d in await alerts.deliveries_of(connection, alert.id)}
    assert {d.state for d in sent.values()} == {alerts.FAILED}
    assert sent["mqtt"].error == "there is no broker"
    assert "refused" in sent["webhook:down"].error


async def test_a_node_that_falls_silent_and_one_with_an_alarm_are_told_apart(world: World) -> None:
    """Each is an alert of its own, and ends with its cause."""
    desk = world.plane()
    world.nodes.say("a", world.clock.now_ms(), "the disk is full")
    world.nodes.say("b", world.clock.now_ms())
    await desk.alerting.look()
    assert await world.firing() == {"event:node_alarm": "a"}
    world.clock.pass_ms(59_000)
    await desk.alerting.look()
    assert await world.firing() == {"event:node_alarm": "a"}  # not watched for long enough
    world.clock.pass_ms(2_000)
    world.nodes.say("a", world.clock.now_ms())
    await desk.alerting.look()
    assert await world.firing() == {"gone": "b"}
    world.settings = None  # as before the first policy
    world.clock.pass_ms(61_000)
    await desk.alerting.look()
    assert await world.firing() == {}


async def test_an_event_that_could_not_be_written_down_is_written_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that restarts loses no alert."""
    desk = world.plane()
    desk.alerting.event(EventKind.INCIDENT_OPENED, "i-1", "x")

    with monkeypatch.context() as patched:

        async def broken(*_arguments: object, **_options: object) -> bool:
            raise OSError("the disk is gone")

        patched.setattr(alerts, "save", broken)
        with pytest.raises(StateError):
            await desk.alerting.look()
    assert await world.firing() == {}
    await desk.alerting.look()
    assert await world.firing() == {"event:incident_opened": "i-1"}


async def test_problems_name_what_a_rule_cannot_reach(world: World) -> None:
    """A rule that tells nobody must not look like peace."""
    world.settings = None
    assert world.plane().alerting.problems() == []
    files = source()
    rule = b"alerts: {x: {when: calls, above: 1, to: [webhook:elsewhere, mqtt]}}\n"
    world.settings = read_claimed_bundle(build(files | {"bundle.yaml": files["bundle.yaml"] + rule})).mesh
    found = world.plane().alerting.problems()
    assert len(found) == 2
    assert "webhook:elsewhere" in found[0]
    assert "no connection to a broker" in found[1]


async def test_a_flood_of_events_leaves_room_for_what_signed_rules_notice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that makes up callers causes incidents without end; a node that fell silent is told all the same."""
    monkeypatch.setattr(limits, "MAX_ALERTS", 8)
    monkeypatch.setattr(limits, "MAX_ALERTS_PER_EVENT", 3)
    desk = world.plane()
    for number in range(20):
        desk.alerting.event(EventKind.INCIDENT_OPENED, f"made up {number}", "probing")
    await desk.alerting.look()
    world.nodes.say("a", world.clock.now_ms())
    world.clock.pass_ms(61_000)
    await desk.alerting.look()
    async with world.database.read() as connection:
        found = await alerts.listing(connection, everything=False, most=99)
    assert sorted(one.rule for one in found) == ["event:incident_opened"] * 3 + ["gone"]


async def test_what_waits_for_one_channel_keeps_no_other_waiting_and_the_queue_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of messages to a receiver that is away must not stand before the one to the other channel."""
    async with world.database.write() as connection:
        for _ in range(20):
            await alerts.post(connection, "1" * 16, ["webhook:down"], b"{}", now_ms=1)
        await alerts.post(connection, "2" * 16, ["mqtt"], b"{}", now_ms=2)
    desk = world.plane()
    await desk.alerting.deliver()
    monkeypatch.setattr(limits, "MAX_ALERT_DELIVERIES", 10)
    async with world.database.write() as connection:
        (tried,) = await alerts.deliveries_of(connection, "2" * 16)
        await alerts.post(connection, "3" * 16, ["mqtt"], b"{}", now_ms=3)
        (refused,) = await alerts.deliveries_of(connection, "3" * 16)
    assert tried.attempts == 1
    assert (refused.state, refused.error) == (
        alerts.FAILED,
        "more messages wait than are kept (MAX_ALERT_DELIVERIES)",
    )


async def test_what_was_delivered_long_ago_costs_the_search_for_what_is_due_nothing(world: World) -> None:
    """The queue is looked at every second, and what was settled is kept for a month."""
    now_ms = world.clock.now_ms()
    async with world.database.write() as connection:
        await alerts.post(connection, "1" * 16, ["mqtt"], b"{}", now_ms=now_ms)
        (taken,) = await alerts.claim(connection, "mqtt", now_ms=now_ms, lease_ms=1, most=9)
        await alerts.settle(connection, taken, error="", next_ms=None)
        left = sa.select(deliveries.c.id).where(deliveries.c.next_ms <= now_ms + 10**12)
        assert (await connection.execute(left)).all() == []
        if connection.dialect.name == "sqlite":
            statement = alerts.due_statement(now_ms).compile(
                connection.sync_connection, compile_kwargs={"literal_binds": True}
            )
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
            assert not [row for row in plan if str(tuple(row)[-1]).startswith("SCAN")]


async def test_a_clock_that_was_ahead_delays_no_message_once_it_is_right(world: World) -> None:
    """What it put off by a year is due now."""
    now_ms = world.clock.now_ms()
    async with world.database.write() as connection:
        await alerts.post(connection, "1" * 16, ["mqtt"], b"{}", now_ms=now_ms + 365 * 86_400_000)
        assert await alerts.due_channels(connection, now_ms=now_ms) == ["mqtt"]
        (taken,) = await alerts.claim(connection, "mqtt", now_ms=now_ms, lease_ms=1, most=9)
        assert taken.attempts == 1


async def test_an_alarm_that_no_database_can_hold_does_not_end_alerting(world: World) -> None:
    """A node chooses the text of its alarms; one with a NUL made every look fail on PostgreSQL."""
    world.nodes.say("a", world.clock.now_ms(), "policy\0\x1b[2J\nbad")
    await world.plane().alerting.look()
    async with world.database.read() as connection:
        (alert,) = await alerts.listing(connection, everything=True, most=9)
    assert alert.detail == "policy??[2J?bad"
