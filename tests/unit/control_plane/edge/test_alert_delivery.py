"""What becomes of deliveries that are under way when a control plane stops."""

import asyncio
from typing import Any, cast

from control_plane.edge.alerting import Alerting
from tests.support.eventually import eventually


class Delivering(Alerting):
    """Delivers to one channel, without end."""

    def __init__(self) -> None:
        """Take no parts: only what is overridden runs."""
        self.events: list[str] = []

    async def _due(self) -> list[str]:
        return ["webhook:one"]

    async def _deliver_to(self, channel: str) -> int:
        self.events.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):  # as a transaction that is rolled back
                await asyncio.sleep(0)
            self.events.append("ended")
        return 0


async def test_deliveries_have_ended_when_the_loop_of_deliveries_has() -> None:
    """The store is closed next: a transaction that outlives it fails with an error that nobody awaits."""
    delivering = Delivering()
    running = asyncio.create_task(cast(Any, delivering).deliver_forever())
    await eventually(lambda: delivering.events, "a delivery is under way")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert delivering.events == ["begun", "ended"]
