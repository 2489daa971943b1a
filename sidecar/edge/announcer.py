"""Tells others what this node is doing: whoever started it, its health service, and the control plane's reports."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from sidecar.core.readiness import NodeState
from sidecar.edge.health import Health
from sidecar.edge.listeners import Addresses
from sidecar.edge.reports import Reporter
from sidecar.edge.status import NodeView

logger = logging.getLogger(__name__)

Ready = Callable[[Mapping[str, object]], None]

READINESS_PERIOD_S: Final = 0.2


class Announcer:
    """Shows readiness, and every change of it. Not thread-safe: owned by the event loop."""

    def __init__(self, view: NodeView, health: Health, ready: Ready, changed: asyncio.Event) -> None:
        """Take the parts.

        Args:
            view: the node as seen from outside.
            health: shown the readiness.
            ready: told {"event": "listening", ...} and {"event": "ready-to-serve", ...}.
            changed: set when policy or lease changed.
        """
        self._view, self._health, self._ready, self._changed = view, health, ready, changed

    def listening(self, addresses: Addresses) -> None:
        """Tell that every listener is bound."""
        self._tell("listening", addresses)

    async def run(self, addresses: Addresses, reporter: Reporter) -> None:
        """Report every change of policy, lease or readiness; tell `ready` once."""
        shown: tuple[str, ...] | None = None
        told = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READINESS_PERIOD_S):
                    await self._changed.wait()
            changed = self._changed.is_set()
            self._changed.clear()
            readiness = self._view.readiness()
            if not told and readiness.state is NodeState.READY:
                told = True
                await self.show()
                self._tell("ready-to-serve", addresses)
            now = (readiness.state, *readiness.not_ready)
            if now != shown:
                logger.info("%s %s", readiness.state, "; ".join(readiness.not_ready))
            if changed or now != shown:
                shown = now
                reporter.changed()

    async def mirror(self) -> None:
        """Keep the health service at the node's readiness, until cancelled."""
        while True:
            await self.show()
            await asyncio.sleep(READINESS_PERIOD_S)

    async def show(self) -> None:
        """Have the health service say what is so now."""
        await self._health.show(self._view.readiness(), self._view.services)

    def _tell(self, event: str, addresses: Addresses) -> None:
        self._ready(
            {
                "event": event,
                "node": self._view.node,
                "inbound": addresses.inbound,
                "outbound": list(addresses.outbound),
                "admin": self._view.admin_address,
            }
        )
