"""grpc.health.v1 for the control plane: one overall status. Unlike the stock servicer, watches end when it drains."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse
OVERALL = ""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health has no type information
    """Says whether this control plane does its work; draining is for good."""

    def __init__(self) -> None:
        self._serving = False
        self._drained = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Set the overall status; ignored once draining."""
        if not self._drained and serving != self._serving:
            self._serving = serving
            self._wake()

    def drain(self) -> None:
        """Tell every watcher NOT_SERVING and let them go, so that a drain need not wait for them."""
        self._serving, self._drained = False, True
        self._wake()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the status now."""
        if request.service != OVERALL:
            await context.abort(grpc.StatusCode.NOT_FOUND, 'ask for the overall health: service ""')
        return self._now()

    async def List(
        self, request: health_pb2.HealthListRequest, context: Context
    ) -> health_pb2.HealthListResponse:
        """Return the one status there is."""
        return health_pb2.HealthListResponse(statuses={OVERALL: self._now()})

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the status now and at every change, until the server drains."""
        last: int | None = None
        while True:
            changed, drained = self._changed, self._drained
            now = self._now() if request.service == OVERALL else _Response(status=_Response.SERVICE_UNKNOWN)
            if now.status != last:
                last = now.status
                yield now
            if drained:
                return
            await changed.wait()

    def _now(self) -> health_pb2.HealthCheckResponse:
        return _Response(status=_Response.SERVING if self._serving else _Response.NOT_SERVING)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
