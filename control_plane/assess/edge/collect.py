"""Gathers the facts that `control_plane.assess.observations` judges: the signed policy, the nodes, who serves what."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final

import cedarpy
from cedarpy import pst
from cryptography.exceptions import UnsupportedAlgorithm
from securesystemslib.signer import Key
from tuf.api.metadata import Role, Root

from control_plane.assess.edge.probe_node import NAME_PREFIX
from control_plane.assess.observations import Facts, NodeFacts, PolicyFacts, ServiceFacts
from control_plane.edge import operator_client
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.release import InForce, Release
from egm.v1 import operator_pb2
from trust.attestation.credential import Credential, check_live, live_until_ms, open_credential
from trust.edge.clock import SystemClock
from trust.errors import MeshError
from trust.policy.engine import Engine
from trust.verified import BASE_ROLE

_APPROVAL: Final = "require_approval"
_MOST_CONDITIONS: Final = 20  # kept as evidence; one is enough
_VARIABLE: Final = (
    "Var(name="  # as cedarpy writes principal, action, resource and context in its syntax trees
)
_CONTROLS: Final = frozenset({"rate", "budget", _APPROVAL})
_STATUS_TIMEOUT_S: Final = 6.0
_REPORTS_S: Final = 10.0  # more than a report period: what a node reports may be a little old
_POLL_S: Final = 0.5
_GONE_AFTER_MS: Final = (
    60_000  # a node that the control plane has not heard of for so long is no part of the mesh
)


@dataclass(frozen=True, slots=True)
class Installation:
    """What attempts need to know of a mesh. `engine`: of the published policy; None without one that verifies."""

    mesh: MeshFile
    facts: Facts
    in_force: InForce | None
    engine: Engine | None
    refused: str = ""  # why the control plane could not be asked
    credentials: Mapping[str, Credential] = field(
        default_factory=dict
    )  # of nodes, verified, and live a moment ago

    def audience(self, service: str) -> str:
        """Return the SPIFFE ID of the workload that serves a service."""
        name = service if self.engine is None else self.engine.mesh.workload_of(service)
        return f"spiffe://{self.mesh.trust_domain}/workload/{name}"

    def server_dns(self, service: str) -> str:
        """Return the name that the service's inbound listener proves."""
        name = service if self.engine is None else self.engine.mesh.workload_of(service)
        return f"{name}.workload.{self.mesh.trust_domain}"


@dataclass(frozen=True, slots=True)
class Said:
    """What one policy says, as far as it matters here."""

    policy: str
    annotations: Mapping[str, str]
    conditional: bool
    resource: pst.PrincipalOrResourceConstraint


async def collect(
    mesh: MeshFile, directory: Path, client: OperatorClient, only: str | None = None
) -> Installation:
    """Look at everything once.

    Args:
        mesh: the address book.
        directory: of the mesh.
        client: of the control plane.
        only: one service alone.
    """
    own_ms = now_ms = SystemClock().now_ms()
    problem, in_force, engine = "the control plane does not answer", None, None
    records: dict[str, operator_pb2.NodeRecord] = {}
    published: int | None = None
    refused = ""
    try:  # the caller learns a failure from `published_version`
        status = await client.status()
        records = {one.node: one for one in await client.nodes(credentials=True)}
        now_ms, published = status.now_ms, status.role_versions.get(BASE_ROLE, 0)
    except MeshError as error:
        refused = f"{error.reason}: {error.detail}"
    skew_ms = now_ms - own_ms
    if published is not None:
        problem, in_force, engine = await _published(mesh, directory, client)
        if engine is not None and engine.mesh.roster() is not None:
            now_ms, records = await _vouched_for(mesh, client, engine)
    asked = await asyncio.gather(*(_ask(mesh, directory, name) for name in mesh.nodes))
    nodes = {
        node.name: _joined(node, status_of, records.get(node.name), now_ms, engine)
        for node, status_of in asked
    }
    strangers = {one.node: one for one in records.values() if _unlisted(one, mesh, now_ms)}
    nodes |= {name: NodeFacts(name, unreachable=_UNLISTED) for name in strangers}
    reach = _Reach(mesh, nodes, {name: tuple(one.status.levels) for name, one in strangers.items()})
    policies = [] if engine is None else await asyncio.to_thread(said, engine)
    policy = _policy(in_force, engine, policies, problem)
    services = {name: _service(reach, engine, policies, name) for name in _names(reach, engine, only)}
    facts = Facts(now_ms, policy, nodes, services, published, skew_ms)
    held = {
        name: one for name in nodes if (one := _credential(records.get(name), engine, now_ms)) is not None
    }
    return Installation(mesh, facts, in_force, engine, refused, held)


_UNLISTED: Final = "it is registered at the control plane, but mesh.json does not say where it is"


