"""Asks the control plane what it made of the assessor's own calls: analytics, dashboard, incidents, alerts, review."""

import asyncio
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Final

from control_plane.assess.answers import DENIALS
from control_plane.assess.edge.calls import OTHERS, call, ping
from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.probe_node import ProbeNode, listeners_of
from control_plane.assess.edge.records import traces
from control_plane.assess.model import Check
from control_plane.assess.reactions import BEHAVIOURAL, THREAT, Raised, Reactions, Watched, judge
from control_plane.core.replay import Recorded, replay
from control_plane.core.top import view
from control_plane.edge.analytics_client import AnalyticsClient, analytics
from control_plane.edge.incidents_client import IncidentsClient, incidents
from control_plane.edge.operator_client import OperatorClient
from egm.v1 import analytics_pb2, incidents_pb2
from trust.errors import MeshError, Reason
from trust.policy.engine import Engine
from trust.record import Side

PATIENCE_S: Final = 20.0
POLL_S: Final = 0.5
_REACH_S: Final = 5.0  # for a directive to reach every sidecar
_DENYING: Final = ("quarantine",)  # actions after which nothing of the caller is executed
_DELIVERED: Final = "done"
_MINUTE_MS: Final = 60_000
_MOST: Final = 1000


async def disturb(node: ProbeNode, run: str) -> None:
    """Do, as the noisy synthetic caller, what a working mesh must notice: try many methods that nobody permits it.

    The calm one calls every service once: whatever is done about the others, a review has something to decide again.
    """
    for listener in node.outbound.values():
        await call(listener, ping(run), identity=None)
    for method in OTHERS:
        await call(node.sweeping, ping(run), identity=None, method=method)


async def checks(
    installation: Installation,
    directory: Path,
    client: OperatorClient,
    node: ProbeNode | None,
    *,
    callers: Sequence[str],
    run: str,
    since_ms: int,
    recorded: Sequence[str],
) -> list[Check]:
    """Return the checks of levels 1 and 2.

    Args:
        installation: what is known.
        directory: of the mesh.
        client: of the control plane.
        node: whose synthetic callers did something; None in a safe assessment.
        callers: SPIFFE IDs of everybody who called for us.
        run: of the assessment.
        since_ms: when it began.
        recorded: services of which records have reached the index; what is made of records is waited for there alone.
    """
    services = list(installation.facts.services)
    engine = installation.engine
    detection = None if engine is None else engine.mesh.detection
    mesh, off = installation.mesh, () if detection is None else detection.off
    async with analytics(mesh, directory) as sums, incidents(mesh, directory) as desk:
        (calls, dashboard, watched, problem), (raised, detecting) = await asyncio.gather(
            _counted(sums, callers, recorded, node, since_ms),
            _incidents(desk, node, since_ms, _expected(recorded, off)),
        )
        alerts, rules, alert_problems = await _alerts(sums, node, raised)
        channels = await _tested(sums) if node is not None else {}
        quarantined = _quarantine(raised)
        reached = await _reached(installation, node, run) if node is not None and quarantined else {}
        reviewed = await _reviewed(client, engine, callers, services, since_ms)
        await _resolve(desk, raised, run)
    found = Reactions(
        asked=node is not None,
        calls=calls,
        analytics_problem=problem,
        dashboard=dashboard,
        watched=watched,
        incidents=raised,
        detection_problem=detecting,
        rules_off=off,
        respond=detection is not None and detection.respond,
        responses=() if detection is None else [f"{r.on}: {', '.join(r.do)}" for r in detection.responses],
        alerts=alerts,
        alert_rules=rules,
        alert_problems=alert_problems,
        channels=channels,
        quarantined=quarantined,
        reached=reached,
        levels=_levels(installation),
        reviewed=reviewed,
    )
    return judge(found, services)


def _levels(installation: Installation) -> dict[str, int]:
    """Return the lowest level in force of each service, where a node says it."""
    found: dict[str, int] = {}
    for service, facts in installation.facts.services.items():
        nodes = [
            installation.facts.nodes[name] for name in facts.carrying if name in installation.facts.nodes
        ]
        levels = [(node.levels or {}).get(service) for node in nodes if not node.unreachable]
        known = [level for level in levels if level is not None]
        if known and len(known) == len(levels):
            found[service] = min(known)
    return found


async def _counted(
    client: AnalyticsClient,
    callers: Sequence[str],
    services: Sequence[str],
    node: ProbeNode | None,
    since_ms: int,
) -> tuple[Mapping[str, int] | None, Sequence[str] | None, Watched | None, str]:
    """Wait until analytics count calls of ours to these services; also read the dashboard."""
    request = analytics_pb2.AnalyticsRequest(since_ms=since_ms - _MINUTE_MS, by="edge", limit=_MOST)
    calls: dict[str, int] = {}
    watched: Watched | None = None
    try:
        for _ in range(int(PATIENCE_S / POLL_S) if services else 1):
            groups = [one for one in (await client.query(request)).groups if one.caller in callers]
            calls = {}
            for one in groups:
                calls[one.service] = calls.get(one.service, 0) + one.sums.calls
            watched = None if node is None else _watched(groups, str(node.noisy))
            if set(services) <= calls.keys() and (node is None or watched is not None):
                break
            await asyncio.sleep(POLL_S)
        by_service = await client.query(
            analytics_pb2.AnalyticsRequest(since_ms=since_ms - _MINUTE_MS, by="service")
        )
        status, nodes, alerts = (
            await client.operator.status(),
            await client.operator.nodes(),
            await client.alerts(),
        )
    except MeshError as error:
        return None, None, None, f"analytics do not answer: {error.reason}: {error.detail[:160]}"
    seen = view(status, nodes, by_service, by_service, alerts, most=_MOST)
    return calls, [line.name for line in seen.services], watched, ""


