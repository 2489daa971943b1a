"""The operator's side of analytics and alerts: what `egm analytics`, `alerts`, `top` and `policy recommend` call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import (
    CALL_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    OperatorClient,
    answered,
    control_plane,
)
from egm.v1 import analytics_pb2, analytics_pb2_grpc


class AnalyticsClient:
    """Calls one control plane as an operator; every failure is a `MeshError` with the server's reason."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._analytics = analytics_pb2_grpc.AnalyticsStub(channel)
        self._alerts = analytics_pb2_grpc.AlertsStub(channel)
        self.operator = OperatorClient(channel)

    async def query(self, request: analytics_pb2.AnalyticsRequest) -> analytics_pb2.AnalyticsResponse:
        """Sum up a time, by group."""
        async with answered():
            return await self._analytics.Query(request, timeout=TRANSFER_TIMEOUT_S)

    async def alerts(self, *, everything: bool = False) -> analytics_pb2.ListAlertsResponse:
        """List alerts; those that are over only with `everything`."""
        async with answered():
            request = analytics_pb2.ListAlertsRequest(all=everything)
            return await self._alerts.ListAlerts(request, timeout=CALL_TIMEOUT_S)

    async def alert(self, alert: str) -> analytics_pb2.GetAlertResponse:
        """Return one alert and what was sent of it."""
        async with answered():
            request = analytics_pb2.GetAlertRequest(id=alert)
            return await self._alerts.GetAlert(request, timeout=CALL_TIMEOUT_S)

    async def ack(self, alert: str) -> analytics_pb2.Alert:
        """Say that the operator takes care of it."""
        async with answered():
            request = analytics_pb2.AckAlertRequest(id=alert)
            return await self._alerts.AckAlert(request, timeout=CALL_TIMEOUT_S)

    async def test(self, channel: str) -> analytics_pb2.TestAlertResponse:
        """Send a test message to a channel, or to all."""
        async with answered():
            request = analytics_pb2.TestAlertRequest(channel=channel)
            return await self._alerts.TestAlert(request, timeout=TRANSFER_TIMEOUT_S)


@asynccontextmanager
async def analytics(mesh: MeshFile, directory: Path) -> AsyncIterator[AnalyticsClient]:
    """Connect to the control plane of `mesh` with the operator credentials it names."""
    async with control_plane(mesh, directory) as channel:
        yield AnalyticsClient(channel)