def _unlisted(record: operator_pb2.NodeRecord, mesh: MeshFile, now_ms: int) -> bool:
    """Whether a node is at work that mesh.json does not list: nobody would ask it, and nobody would miss it.

    Probe nodes, of this assessment or of another, are left out: they serve nothing.
    """
    if record.node in mesh.nodes or record.node.startswith(NAME_PREFIX):
        return False
    return now_ms - record.last_seen_ms < _GONE_AFTER_MS


async def _vouched_for(
    mesh: MeshFile, client: OperatorClient, engine: Engine
) -> tuple[int, dict[str, operator_pb2.NodeRecord]]:
    """Return the control plane's time and what it knows of nodes; one that has just been attested reports it soon."""
    deadline = asyncio.get_running_loop().time() + _REPORTS_S
    while True:
        now_ms = (await client.status()).now_ms
        records = {one.node: one for one in await client.nodes(credentials=True)}
        known = [records[name] for name in mesh.nodes if name in records]
        settled = len(known) == len(mesh.nodes) and all(_vouched(one, engine, now_ms)[0] > 0 for one in known)
        if settled or asyncio.get_running_loop().time() > deadline:
            return now_ms, records
        await asyncio.sleep(_POLL_S)


async def _published(
    mesh: MeshFile, directory: Path, client: OperatorClient
) -> tuple[str, InForce | None, Engine | None]:
    """Return what is published, verified and compiled; and why not, "" when it is."""
    in_force: InForce | None = None
    try:
        in_force = await Release(mesh, directory, client).in_force()
        engine = await asyncio.to_thread(_engine, in_force)
    except MeshError as error:
        return f"the published policy does not verify: {error.reason}: {error.detail}", in_force, None
    except (ValueError, UnsupportedAlgorithm) as error:
        return f"the published policy cannot be used: {error}", in_force, None
    return "no policy has been published" if in_force.policy is None else "", in_force, engine


def _engine(in_force: InForce) -> Engine | None:
    base = in_force.bundle(BASE_ROLE)
    if base is None:
        return None
    names = [role for role in in_force.roles if role != BASE_ROLE]
    bundles = {name: bundle for name in names if (bundle := in_force.bundle(name)) is not None}
    return Engine.build(base, bundles)


async def _ask(
    mesh: MeshFile, directory: Path, name: str
) -> tuple[NodeFacts, operator_pb2.NodeStatus | None]:
    try:
        async with (
            asyncio.timeout(_STATUS_TIMEOUT_S),
            operator_client.node(mesh, directory, name) as client,
        ):
            return NodeFacts(name), await client.status()
    except MeshError as error:
        return NodeFacts(name, unreachable=f"it does not answer: {error.detail[:200]}"), None
    except TimeoutError:
        return NodeFacts(name, unreachable="it does not answer in time"), None


def _joined(
    node: NodeFacts,
    said: operator_pb2.NodeStatus | None,
    record: operator_pb2.NodeRecord | None,
    now_ms: int,
    engine: Engine | None,
) -> NodeFacts:
    if record is not None:
        until_ms, by = _vouched(record, engine, now_ms)
        node = replace(
            node,
            reported_s_ago=max(0.0, (now_ms - record.last_seen_ms) / 1000),
            vouched_until_ms=until_ms,
            vouched_by=by,
        )
    if said is None:
        return node
    return replace(
        node,
        state=said.state,
        not_ready=tuple(said.not_ready),
        policy_version=said.policy_version,
        policy_digest=said.policy_digest,
        lease=said.lease,
        levels=dict(said.levels),
        standing=said.attestation.standing,
        version=said.egm_version,
    )


def _vouched(
    record: operator_pb2.NodeRecord, engine: Engine | None, now_ms: int
) -> tuple[int, tuple[str, ...]]:
    """Return until when a quorum vouches for a node, and who: verified here, or not at all.

    What the control plane says that it has verified is its word; and so is the time that it says it is.
    """
    roster, credential = None if engine is None else engine.mesh.roster(), _credential(record, engine, now_ms)
    if roster is None or credential is None:
        return 0, ()
    until_ms = live_until_ms(credential, roster, now_ms=max(now_ms, SystemClock().now_ms()))
    return until_ms, tuple(sorted(credential.attested_s))


def _credential(
    record: operator_pb2.NodeRecord | None, engine: Engine | None, now_ms: int
) -> Credential | None:
    """Return the credential that a quorum gave a node; None without one that verifies here and is live."""
    roster = None if engine is None else engine.mesh.roster()
    if roster is None or record is None or not record.status.credential:
        return None
    try:
        credential = open_credential(record.status.credential, roster)
        check_live(credential, roster, now_ms=max(now_ms, SystemClock().now_ms()))
    except MeshError:
        return None
    return credential if credential.node.name == record.node else None


