"""Asks the nodes for decisions without executing anything: whether they agree, explain themselves, and refuse."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control_plane.assess import answers
from control_plane.assess.answers import Decided
from control_plane.assess.edge.calls import METHOD
from control_plane.assess.edge.collect import Installation
from control_plane.assess.model import Check
from control_plane.edge import operator_client
from egm.v1 import node_pb2
from trust.errors import MeshError

REPEATS: Final = 5
MAX_METHODS: Final = 9
_MAX_NAMED: Final = 3
MAX_CALLERS: Final = 3
_UNKNOWN_METHOD: Final = "EgmProbe"  # no service has it; a policy that permits it permits everything


def methods(installation: Installation, service: str) -> list[str]:
    """Return methods to ask about: the reserved one, some that policy describes, and ones that nobody has."""
    named, described = _known(installation, service)
    return list(dict.fromkeys([METHOD, *named[:_MAX_NAMED], *described]))[:MAX_METHODS]


def telling(installation: Installation, service: str) -> list[str]:
    """Return those of them that show whether policy restricts what the service does; the reserved one as a last way."""
    named, described = _known(installation, service)
    asked = set(methods(installation, service))
    return [one for one in described if one in asked] or [one for one in named if one in asked] or [METHOD]


def _known(installation: Installation, service: str) -> tuple[list[str], list[str]]:
    """Return a method that nobody has, for each gRPC service that policy names; and the methods that it describes."""
    engine = installation.engine
    if engine is None:
        return [], []
    settings = engine.mesh.services.get(service)
    named = () if settings is None else settings.grpc_services
    return [f"{one}/{_UNKNOWN_METHOD}" for one in named], sorted(engine.methods_of(service).methods())


async def decisions(
    installation: Installation, directory: Path, service: str, stranger: str
) -> tuple[list[Decided], list[Decided]]:
    """Have every node that carries the service decide, over and over.

    Returns:
        Every decision; and those alone that are about the stranger.
    """
    facts = installation.facts.services[service]
    known = [name for name in sorted(installation.mesh.workloads) if name != service]
    callers = [stranger, *known][:MAX_CALLERS]
    asked = [(caller, method) for caller in callers for method in methods(installation, service)]
    found = await asyncio.gather(
        *(_of_node(installation, directory, node, service, asked) for node in facts.carrying)
    )
    decided = [one for of_node in found for one in of_node]
    return decided, [one for one in decided if one.request.startswith(f"{stranger} ")]


async def _of_node(
    installation: Installation, directory: Path, node: str, service: str, asked: Sequence[tuple[str, str]]
) -> list[Decided]:
    found: list[Decided] = []
    try:
        async with operator_client.node(installation.mesh, directory, node) as client:
            for _ in range(REPEATS):
                for caller, method in asked:
                    request = node_pb2.CheckRequest(caller=caller, service=service, method=method)
                    answer = await client.check(request)
                    found.append(
                        Decided(
                            node,
                            f"{caller} {method}",
                            answer.allowed,
                            answer.reason,
                            tuple(answer.policies),
                            answer.policy_version,
                            answer.level,
                            answer.lease,
                        )
                    )
    except MeshError:
        return []  # a node that does not answer is missing from the decisions, which their judge notices
    return found


def judged(
    installation: Installation, service: str, every: list[Decided], strange: list[Decided]
) -> list[Check]:
    """Return the checks that the decisions carry."""
    nodes = installation.facts.services[service].carrying
    return [
        answers.deterministic(service, every, REPEATS, nodes),
        answers.explained(service, every, nodes),
        answers.forbidden(service, strange, nodes, telling(installation, service)),
    ]
