"""`egm demo`: every promise of this version shown on real processes, and checked."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc.aio

from control_plane.lab import demo_governing as governing
from control_plane.lab import demo_lying as lying
from control_plane.lab import demo_proving as proving
from control_plane.lab import demo_sealing as sealing
from control_plane.lab.bootstrap import Say
from control_plane.lab.demo_world import POLICY_FOLDER, CheckError, World
from trust.errors import MeshError

__all__ = ["PARTS", "POLICY_FOLDER", "Step", "Tour"]

Action = Callable[[World], Awaitable[str]]

# part -> its steps in order: what is promised, and what shows and checks it
Parts = tuple[tuple[str, tuple[tuple[str, Action], ...]], ...]
PARTS: Final[Parts] = (
    (
        "Nothing runs that a quorum did not allow",
        (
            ("a trust domain: 3 approvers, 2 must sign", governing.domain),
            ("a mesh: control plane, broker, three sidecars", governing.start),
            ("without policy, a call is refused", governing.default_deny),
            ("one signature does not publish", governing.one_signature),
            ("two of three do, and every node takes it up", governing.publish_with_quorum),
            ("the same call goes through", governing.allowed),
            ("the request itself is judged", governing.request_judged),
            ("somebody else is refused", governing.stranger),
        ),
    ),
    (
        "What ran is proven, and by whom it was vouched for",
        (
            ("raised to level 5 by policy, a call carries a permit", proving.permit),
            ("a quorum of its peers vouches for every node", proving.attested),
            ("three nodes tell of one chain, linked by verified permits", proving.lineage),
            ("the evidence verifies offline, a copy with one changed byte does not", proving.evidence),
            ("a policy change cuts a stream in flight", governing.withdraw),
        ),
    ),
    (
        "The control plane dies",
        (
            ("control plane killed: FRESH, then STALE, still serving", sealing.stale),
            ("then SEALED: every call is refused", sealing.sealed),
            ("it returns: FRESH again, calls go through", sealing.returned),
        ),
    ),
    (
        "The network splits",
        (
            ("one node is cut off: FRESH, then STALE, then SEALED", sealing.cut_off),
            ("the minority refuses: no fresh policy, no quorum that vouches", sealing.minority_refuses),
            ("the majority went on all the time", sealing.majority_goes_on),
            ("the network heals: attested again, calls go through", sealing.healed),
        ),
    ),
    (
        "A node lies",
        (
            ("a node's disk and key are copied, the copy runs as a twin", lying.twin),
            ("a witness catches it; the proof verifies offline", lying.caught),
            ("quarantined everywhere, and no operator was asked", lying.quarantined),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One promise: what was to be shown, whether it held, and what was seen."""

    step: str
    ok: bool
    detail: str  # lines of text
    seconds: float
    part: str = ""


class Tour:
    """The demonstration. Each step returns what it saw and checked, or raises `CheckError`."""

    def __init__(
        self, directory: Path, report: Callable[[Step], None], say: Say, parts: Parts | None = None
    ) -> None:
        """Describe a tour below `directory`, which must be empty or missing; nothing is started.

        Raises:
            InputError: CONFLICT, if the directory holds a mesh already.
        """
        self._world, self._report, self._parts = (
            World(directory, say),
            report,
            PARTS if parts is None else parts,
        )

    async def run(self) -> bool:
        """Take every step in order; stop at the first that does not hold. Return whether all held."""
        try:
            for part, steps in self._parts:
                for name, action in steps:
                    if not await self._take(part, name, action):
                        return False
            return True
        finally:
            await self._world.close()

    async def _take(self, part: str, name: str, action: Action) -> bool:
        started = time.monotonic()
        try:
            detail, ok = await action(self._world), True
        except (CheckError, MeshError, grpc.aio.AioRpcError, TimeoutError) as error:
            detail, ok = _why(error), False
        self._report(Step(name, ok, detail, round(time.monotonic() - started, 3), part))
        await asyncio.sleep(0)
        return ok


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
