"""The fleet as an operator reads it: what every node last said of itself, and what is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from egm.v1 import operator_pb2
from trust.levels import CRYPTOGRAPHIC

WITHOUT_ATTESTATION: Final = (
    "level 5 is in force without attestation: the signed policy names no witnesses, so nodes do not vouch for each "
    "other (attestation in bundle.yaml)"
)
_NO_WITNESSES: Final = frozenset({"", "NO_WITNESSES"})  # empty: said by a version that does not know better
SILENT_AFTER_S: Final = 15.0  # several report periods without a word


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. Times are relative to the control plane's clock, in seconds."""

    name: str
    state: str
    not_ready: Sequence[str]
    policy_version: int
    namespace_versions: Mapping[str, int]
    lease: str
    lease_remaining_s: float
    grace_remaining_s: float
    levels: Mapping[str, int]
    decisions: Mapping[str, int]
    alarms: Sequence[str]
    seen_s_ago: float
    admin: str
    version: str
    # what the node says of itself: ATTESTED, NOT_ATTESTED, NO_WITNESSES, NO_POLICY; empty when it never said
    attestation: str
    attested: bool  # the control plane verified its trust credential, which is alive
    attested_problem: str  # why it could not
    attestation_remaining_s: float
    witnesses: Sequence[str]
    quorum: int
    # witnesses whose cosignatures were verified; if not `attested`, those that the node says; none by what has ended
    vouched: Sequence[str]
    not_vouched: Mapping[str, str]  # witness -> why, in the last round
    credential: str  # hex SHA-256
    is_witness: bool


@dataclass(frozen=True, slots=True)
class FleetView:
    """The control plane and every node it knows."""

    name: str
    trust_domain: str
    role_versions: Mapping[str, int]
    lease_ttl_s: int
    lease_expires_ms: int
    broker: str
    store: str
    open_proposals: int
    nodes: Sequence[NodeView]
    problems: Sequence[str]
    missing: Sequence[str]  # what the level in force would need and this version does not have

    @property
    def healthy(self) -> bool:
        """Whether every node is ready and nothing is wrong."""
        return not self.problems and all(node.state == "READY" for node in self.nodes)

    def to_dict(self) -> dict[str, object]:
        """Return the view as JSON values."""
        return {**asdict(self), "healthy": self.healthy}


def fleet_view(
    status: operator_pb2.ControlPlaneStatus, records: Sequence[operator_pb2.NodeRecord]
) -> FleetView:
    """Join what the control plane says of itself with what its nodes said."""
    nodes = tuple(sorted((_node(record, status.now_ms) for record in records), key=lambda node: node.name))
    broker = f"broker {status.broker}{'' if status.broker_connected else ' (not connected)'}"
    return FleetView(
        name=status.name,
        trust_domain=status.trust_domain,
        role_versions=dict(status.role_versions),
        lease_ttl_s=status.lease_ttl_s,
        lease_expires_ms=status.lease_expires_ms,
        broker=broker if status.broker else "no broker",
        store=status.store,
        open_proposals=status.open_proposals,
        nodes=nodes,
        missing=missing_of(nodes),
        problems=(*status.problems, *_problems(nodes, dict(status.role_versions))),
    )


def missing_of(nodes: Sequence[NodeView]) -> tuple[str, ...]:
    """Return what the levels in force promise and the signed policy does not ask for."""
    unwitnessed = any(
        CRYPTOGRAPHIC in node.levels.values() and node.attestation in _NO_WITNESSES for node in nodes
    )
    return (WITHOUT_ATTESTATION,) if unwitnessed else ()


def _node(record: operator_pb2.NodeRecord, now_ms: int) -> NodeView:
    said = record.status
    attested_ms = record.attested_until_ms - now_ms
    age_s = max(0.0, (now_ms - record.last_seen_ms) / 1000)
    attested = attested_ms > 0
    # What it said of itself is as old as its report: nobody vouches by a credential that has ended since.
    left_s = attested_ms / 1000 if attested else max(0.0, said.attestation.remaining_ms / 1000 - age_s)
    vouched = record.attested_by if attested else said.attestation.vouched if left_s > 0 else ()
    return NodeView(
        name=record.node,
        state="SILENT" if age_s > SILENT_AFTER_S else said.state or "ENROLLED",
        not_ready=tuple(said.not_ready),
        policy_version=said.policy_version,
        namespace_versions=dict(said.namespace_versions),
        lease=said.lease or "NONE",
        lease_remaining_s=said.lease_remaining_ms / 1000,
        grace_remaining_s=said.grace_remaining_ms / 1000,
        levels=dict(said.levels),
        decisions=dict(said.decisions),
        alarms=tuple(said.alarms),
        seen_s_ago=age_s,
        admin=said.admin_address,
        version=said.egm_version,
        attestation=said.attestation.standing,
        attested=attested,
        attested_problem=record.attested_problem,
        attestation_remaining_s=left_s,
        witnesses=tuple(said.attestation.witnesses),
        quorum=said.attestation.quorum,
        vouched=tuple(vouched),
        not_vouched=dict(said.attestation.not_vouched),
        credential=said.attestation.credential_sha256,
        is_witness=said.attestation.is_witness,
    )


def _problems(nodes: Sequence[NodeView], published: Mapping[str, int]) -> list[str]:
    problems = []
    newest = published.get("targets", 0)
    for node in nodes:
        if node.state == "SILENT":
            problems.append(f"{node.name} has not reported for {node.seen_s_ago:.0f} s")
        elif node.not_ready:
            problems.append(f"{node.name} is not ready: {', '.join(node.not_ready)}")
        elif node.policy_version < newest:
            problems.append(f"{node.name} enforces policy {node.policy_version}, published is {newest}")
        problems += [f"{node.name}: {alarm}" for alarm in node.alarms]
    return problems
