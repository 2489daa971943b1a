"""grpc.health.v1 for the node (service "") and for each service it carries; never SERVING without policy."""

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sidecar.core.readiness import NodeState, Readiness

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Mirrors readiness into health answers."""

    def __init__(self) -> None:
        """Start as NOT_SERVING (the library's own default is SERVING)."""
        self._servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # re-exported on purpose, its stub forgets
        self._shown: dict[str, bool] = {}

    async def show(self, readiness: Readiness, services: frozenset[str]) -> None:
        """Answer from now on according to `readiness`; watchers hear of changes.

        Args:
            readiness: as assessed now.
            services: every service this node carries calls for.
        """
        await self._set("", readiness.state is NodeState.READY)
        for service in services:
            await self._set(service, service in readiness.serving)

    async def _set(self, service: str, serving: bool) -> None:
        if self._shown.get(service) is not serving:
            self._shown[service] = serving
            await self._servicer.set(service, _SERVING if serving else _NOT_SERVING)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve grpc.health.v1 on `server`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
