"""What operators ask of alerts: list, show, acknowledge, test."""

import logging
from typing import Any

import grpc.aio

from control_plane.core.alerts import Alert, State, acknowledge
from control_plane.edge.alerting import Alerting
from control_plane.edge.callers import current_caller
from control_plane.edge.store import alerts
from control_plane.edge.store.database import Database
from egm.v1 import analytics_pb2, analytics_pb2_grpc
from trust.alerting import Severity
from trust.errors import InputError, Reason, StateError
from trust.ports import Clock

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_MAX_LISTED = 1_000


class AlertsServicer(analytics_pb2_grpc.AlertsServicer):
    """egm.v1.Alerts."""

    def __init__(self, alerting: Alerting, database: Database, clock: Clock) -> None:
        self._alerting, self._database, self._clock = alerting, database, clock

    async def ListAlerts(
        self, request: analytics_pb2.ListAlertsRequest, context: Context
    ) -> analytics_pb2.ListAlertsResponse:
        """List alerts: firing ones first, the most severe first."""
        async with self._database.read() as connection:
            found = await alerts.listing(connection, everything=request.all, most=_MAX_LISTED)
        order = (State.FIRING, State.PENDING, State.RESOLVED)
        weight = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)
        found.sort(key=lambda a: (order.index(a.state), weight.index(a.severity), -a.since_ms, a.id))
        return analytics_pb2.ListAlertsResponse(
            alerts=list(map(to_wire, found)),
            rules=len(self._alerting.rules),
            problems=self._alerting.problems(),
        )

    async def GetAlert(
        self, request: analytics_pb2.GetAlertRequest, context: Context
    ) -> analytics_pb2.GetAlertResponse:
        """Show one alert and what was sent of it."""
        async with self._database.read() as connection:
            alert = _required(await alerts.get(connection, request.id[:64]), request.id)
            sent = await alerts.deliveries_of(connection, alert.id)
        return analytics_pb2.GetAlertResponse(
            alert=to_wire(alert),
            deliveries=[
                analytics_pb2.AlertDelivery(
                    channel=d.channel,
                    state=d.state,
                    attempts=d.attempts,
                    error=d.error,
                    created_ms=d.created_ms,
                )
                for d in sent
            ],
        )

    async def AckAlert(self, request: analytics_pb2.AckAlertRequest, context: Context) -> analytics_pb2.Alert:
        """Note who takes care of an alert."""
        who = str(current_caller())
        async with self._database.write() as connection:
            alert = _required(await alerts.get(connection, request.id[:64]), request.id)
            acked = acknowledge(alert, who, now_ms=self._clock.now_ms())
            if not await alerts.save(connection, acked):
                raise StateError(Reason.CONFLICT, f"alert {alert.id} changed at the same moment; try again")
        return to_wire(acked)

    async def TestAlert(
        self, request: analytics_pb2.TestAlertRequest, context: Context
    ) -> analytics_pb2.TestAlertResponse:
        """Send a test message now."""
        logger.info("%s tests the channels of alerts", current_caller())
        return analytics_pb2.TestAlertResponse(deliveries=await self._alerting.test(request.channel))


def to_wire(alert: Alert) -> analytics_pb2.Alert:
    """Return an alert as it is sent."""
    return analytics_pb2.Alert(
        id=alert.id,
        rule=alert.rule,
        subject=alert.subject,
        severity=alert.severity.value,
        state=alert.state.value,
        value=alert.value,
        detail=alert.detail,
        since_ms=alert.since_ms,
        fired_ms=alert.fired_ms,
        ended_ms=alert.ended_ms,
        acked_by=alert.acked_by,
        acked_ms=alert.acked_ms,
    )


def _required(alert: Alert | None, wanted: str) -> Alert:
    if alert is None:
        raise InputError(Reason.NOT_FOUND, f"there is no alert {wanted[:64]!r}; see: egm alerts list --all")
    return alert
