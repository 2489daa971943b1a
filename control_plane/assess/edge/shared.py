"""What the attempts of one assessment share, and a task of it that ends when the assessment does."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from control_plane.assess.edge.calls import Identity
from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.permits import Mint
from control_plane.assess.edge.probe_node import ProbeNode
from control_plane.assess.model import Basis, Check, Outcome
from control_plane.edge.operator_client import OperatorClient


@dataclass(frozen=True, slots=True)
class Shared:
    """What attempts at every listener use. `caller`: SPIFFE ID of `identity`."""

    installation: Installation
    client: OperatorClient
    node: ProbeNode | None
    mint: Mint | None
    identity: Identity
    calm: Identity
    caller: str
    since_ms: int


class Stopped:
    """A task that ends with a stack: its thread is told to stop, and it is waited for."""

    def __init__(self, work: Coroutine[Any, Any, list[Check]], stop: threading.Event) -> None:
        self.task, self._stop = asyncio.create_task(work), stop

    async def __aenter__(self) -> "asyncio.Task[list[Check]]":
        return self.task

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def counters(service: str, before: int | None, after: int | None) -> Check:
    """Judge the counters of decisions around our calls."""
    name, tried = "counters-moving", "read the node's counters of decisions before and after its own calls"
    if before is None or after is None:
        return Check(name, service, Outcome.UNKNOWN, Basis.PROBED, tried, "a node does not show its counters")
    evidence = {"before": str(before), "after": str(after)}
    if after > before:
        return Check(name, service, Outcome.HELD, Basis.PROBED, tried, "they counted the calls", evidence)
    return Check(name, service, Outcome.FAILED, Basis.PROBED, tried, "they did not move", evidence)
