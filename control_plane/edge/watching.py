"""What a control plane makes of what nodes record, put together: sums and alerts, detection and responses."""

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any, Self

import grpc.aio

from control_plane.edge.fleet import NodeReports
from control_plane.edge.incidents import DetectionDesk
from control_plane.edge.observing import ObservationDesk
from control_plane.edge.status import StatusSource
from control_plane.edge.store.intake import Intake
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.mqtt import BrokerUrl


class Watch:
    """Observation and detection of one control plane; what one finds, the other tells of."""

    def __init__(self, observing: ObservationDesk, detecting: DetectionDesk) -> None:
        """Take both."""
        self.observing, self._detecting = observing, detecting

    @classmethod
    async def open(
        cls, status: StatusSource, *, reports: NodeReports, keeper: DenialKeeper, broker: BrokerUrl
    ) -> Self:
        """Open both, and have their problems shown in the status.

        Args:
            status: of this control plane.
            reports: of nodes.
            keeper: what is denied; the responder's directives are handed in here.
            broker: where alerts for MQTT go.

        Raises:
            InputError: KEY_UNREADABLE, KEY_UNSAFE or CONFIG_INVALID, for a secret or a key that cannot be used.
        """
        config, database, clock = status.config, status.database, status.clock
        observing = await asyncio.to_thread(
            ObservationDesk,
            config,
            database,
            clock,
            reports=reports,
            settings=lambda: status.publisher.settings,
            broker=broker,
        )
        detecting = await asyncio.to_thread(
            DetectionDesk,
            config,
            database,
            clock,
            f"{config.name}/{secrets.token_hex(8)}",
            keeper=keeper,
            reports=reports,
            settings=lambda: status.publisher.settings,
            event=observing.alerting.event,
        )
        status.others.append(lambda: detecting.detection.problems)
        status.others.append(observing.alerting.problems)
        return cls(observing, detecting)

    def intake(self, status: StatusSource) -> Intake:
        """Return what takes records, adds them up, and hands them to detection."""

        def serves(service: str) -> str | None:
            mesh = status.publisher.settings
            return None if mesh is None or service not in mesh.services else mesh.workload_of(service)

        fresh = self._detecting.detection.fresh
        return Intake(status.config.trust_domain, status.clock.now_ms, serves=serves, fresh=fresh)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve operators; who may ask was checked before (control_plane.core.roles)."""
        self.observing.add_to(server)
        self._detecting.add_to(server)

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs beside the server."""
        return [*self.observing.background(), *self._detecting.background()]

    async def close(self) -> None:
        """Write down what was learned; another control plane may go on at once."""
        await self._detecting.close()
