"""Alerts at work: looks at every rule from time to time, keeps what fires, tells the channels that rules name.

Several control planes on one store look at the same rules; of each change and of each message one of them takes care.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from control_plane.core.alerts import (
    Alert,
    AlertEvent,
    NodeSeen,
    State,
    advance,
    channels,
    message,
    observe,
    past,
    retry_ms,
)
from control_plane.core.analytics import Edge, Totals, edges
from control_plane.core.text import one_line
from control_plane.edge.analytics import ExecutionSums
from control_plane.edge.fleet import Reports
from control_plane.edge.store import alerts
from control_plane.edge.store import fleet as stored_fleet
from control_plane.edge.store.database import Database
from control_plane.edge.webhooks import Webhooks, delivery_id
from egm.v1 import analytics_pb2, operator_pb2
from trust import limits
from trust.alerting import MQTT_CHANNEL, WEBHOOK_PREFIX, AlertRule, Condition, EventKind, Severity
from trust.edge.mqtt_messages import MqttMessages
from trust.errors import InputError, MeshError, Reason, StateError
from trust.mesh import MeshSettings
from trust.ports import Clock

logger = logging.getLogger(__name__)

_DELIVER_PERIOD_S: Final = 1.0
_LEASE_MS: Final = 60_000  # of one attempt; longer than any takes
_TEST_RULE: Final = "test"


class Alerting:
    """The alerts of one control plane. One event loop."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        sums: ExecutionSums,
        reports: Reports,
        settings: Callable[[], MeshSettings | None],
        *,
        webhooks: Webhooks,
        mqtt: MqttMessages,
        trust_domain: str,
        name: str,
    ) -> None:
        """Take the parts.

        Args:
            database: the store.
            clock: wall time.
            sums: of executions.
            reports: of nodes.
            settings: the signed settings in force; None before the first policy.
            webhooks: those that may be called.
            mqtt: where messages for `mqtt` go.
            trust_domain: of this mesh.
            name: of this control plane.
        """
        self._database, self._clock, self._sums, self._reports = database, clock, sums, reports
        self._settings, self._webhooks, self._mqtt = settings, webhooks, mqtt
        self._trust_domain, self._name = trust_domain, name
        self._events: deque[AlertEvent] = deque(maxlen=limits.MAX_ALERT_EVENTS)
        self._looked_ms: dict[int, int] = {}  # window -> when it was last summed up
        self._looking = asyncio.Lock()
        self._watched: dict[str, tuple[AlertRule, int]] = {}  # rule as it is -> since when
        self._pruned_ms = 0
        self.problem: str | None = None  # why the last look failed

    def event(self, kind: EventKind, subject: str, detail: str) -> None:
        """Take note of something that happened; it fires until ALERT_EVENT_HOLD_S after it was last heard of.

        Never waits and never fails: when too many wait to be written down, the oldest are dropped.

        Args:
            kind: what happened.
            subject: what it happened to; the same subject again is the same alert.
            detail: for people.
        """
        self._events.append(
            AlertEvent(
                kind,
                one_line(subject, limits.MAX_RECORD_TEXT_BYTES),
                one_line(detail, limits.MAX_ALERT_DETAIL_CHARS),
            )
        )

    @property
    def rules(self) -> Mapping[str, AlertRule]:
        """The rules of the policy in force."""
        settings = self._settings()
        return {} if settings is None else settings.alerts or {}

    def problems(self) -> list[str]:
        """Return what keeps alerts from being noticed or told here."""
        found = [] if self.problem is None else [self.problem]
        named = {channel for rule in self.rules.values() for channel in rule.to}
        for channel in sorted(named - {MQTT_CHANNEL}):
            if channel.removeprefix(WEBHOOK_PREFIX) not in self._webhooks.names:
                found.append(
                    f"rules name {channel}, which this control plane does not have: add it under webhooks in its "
                    "configuration"
                )
        if MQTT_CHANNEL in named and not self._mqtt.connected:
            found.append("rules name mqtt, but there is no connection to a broker")
        return found

    async def run(self) -> None:
        """Look at every rule again and again, until cancelled. A store that fails is tried again."""
        while True:
            try:
                await self.look()
                self.problem = None
            except MeshError as error:
                self.problem = f"alerts are not looked at: {error.detail}"
                logger.warning("%s", self.problem)
            await asyncio.sleep(limits.ALERT_PERIOD_S)

    async def look(self) -> None:
        """Look at every rule now, and write down what changes.

        Raises:
            StateError: SOURCE_UNAVAILABLE, when the store fails; events that wait are kept.
        """
        async with self._looking:
            now_ms, rules = self._clock.now_ms(), self.rules
            sums = await self._summed(rules, now_ms)
            nodes = [_node(record) for record in await self._reports.records()]
            events = list(self._events)
            self._watched = {
                name: (
                    rule,
                    self._watched[name][1] if self._watched.get(name, (None,))[0] == rule else now_ms,
                )
                for name, rule in rules.items()
            }
            observed = observe(
                rules,
                sums,
                nodes,
                trust_domain=self._trust_domain,
                now_ms=now_ms,
                watched_since_ms={name: since_ms for name, (_, since_ms) in self._watched.items()},
            )
            async with self._database.read() as connection:
                held = await alerts.current(connection, now_ms=now_ms)
            steps = advance(held, observed, events, rules, now_ms=now_ms)
            if steps:
                async with self._database.write() as connection:
                    for step in steps:
                        if await alerts.save(connection, step.alert) and step.tell:
                            await self._post(connection, step.alert, channels(step.alert, rules), now_ms)
            for _ in events:
                self._events.popleft()
            await self._prune(now_ms)

    async def _summed(self, rules: Mapping[str, AlertRule], now_ms: int) -> dict[int, Mapping[Edge, Totals]]:
        """Return the sums of every window whose turn it is: long ones are looked at less often."""
        wanted = {
            rule.window_s
            for rule in rules.values()
            if rule.when not in {Condition.NODE_SILENT, Condition.EVENT}
        }
        found: dict[int, Mapping[Edge, Totals]] = {}
        for window_s in sorted(wanted):
            pause_ms = max(limits.ALERT_PERIOD_S * 1000 / 2, window_s * 1000 / 120)
            if past(self._looked_ms.get(window_s, 0), pause_ms, now_ms=now_ms):
                self._looked_ms[window_s] = now_ms
                _, by_key = await self._sums.over(now_ms - window_s * 1000, now_ms + 1)
                found[window_s] = await asyncio.to_thread(edges, by_key)
        self._looked_ms = {window: at for window, at in self._looked_ms.items() if window in wanted}
        return found

    async def _post(self, connection: Any, alert: Alert, to: Sequence[str], now_ms: int) -> None:
        log = logger.warning if alert.state is State.FIRING else logger.info
        log("alert %s %s %s: %s", alert.state, alert.rule, alert.subject, alert.detail)
        body = message(alert, trust_domain=self._trust_domain, control_plane=self._name)
        await alerts.post(connection, alert.id, to, body, now_ms=now_ms)

    async def _prune(self, now_ms: int) -> None:
        if past(self._pruned_ms, limits.PRUNE_PERIOD_S * 1000, now_ms=now_ms):
            self._pruned_ms = now_ms
            async with self._database.write() as connection:
                await alerts.prune(connection, before_ms=now_ms - limits.ALERTS_KEPT_S * 1000)

    async def deliver_forever(self) -> None:
        """Deliver what waits, again and again, until cancelled. No channel waits for another one that is slow."""
        busy: dict[str, asyncio.Task[int]] = {}
        try:
            while True:
                busy = {channel: task for channel, task in busy.items() if not task.done()}
                try:
                    due = await self._due()
                except StateError as error:
                    logger.warning("alerts are not delivered, will try again: %s", error)
                    due = []
                for channel in due:
                    if channel not in busy:
                        busy[channel] = asyncio.create_task(self._deliver_to(channel))
                await asyncio.sleep(_DELIVER_PERIOD_S)
        finally:
            for task in busy.values():
                task.cancel()
            await asyncio.gather(*busy.values(), return_exceptions=True)  # the store is closed next

    async def deliver(self) -> int:
        """Try some of what is due at every channel once; return how many that were."""
        return sum(await asyncio.gather(*map(self._deliver_to, await self._due())))

    async def _due(self) -> list[str]:
        async with self._database.read() as connection:
            return await alerts.due_channels(connection, now_ms=self._clock.now_ms())

    async def _deliver_to(self, channel: str) -> int:
        try:
            async with self._database.write() as connection:
                taken = await alerts.claim(
                    connection,
                    channel,
                    now_ms=self._clock.now_ms(),
                    lease_ms=_LEASE_MS,
                    most=limits.WEBHOOKS_AT_ONCE,
                )
            await asyncio.gather(*map(self._attempt, taken))
        except StateError as error:
            logger.warning("alerts are not delivered to %s, will try again: %s", channel, error)
            return 0
        return len(taken)

    async def _attempt(self, delivery: alerts.Delivery) -> None:
        name = delivery_id(delivery.alert_id, delivery.id, delivery.created_ms)
        error = await self.send(delivery.channel, delivery.body, name)
        pause_ms = retry_ms(delivery.attempts)
        next_ms = None if pause_ms is None else self._clock.now_ms() + pause_ms
        if error:
            then = "giving up" if next_ms is None else "will try again"
            logger.warning("alert %s to %s: %s; %s", delivery.alert_id, delivery.channel, error, then)
        async with self._database.write() as connection:
            await alerts.settle(connection, delivery, error=error, next_ms=next_ms)

    async def send(self, channel: str, body: bytes, delivery: str) -> str:
        """Send one message to one channel now; return what went wrong, empty when nothing did."""
        if channel == MQTT_CHANNEL:
            try:
                await self._mqtt.publish(body)
            except MeshError as error:
                return error.detail
            return ""
        return await self._webhooks.send(channel.removeprefix(WEBHOOK_PREFIX), body, delivery)

    def all_channels(self) -> list[str]:
        """Return every channel that this control plane can reach."""
        mqtt = [MQTT_CHANNEL] if self._mqtt.url.enabled else []
        return [*mqtt, *(WEBHOOK_PREFIX + name for name in self._webhooks.names)]

    async def test(self, channel: str) -> list[analytics_pb2.AlertDelivery]:
        """Send a test message to `channel`, or to all; say what became of it.

        Raises:
            InputError: NOT_FOUND, naming the channels there are.
        """
        known, now_ms = self.all_channels(), self._clock.now_ms()
        if (channel and channel not in known) or not known:
            there_are = ", ".join(known) or "none: configure webhooks or a broker for this control plane"
            raise InputError(Reason.NOT_FOUND, f"no channel {channel[:80]!r} here; there are: {there_are}")
        alert = Alert(
            rule=_TEST_RULE,
            subject="",
            severity=Severity.INFO,
            state=State.FIRING,
            value=0.0,
            detail="a test of this channel by an operator",
            since_ms=now_ms,
            fired_ms=now_ms,
        )
        body = message(alert, trust_domain=self._trust_domain, control_plane=self._name)
        sent = []
        for one in [channel] if channel else known:
            error = await self.send(one, body, delivery_id(alert.id, 0, now_ms))
            state = alerts.FAILED if error else alerts.DONE
            sent.append(
                analytics_pb2.AlertDelivery(
                    channel=one, state=state, attempts=1, error=error, created_ms=now_ms
                )
            )
        return sent


def _node(record: stored_fleet.StoredNode) -> NodeSeen:
    status = operator_pb2.NodeStatus.FromString(record.status)
    return NodeSeen(record.node, record.last_seen_ms, tuple(status.alarms))