def _policy(
    in_force: InForce | None, engine: Engine | None, policies: Sequence[Said], problem: str
) -> PolicyFacts:
    if in_force is None or in_force.policy is None or engine is None:
        return PolicyFacts(problem=problem or "the published policy cannot be read")
    threshold, approvers = weakest_quorum(in_force)
    roster = engine.mesh.roster()
    return PolicyFacts(
        problem,
        version=in_force.policy.base.version,
        digest=in_force.policy.digest,
        threshold=threshold,
        approvers=approvers,
        duties=_duties(policies),
        witnesses=() if roster is None else tuple(sorted(roster.witnesses)),
        quorum=0 if roster is None else roster.needed,
        addresses={} if roster is None else {n: w.address for n, w in roster.witnesses.items() if w.address},
        lease_s=engine.mesh.lease.ttl_s + engine.mesh.lease.grace_s,
    )


def weakest_quorum(in_force: InForce) -> tuple[int, int]:
    """Return the smallest threshold of any role that signs policy or names who does, and that role's distinct keys.

    A namespace whose services one person alone decides about is as much of a way in as a base that one person signs;
    and who holds the root says who the approvers are.
    """
    root = in_force.root.signed
    found = [_quorum(root.roles[role], root.keys) for role in (Root.type, BASE_ROLE)]
    base = in_force.roles.get(BASE_ROLE)
    if base is not None and base.signed.delegations is not None:
        delegations = base.signed.delegations
        found += [_quorum(role, delegations.keys) for role in (delegations.roles or {}).values()]
    return min(found)


def _quorum(role: Role, keys: Mapping[str, Key]) -> tuple[int, int]:
    return role.threshold, len({keys[key].keyval["public"] for key in role.keyids if key in keys})


def said(engine: Engine) -> list[Said]:
    """Return what every policy in force says. About 50 µs of CPU a policy: call it in a thread."""
    found = []
    for policy in engine.policy_ids():
        parsed = cedarpy.PolicySet.from_str(engine.text(policy) or "").to_pst()
        for template in parsed.static_policies.values():
            annotations = dict(template.annotations)
            found.append(Said(policy, annotations, _depends(template.clauses), template.resource))
    return found


def _depends(clauses: Sequence[object]) -> bool:
    """Whether the conditions of a policy look at anything: `when { true }` is none."""
    return any(_VARIABLE in repr(one) for one in clauses)


def _duties(policies: Iterable[Said]) -> dict[str, str]:
    return {one.policy: one.annotations[_APPROVAL] for one in policies if _APPROVAL in one.annotations}


@dataclass(frozen=True, slots=True)
class _Reach:
    """Who serves or carries what: as mesh.json says, as nodes say, and as unlisted nodes say (node -> services)."""

    mesh: MeshFile
    nodes: Mapping[str, NodeFacts]
    unlisted: Mapping[str, Sequence[str]]

    def serving(self, service: str) -> list[str]:
        return [node for node, entry in self.mesh.nodes.items() if service in entry.inbound]

    def carrying(self, service: str) -> list[str]:
        """Return the nodes that carry calls to it; one that does not answer is believed to, if anything says so."""
        said = {node.name for node in self.nodes.values() if service in (node.levels or {})}
        written = {one.node for one in self.mesh.workloads.values() if service in one.outbound and one.node}
        unlisted = {node for node, services in self.unlisted.items() if service in services}
        return sorted({*self.serving(service), *said, *written, *unlisted})

    def services(self) -> set[str]:
        """Return every service that anybody speaks of: one that mesh.json leaves out is not good for being hidden."""
        served = {service for node in self.mesh.nodes.values() for service in node.inbound}
        said = {service for node in self.nodes.values() for service in node.levels or {}}
        return served | said | {service for services in self.unlisted.values() for service in services}


def _names(reach: _Reach, engine: Engine | None, only: str | None) -> list[str]:
    if only is not None:
        return [only]
    signed = set() if engine is None else set(engine.mesh.services)
    return sorted(reach.services() | signed)


def _service(reach: _Reach, engine: Engine | None, policies: Sequence[Said], name: str) -> ServiceFacts:
    return ServiceFacts(
        name,
        serving=tuple(reach.serving(name)),
        carrying=tuple(reach.carrying(name)),
        signed_level=None if engine is None else engine.mesh.level_of(name),
        conditions=None if engine is None else dict(islice(_conditions(policies, name), _MOST_CONDITIONS)),
    )


def _conditions(policies: Iterable[Said], service: str) -> Iterator[tuple[str, str]]:
    """Yield the policies whose answer about `service` depends on more than who calls what."""
    for one in policies:
        if not _speaks_of(one.resource, service):
            continue
        parts = [f"@{name} {value}" for name, value in one.annotations.items() if name in _CONTROLS]
        if one.conditional:
            parts.append("a condition")
        if parts:
            yield one.policy, ", ".join(parts)


def _speaks_of(resource: pst.PrincipalOrResourceConstraint, service: str) -> bool:
    """Whether a policy's scope surely covers the service; a group that is not resolved here does not count."""
    match resource:
        case pst.ScopeEq(entity=uid) | pst.ScopeIn(entity=uid):
            return str(uid) == f'Service::"{service}"'
        case _:
            return True
