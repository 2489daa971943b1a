"""The control plane's part of level 1, put together: sums of executions, alerts, and what operators ask of both."""

from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio

from control_plane.config import ControlPlaneConfig
from control_plane.core.analytics import caller_name
from control_plane.core.approvals import Stored
from control_plane.edge.alert_answers import AlertsServicer
from control_plane.edge.alerting import Alerting
from control_plane.edge.analytics import AnalyticsServicer, ExecutionSums
from control_plane.edge.fleet import Reports
from control_plane.edge.store.database import Database
from control_plane.edge.webhooks import Webhooks
from egm.v1 import analytics_pb2_grpc
from trust.alerting import EventKind, topic
from trust.edge.clock import SystemClock
from trust.edge.mqtt import BrokerUrl
from trust.edge.mqtt_messages import MqttMessages
from trust.mesh import MeshSettings
from trust.ports import Clock


def check_channels(config: ControlPlaneConfig) -> None:
    """Read what every webhook needs, and call none.

    Raises:
        InputError: KEY_UNREADABLE or CONFIG_INVALID, naming the webhook and what to do.
    """
    Webhooks(config.webhooks, SystemClock()).close()


class ObservationDesk:
    """Sums and alerts of one control plane. `alerting.event` is for whoever notices something."""

    def __init__(
        self,
        config: ControlPlaneConfig,
        database: Database,
        clock: Clock,
        *,
        reports: Reports,
        settings: Callable[[], MeshSettings | None],
        broker: BrokerUrl,
    ) -> None:
        """Take the parts; `settings` are the signed ones in force.

        Raises:
            InputError: KEY_UNREADABLE or CONFIG_INVALID, for a webhook whose secret cannot be used.
        """
        self._database, self._clock = database, clock
        self.sums = ExecutionSums(database, clock)
        self._mqtt = MqttMessages(broker, topic(config.trust_domain))
        self._webhooks = Webhooks(config.webhooks, clock)
        self.alerting = Alerting(
            database,
            clock,
            self.sums,
            reports,
            settings,
            webhooks=self._webhooks,
            mqtt=self._mqtt,
            trust_domain=config.trust_domain,
            name=config.name,
        )

    def ticket_opened(self, stored: Stored) -> None:
        """Tell that a call waits for approvers; see `control_plane.edge.approvals.ApprovalOffice.opened`."""
        ticket = stored.ticket
        self.alerting.event(
            EventKind.APPROVAL_REQUESTED,
            ticket.id,
            f"{caller_name(ticket.caller)} to {ticket.service} {ticket.method} at node {stored.node}: "
            "see 'egm approvals list'",
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve operators; who may ask was checked before (control_plane.core.roles)."""
        analytics_pb2_grpc.add_AnalyticsServicer_to_server(AnalyticsServicer(self.sums, self._clock), server)
        analytics_pb2_grpc.add_AlertsServicer_to_server(
            AlertsServicer(self.alerting, self._database, self._clock), server
        )

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs beside the server."""
        return [self.sums.run(), self.alerting.run(), self.alerting.deliver_forever(), self._mqtt.run()]

    def close(self) -> None:
        """Let go of the threads and connections of webhooks; call it when nothing runs any more."""
        self._webhooks.close()
