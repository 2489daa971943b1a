"""What the state of an installation shows of its controls: nodes, policy in force, levels, attestation. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from control_plane.assess.model import MESH, Basis, Check, Outcome
from trust import limits

SILENT_AFTER_S: Final = 15.0
MIN_APPROVERS: Final = 2
GOVERNED: Final = 4
CRYPTOGRAPHIC: Final = 5


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one node says of itself, and what the control plane knows of it.

    Args:
        name: of the node.
        unreachable: why it could not be asked; "" when it answered.
        state: READY, NOT_READY, ...
        not_ready: reasons.
        reported_s_ago: when the control plane heard of it last; None: never.
        policy_version: that it enforces.
        policy_digest: of what it enforces.
        lease: NONE, FRESH, STALE, SEALED.
        levels: service -> level in force.
        standing: of its attestation, as it says.
        vouched_until_ms: until when a quorum vouches for it, as verified; 0: not verified.
        vouched_by: witnesses whose cosignatures were verified.
        version: of egm.
    """

    name: str
    unreachable: str = ""
    state: str = ""
    not_ready: Sequence[str] = ()
    reported_s_ago: float | None = None
    policy_version: int = 0
    policy_digest: str = ""
    lease: str = "NONE"
    levels: Mapping[str, int] | None = None
    standing: str = ""
    vouched_until_ms: int = 0
    vouched_by: Sequence[str] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """One service: who serves it, and what signed policy says of it.

    `conditions`: what in signed policy makes a decision about it depend on more than who calls what, by policy id.
    """

    name: str
    serving: Sequence[str] = ()  # nodes with its inbound listener
    carrying: Sequence[str] = ()  # every node that carries calls to it, the serving ones too
    signed_level: int | None = None
    conditions: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """The published policy as it was verified here, signature by signature.

    `problem`: why it could not be verified; then nothing else is known.
    """

    problem: str = ""
    version: int = 0
    digest: str = ""
    threshold: int = 0
    approvers: int = 0
    duties: Mapping[str, str] | None = None  # policy id -> approval that it asks for
    witnesses: Sequence[str] = ()
    quorum: int = 0
    addresses: Mapping[str, str] | None = None  # witness -> HOST:PORT, for those whose address is signed
    lease_s: int = 0  # time to live and grace of the signed lease, together


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was looked at. Times in Unix ms."""

    now_ms: int
    policy: PolicyFacts
    nodes: Mapping[str, NodeFacts]
    services: Mapping[str, ServiceFacts]
    published_version: int | None = None  # as the control plane says; None: it cannot be reached
    skew_ms: int = 0  # of the control plane's clock against ours


def observe(facts: Facts) -> list[Check]:
    """Return every check that looks and does not try."""
    checks = [_workflow(facts), _roster(facts), _lease(facts)]
    for service in facts.services.values():
        checks += [
            _reporting(facts, service),
            _verified(facts, service),
            _converged(facts, service),
            _levels(facts, service),
            _conditions(facts, service),
            _attested(facts, service),
        ]
    return checks


def _observed(  # noqa: PLR0917 (in the order of a sentence)
    name: str, subject: str, outcome: Outcome, tried: str, answered: str, evidence: Mapping[str, str]
) -> Check:
    return Check(name, subject, outcome, Basis.OBSERVED, tried, answered, evidence)


def _of(facts: Facts, names: Sequence[str]) -> list[NodeFacts]:
    return [facts.nodes.get(name) or NodeFacts(name, unreachable="it is not in mesh.json") for name in names]


def _reporting(facts: Facts, service: ServiceFacts) -> Check:
    name, tried = "nodes-reporting", "asked the nodes that serve it, and the control plane about them"
    nodes = _of(facts, service.serving)
    evidence = {
        node.name: node.unreachable
        or f"{node.state}, reported {'never' if node.reported_s_ago is None else f'{node.reported_s_ago:.0f} s ago'}"
        for node in nodes
    }
    if not nodes:
        return _observed(name, service.name, Outcome.UNKNOWN, tried, "no known node serves it", evidence)
    for node in nodes:
        if node.unreachable:
            return _observed(
                name, service.name, Outcome.FAILED, tried, f"{node.name}: {node.unreachable}", evidence
            )
        if node.reported_s_ago is None or node.reported_s_ago > SILENT_AFTER_S:
            why = f"the control plane has not heard of {node.name} for {SILENT_AFTER_S:.0f} s"
            return _observed(name, service.name, Outcome.FAILED, tried, why, evidence)
        if node.state not in {"READY", "NOT_READY", "STARTING", "DRAINING"}:
            return _observed(
                name, service.name, Outcome.FAILED, tried, f"{node.name} does not say how it is", evidence
            )
    return _observed(name, service.name, Outcome.HELD, tried, "every one reports its state", evidence)


def _verified(facts: Facts, service: ServiceFacts) -> Check:
    name, tried = (
        "policy-verified",
        "verified the published policy and compared its digest with what nodes enforce",
    )
    policy, nodes = facts.policy, [n for n in _of(facts, service.carrying) if not n.unreachable]
    evidence = {
        "policy_version": str(policy.version),
        "digest": policy.digest,
        **{n.name: n.policy_digest for n in nodes},
    }
    if policy.problem:
        return _observed(name, service.name, Outcome.FAILED, tried, policy.problem, evidence)
    if not nodes:
        return _observed(
            name, service.name, Outcome.UNKNOWN, tried, "no node that carries it answered", evidence
        )
    other = [node.name for node in nodes if node.policy_digest != policy.digest]
    if other:
        why = f"{', '.join(other)} enforces something else than the policy that verifies"
        return _observed(name, service.name, Outcome.FAILED, tried, why, evidence)
    if silent := [node.name for node in _of(facts, service.carrying) if node.unreachable]:
        why = f"no answer of {', '.join(silent)}"
        return _observed(name, service.name, Outcome.UNKNOWN, tried, why, evidence)
    return _observed(
        name, service.name, Outcome.HELD, tried, f"version {policy.version} is what they enforce", evidence
    )


def _converged(facts: Facts, service: ServiceFacts) -> Check:
    name, tried = (
        "policy-converged",
        "compared the policy versions of all nodes that carry it, and of the control plane",
    )
    nodes = _of(facts, service.carrying)
    answering = [node for node in nodes if not node.unreachable]
    evidence = {node.name: str(node.policy_version) for node in answering}
    if facts.published_version is None or not answering:
        return _observed(name, service.name, Outcome.UNKNOWN, tried, "nobody to compare with", evidence)
    evidence["published"] = str(facts.published_version)
    behind = [node.name for node in answering if node.policy_version != facts.published_version]
    if behind:
        why = f"{', '.join(behind)} enforces another version than {facts.published_version}"
        return _observed(name, service.name, Outcome.FAILED, tried, why, evidence)
    if silent := [node.name for node in nodes if node.unreachable]:
        return _observed(
            name, service.name, Outcome.UNKNOWN, tried, f"no answer of {', '.join(silent)}", evidence
        )
    if facts.published_version == 0:
        return _observed(name, service.name, Outcome.FAILED, tried, "no policy has been published", evidence)
    return _observed(
        name, service.name, Outcome.HELD, tried, f"all at version {facts.published_version}", evidence
    )


def _levels(facts: Facts, service: ServiceFacts) -> Check:
    name, tried = "level-enforced", "compared the level that each node enforces with the signed one"
    silent = [node.name for node in _of(facts, service.carrying) if node.unreachable]
    nodes = [node for node in _of(facts, service.carrying) if not node.unreachable]
    in_force = {node.name: (node.levels or {}).get(service.name) for node in nodes}
    evidence = {"signed": str(service.signed_level), **{node: str(level) for node, level in in_force.items()}}
    if service.signed_level is None:
        return _observed(
            name, service.name, Outcome.UNKNOWN, tried, "the signed level is not known", evidence
        )
    if not nodes or None in in_force.values():
        return _observed(name, service.name, Outcome.UNKNOWN, tried, "no node says its level", evidence)
    lower = [node for node, level in in_force.items() if level is not None and level < service.signed_level]
    if lower:
        why = f"{', '.join(lower)} enforces less than the signed level {service.signed_level}"
        return _observed(name, service.name, Outcome.FAILED, tried, why, evidence)
    if silent:
        why = f"no answer of {', '.join(silent)}"
        return _observed(name, service.name, Outcome.UNKNOWN, tried, why, evidence)
    return _observed(
        name, service.name, Outcome.HELD, tried, f"level {service.signed_level} or above everywhere", evidence
    )


def _conditions(facts: Facts, service: ServiceFacts) -> Check:
    name, tried = "conditions-in-force", "read the signed policies that speak of it, and the levels in force"
    if facts.policy.problem or service.conditions is None:
        why = facts.policy.problem or "the policies could not be read"
        return _observed(name, service.name, Outcome.UNKNOWN, tried, why, {})
    found = dict(service.conditions)
    levels = [
        (node.levels or {}).get(service.name, 0)
        for node in _of(facts, service.carrying)
        if not node.unreachable
    ]
    if levels and min(levels) >= GOVERNED:
        found["lease"] = "every call depends on policy that is fresh"
    if levels and min(levels) >= CRYPTOGRAPHIC and facts.policy.witnesses:
        found["attestation"] = "every call depends on nodes that a quorum vouches for now"
    if found:
        return _observed(
            name, service.name, Outcome.HELD, tried, f"{len(found)} found", dict(list(found.items())[:20])
        )
    why = "no policy that speaks of it has a condition, a rate, a budget or an approval"
    return _observed(name, service.name, Outcome.FAILED, tried, why, {})


def _attested(facts: Facts, service: ServiceFacts) -> Check:
    name, tried = "nodes-attested", "verified who vouches for each node that serves it"
    nodes = _of(facts, service.serving)
    evidence = {
        node.name: f"{node.standing or 'says nothing'}, by {', '.join(node.vouched_by) or 'nobody'}"
        for node in nodes
    }
    if not nodes:
        return _observed(name, service.name, Outcome.UNKNOWN, tried, "no known node serves it", evidence)
    if not facts.policy.problem and not facts.policy.witnesses:
        return _observed(
            name, service.name, Outcome.FAILED, tried, "the signed policy names no witnesses", evidence
        )
    for node in nodes:
        if node.vouched_until_ms <= facts.now_ms:
            return _observed(
                name, service.name, Outcome.FAILED, tried, f"no quorum vouches for {node.name} now", evidence
            )
    return _observed(name, service.name, Outcome.HELD, tried, "a quorum vouches for every one", evidence)


def _workflow(facts: Facts) -> Check:
    name, tried = "workflow-in-force", "read from the signed root how many approvers must sign"
    policy = facts.policy
    evidence = {"threshold": str(policy.threshold), "approvers": str(policy.approvers)}
    evidence |= {f"duty of {one}": what for one, what in list((policy.duties or {}).items())[:10]}
    if policy.problem:
        return _observed(name, MESH, Outcome.FAILED, tried, policy.problem, evidence)
    if policy.threshold < MIN_APPROVERS or policy.approvers < policy.threshold:
        why = f"{policy.threshold} of {policy.approvers} approvers: one person alone decides"
        return _observed(name, MESH, Outcome.FAILED, tried, why, evidence)
    return _observed(
        name,
        MESH,
        Outcome.HELD,
        tried,
        f"{policy.threshold} of {policy.approvers} approvers must sign",
        evidence,
    )


def _roster(facts: Facts) -> Check:
    name, tried = "roster-signed", "read the witnesses and their quorum from the signed policy"
    policy = facts.policy
    evidence = {"witnesses": ", ".join(policy.witnesses), "quorum": str(policy.quorum)}
    if policy.problem:
        return _observed(name, MESH, Outcome.FAILED, tried, policy.problem, evidence)
    if not policy.witnesses:
        return _observed(name, MESH, Outcome.FAILED, tried, "the signed policy names no witnesses", evidence)
    if policy.quorum < MIN_APPROVERS or 2 * policy.quorum <= len(policy.witnesses):
        why = f"{policy.quorum} of {len(policy.witnesses)} witnesses: two sides of a partition could both reach it"
        return _observed(name, MESH, Outcome.FAILED, tried, why, evidence)
    if shared := _shared(policy.addresses or {}):
        why = f"{', '.join(shared)} answer at one address: what is there counts as several witnesses"
        return _observed(name, MESH, Outcome.FAILED, tried, why, evidence)
    return _observed(
        name, MESH, Outcome.HELD, tried, f"{policy.quorum} of {len(policy.witnesses)} must vouch", evidence
    )


def _shared(addresses: Mapping[str, str]) -> list[str]:
    """Return the witnesses that are found where another one is."""
    places = list(addresses.values())
    return sorted(name for name, place in addresses.items() if places.count(place) > 1)


def _lease(facts: Facts) -> Check:
    """A node that nobody reaches enforces what was withdrawn until its lease and grace are over."""
    name, tried = "lease-bounded", "read from the signed policy how long a node may go on without news"
    policy = facts.policy
    evidence = {"ttl_and_grace_s": str(policy.lease_s), "at_most_s": str(limits.MAX_ASSESSED_LEASE_S)}
    if policy.problem:
        return _observed(name, MESH, Outcome.FAILED, tried, policy.problem, evidence)
    hours, most = policy.lease_s / 3600, limits.MAX_ASSESSED_LEASE_S // 3600
    if policy.lease_s > limits.MAX_ASSESSED_LEASE_S:
        why = f"a node that is cut off goes on for {hours:.0f} h with withdrawn policy; at most {most} h are good"
        return _observed(name, MESH, Outcome.FAILED, tried, why, evidence)
    return _observed(name, MESH, Outcome.HELD, tried, f"{policy.lease_s} s", evidence)
