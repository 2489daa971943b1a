"""Takes the control plane, the broker and then the time away from a probe node, and calls through it."""

import asyncio
from typing import Final

from control_plane.assess import answers
from control_plane.assess.answers import Answer
from control_plane.assess.edge.calls import call, ping
from control_plane.assess.edge.probe_node import ProbeNode
from control_plane.assess.model import Check
from trust.errors import MeshError

CUT_S: Final = 1.5  # long enough for every connection to have been missed
SEALED_S: Final = 20.0
_BEYOND_S: Final = 30  # after the end of lease and grace, as the moved clock tells it
HOW: Final = "cut off, and its clock moved past lease and grace"


async def outage(node: ProbeNode, services: list[str], *, run: str, lease_s: int) -> list[Check]:
    """Return what the node does when governance is out of reach, and when its lease is over.

    Args:
        node: ready.
        services: to call.
        run: of the assessment.
        lease_s: time to live and grace of the signed lease, together.
    """
    before = await _through(node, services, run)
    node.cut()
    await asyncio.sleep(CUT_S)
    during, lease = await _through(node, services, run), await _lease(node)
    checks = [answers.cut_off(one, before[one], during[one], lease) for one in services]
    node.skew((lease_s + _BEYOND_S) * 1000)
    await node.until("SEALED", timeout_s=SEALED_S)
    after, lease = await _through(node, services, run), await _lease(node)
    return checks + [answers.stale(one, before[one], after[one], lease, HOW) for one in services]


async def _through(node: ProbeNode, services: list[str], run: str) -> dict[str, Answer]:
    found = await asyncio.gather(
        *(call(node.outbound[service], ping(run), identity=None) for service in services)
    )
    return dict(zip(services, found, strict=True))


async def _lease(node: ProbeNode) -> str:
    try:
        return (await node.status()).lease
    except MeshError:
        return "UNKNOWN"
