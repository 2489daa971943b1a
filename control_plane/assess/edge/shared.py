"""What the attempts of one assessment share, and a task of it that ends when the assessment does."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from control_plane.assess.edge.attempts import Decoy
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

    def decoy(self, service: str) -> Decoy:
        """Return who calls a service as nobody would who assesses it. Reads files."""
        if self.node is None:
            return Decoy(self.identity, self.caller)
        who = self.node.decoy(service)
        return Decoy(self.node.identity(who), str(who), who, self.mint)


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


def counters(service: str, before: int | None, after: int | None, calls: int) -> Check:
    """Judge the counters of decisions around `calls` of ours that a sidecar decided: others may add to them."""
    name, tried = "counters-moving", "read the node's counters of decisions before and after its own calls"
    if before is None or after is None:
        return Check(name, service, Outcome.UNKNOWN, Basis.PROBED, tried, "a node does not show its counters")
    evidence = {"before": str(before), "after": str(after), "calls": str(calls)}
    if after - before >= calls > 0:
        return Check(name, service, Outcome.HELD, Basis.PROBED, tried, "they counted the calls", evidence)
    if calls == 0:
        return Check(
            name, service, Outcome.UNKNOWN, Basis.PROBED, tried, "no call of its own was decided", evidence
        )
    why = f"they moved by {after - before}, and it made {calls} calls"
    return Check(name, service, Outcome.FAILED, Basis.PROBED, tried, why, evidence)