def _watched(groups: Sequence[analytics_pb2.AnalyticsGroup], caller: str) -> Watched | None:
    own = [one for one in groups if one.caller == caller]
    if not own:
        return None
    return Watched(
        calls=sum(one.sums.calls for one in own),
        refused=sum(sum(one.sums.refused.values()) for one in own),
        would_deny=sum(sum(one.sums.would_deny.values()) for one in own),
        methods=len({one.method for one in own}),
        p95_ms=max(one.sums.p95_ms for one in own),
    )


def _expected(recorded: Sequence[str], off: Sequence[str]) -> Set[str]:
    """Return the kinds of incidents that are worth waiting for: detectors see records, unless policy has said no."""
    if not recorded:
        return frozenset()
    return {kind for kind in (BEHAVIOURAL, THREAT) if not any(rule.startswith(kind) for rule in off)}


async def _incidents(
    client: IncidentsClient, node: ProbeNode | None, since_ms: int, expected: Set[str]
) -> tuple[list[Raised], str]:
    """Wait for the incidents about our callers; return them, and why detection does not work."""
    request = incidents_pb2.ListIncidentsRequest(limit=100, since_ms=since_ms)
    found: list[Raised] = []
    try:
        answer = await client.page(request)
        for _ in range((int(PATIENCE_S / POLL_S) if expected else 1) if node is not None else 0):
            found = [
                await _raised(client, one)
                for one in answer.incidents
                if node is not None and _ours(one, node)
            ]
            rules = {one.rule[: len(THREAT)] for one in found}
            if expected <= rules or answer.problem:
                break
            await asyncio.sleep(POLL_S)
            answer = await client.page(request)
    except MeshError as error:
        return found, f"incidents cannot be asked for: {error.reason}: {error.detail[:160]}"
    return found, answer.problem


def _ours(incident: incidents_pb2.Incident, node: ProbeNode) -> bool:
    return node.name in incident.subject


async def _raised(client: IncidentsClient, incident: incidents_pb2.Incident) -> Raised:
    whole = await client.get(incident.id)
    actions = tuple(f"{one.action} {one.fate}" for one in whole.responses)
    return Raised(incident.id, incident.rule, incident.subject, incident.state, actions)


async def _alerts(
    client: AnalyticsClient, node: ProbeNode | None, raised: Sequence[Raised]
) -> tuple[list[Raised], int, list[str]]:
    """Wait for an alert about our incidents; return those there are, the signed rules, and what does not work."""
    wait = 0 if node is None else int(PATIENCE_S / POLL_S) if raised else 1
    found: list[Raised] = []
    try:
        answer = await client.alerts(everything=True)
        for _ in range(wait):
            found = [
                Raised(one.id, one.rule, one.subject, one.state)
                for one in answer.alerts
                if node is not None and (node.name in one.subject or node.name in one.detail)
            ]
            if found:
                break
            await asyncio.sleep(POLL_S)
            answer = await client.alerts(everything=True)
    except MeshError as error:
        return found, 0, [f"alerts cannot be asked for: {error.reason}: {error.detail[:160]}"]
    return found, answer.rules, list(answer.problems)


async def _tested(client: AnalyticsClient) -> dict[str, str]:
    """Send a test message to every channel; return what went wrong with each, "" for those that it arrived at."""
    try:
        sent = (await client.test("")).deliveries
    except MeshError as error:
        return {} if error.reason is Reason.NOT_FOUND else {"the control plane": error.detail[:160]}
    return {one.channel: one.error if one.state != _DELIVERED else "" for one in sent}


def _quarantine(raised: Sequence[Raised]) -> str:
    """Return what was done that denies every call of our noisy caller; "" when nothing was."""
    done = {action for one in raised for action in one.actions}
    return next((name for name in _DENYING if f"{name} done" in done), "")


async def _reached(installation: Installation, node: ProbeNode, run: str) -> dict[str, str]:
    """Call every listener as the caller that was quarantined, until each says so or patience ends."""
    identity = await asyncio.to_thread(node.identity, node.noisy)
    every = listeners_of(installation.mesh, list(installation.facts.services))
    found: dict[str, str] = {}
    for _ in range(int(_REACH_S / POLL_S)):
        for service, nodes in every.items():
            for member, address in nodes.items():
                place = f"{service} on {member}"
                if found.get(place) in DENIALS:
                    continue
                dns = installation.server_dns(service)
                answer = await call(address, ping(run), identity=identity, server_dns=dns)
                found[place] = answer.reason or answer.code
        if DENIALS.issuperset(found.values()):
            break
        await asyncio.sleep(POLL_S)
    return found


async def _reviewed(
    client: OperatorClient,
    engine: Engine | None,
    callers: Sequence[str],
    services: Sequence[str],
    since_ms: int,
) -> dict[str, dict[str, int]]:
    """Decide our recorded calls again, as a review does."""
    found: dict[str, dict[str, int]] = {}
    if engine is None:
        return found
    for service in services:
        recorded = []
        for caller in callers:
            try:
                traced = await traces(client, caller, service, since_ms, any_method=True)
            except MeshError:
                continue  # the check stays unknown: there is nothing to decide again
            recorded += [Recorded(one.intent) for one in traced if one.intent.side in set(Side)]
        report = await asyncio.to_thread(replay, None, engine, recorded)
        found[service] = {change.value: count for change, count in report.counts.items()}
    return found


async def _resolve(client: IncidentsClient, raised: Sequence[Raised], run: str) -> None:
    """Close what our own calls opened."""
    for one in raised:
        try:
            await client.resolve(one.id, f"raised by assessment {run} on purpose")
        except MeshError:
            continue  # somebody else has closed it, or the control plane is gone: nothing is lost
