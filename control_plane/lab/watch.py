"""Asking the nodes of a lab mesh how they are, and waiting until they are as a test wants them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf import json_format

from control_plane.edge import operator_client
from control_plane.lab.fleet import Fleet
from control_plane.lab.states import UNREACHABLE, Predicate, Status, Wanted, expand, missing
from trust.errors import InputError, MeshError, Reason, StateError

POLL_S: Final = 0.15
STATUS_TIMEOUT_S: Final = 4.0


async def status(fleet: Fleet, name: str) -> Status:
    """Return what a node says of itself now, over its admin listener; no fault of the network keeps the lab out.

    Raises:
        InputError: NOT_FOUND, naming the nodes there are.
    """
    if name not in fleet.plan.nodes:
        known = ", ".join(fleet.plan.nodes)
        raise InputError(Reason.NOT_FOUND, f"no node {name!r} in this mesh; there are: {known}")
    if not fleet.process(name).running:
        return UNREACHABLE
    try:
        async with (
            asyncio.timeout(STATUS_TIMEOUT_S),
            operator_client.node(fleet.running.mesh, fleet.directory, name) as client,
        ):
            answer = await client.status()
    except (MeshError, TimeoutError):
        return UNREACHABLE
    found: dict[str, Any] = json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for field in answer.DESCRIPTOR.fields:  # protobuf JSON writes 64-bit numbers as text
        if isinstance(value := getattr(answer, field.name), int):
            found[field.name] = value
    return found


async def statuses(fleet: Fleet, names: Sequence[str]) -> dict[str, Status]:
    """Return what several nodes say of themselves, asked at once."""
    return dict(zip(names, await asyncio.gather(*(status(fleet, n) for n in names)), strict=True))


async def wait_until(
    fleet: Fleet, wanted: Predicate | Wanted | Mapping[str, Wanted], timeout_s: float
) -> dict[str, Status]:
    """Wait until nodes are as wanted (see `LabMesh.wait_until`).

    Raises:
        StateError: SOURCE_UNAVAILABLE, saying which node lacks what.
    """
    deadline = time.monotonic() + timeout_s
    nodes = tuple(fleet.plan.nodes)
    fields = {} if callable(wanted) else expand(wanted, nodes)
    while True:
        seen = await statuses(fleet, tuple(fields) or nodes)
        if callable(wanted):
            lacking = {} if wanted(seen) else {name: _short(one) for name, one in seen.items()}
        else:
            lacking = {name: why for name, one in fields.items() if (why := missing(one, seen[name]))}
        if not lacking:
            return seen
        if time.monotonic() > deadline:
            told = "; ".join(f"{name}: {why}" for name, why in lacking.items())
            raise StateError(Reason.SOURCE_UNAVAILABLE, f"waited {timeout_s:g} s, and still {told}")
        await asyncio.sleep(POLL_S)


def _short(one: Status) -> str:
    shown = ("state", "lease", "policy_version", "not_ready")
    return ", ".join(f"{name} {one[name]}" for name in shown if one.get(name))
