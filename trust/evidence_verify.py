"""What an evidence file proves: integrity, authority, identity and time, each by itself, and what stays open.

Nothing in the file is believed because it is there. What the reader brings is the root metadata and the CA
certificates; everything else must lead to one of the two, or to the signed checkpoint of a node that does.
"""

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.x509 import Certificate
from tuf.api.metadata import Root, Timestamp
from tuf.api.serialization.json import JSONSerializer

from trust import limits
from trust.authoring import parse_metadata
from trust.chain import VerifiedMetadata, verify_metadata, verify_policy, verify_roots
from trust.checkpoint import Checkpoint, open_checkpoint
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.evidence import Content, Evidence, NodePart, PolicyPart, parse_evidence
from trust.execution import id_text
from trust.lineage import Seen, build_tree
from trust.merkle import leaf_hash, root_from_inclusion
from trust.metadata import trust_domain_of
from trust.node_key import NodeKey, endorsement_times, verify_endorsement
from trust.note import Verifier
from trust.record import Intent, Outcome, Record, parse_record, record_digest
from trust.spiffe import SpiffeId
from trust.verified import VerifiedPolicy
from trust.x509 import load_certificate, load_chain, to_pem

NOT_PROVED: Final = (
    "permit: the token is not in the file, only its digest in the records; its signature and claims are not checked",
    "decision: it is what the node recorded under that policy; the policy is not evaluated again",
    "request and response: the records hold digests; compare them with the bytes if you have them",
    "time: every time is from the clock of a node; no independent party saw the checkpoint",
    "completeness: a node can keep whole executions to itself; the file proves those it contains",
    "truth: a node proves what it recorded, not that its sidecar and its host were honest",
)


@enum.unique
class Section(enum.StrEnum):
    """What is established separately."""

    INTEGRITY = "integrity"
    AUTHORITY = "authority"
    IDENTITY = "identity"
    TIME = "time"


@enum.unique
class Verdict(enum.StrEnum):
    """What a section comes to; the first that applies."""

    CONTRADICTED = "contradicted"
    UNKNOWN = "could not tell"
    ESTABLISHED = "established"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that contradicts (`reason` is set) or could not be told. `where` is a place in the file."""

    section: Section
    where: str
    what: str
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Approved:
    """Who approved the bundle of one role of one policy."""

    where: str
    role: str
    version: int
    sha256: str
    threshold: int
    approvers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The result. `contents` and `approved` say what the file is about; they hold as far as the findings allow."""

    contents: tuple[Content, ...]
    approved: tuple[Approved, ...]
    nodes: tuple[str, ...]  # SPIFFE IDs whose keys are vouched for
    findings: tuple[Finding, ...]

    def verdict(self, section: Section | None = None) -> Verdict:
        """Return what `section`, or the whole file, comes to."""
        found = [f for f in self.findings if section in {None, f.section}]
        if any(f.reason is not None for f in found):
            return Verdict.CONTRADICTED
        return Verdict.UNKNOWN if found else Verdict.ESTABLISHED


@dataclass(slots=True)
class _Case:
    evidence: Evidence
    trusted_root: bytes
    anchors_pem: bytes | None
    findings: list[Finding] = field(default_factory=list)
    approved: list[Approved] = field(default_factory=list)
    records: dict[tuple[str, int], Record] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    keys: dict[str, NodeKey] = field(default_factory=dict)
    policies: dict[bytes, tuple[str, VerifiedPolicy]] = field(default_factory=dict)

    def wrong(
        self, section: Section, where: str, error: MeshError | str, reason: Reason | None = None
    ) -> None:
        """Note a contradiction."""
        if isinstance(error, MeshError):
            self.findings.append(Finding(section, where, error.detail, error.reason))
        else:
            self.findings.append(Finding(section, where, error, reason or Reason.PROOF_INVALID))

    def open(self, section: Section, where: str, what: str) -> None:
        """Note what could not be told."""
        self.findings.append(Finding(section, where, what, None))


def verify_evidence(data: bytes, trusted_root: bytes, anchors_pem: bytes | None = None) -> Report:
    """Return what the file proves to a reader who trusts `trusted_root` and `anchors_pem`.

    Args:
        data: the file.
        trusted_root: root metadata known from elsewhere.
        anchors_pem: CA certificates known from elsewhere; without them the file's own are used, and who the nodes
            are stays open.

    Raises:
        EvidenceError: PROOF_INVALID, if the file is malformed; METADATA_INVALID, METADATA_UNSAFE, QUORUM_NOT_MET,
            KEY_UNSAFE, if `trusted_root` is not usable.
        CapacityError: LIMIT_EXCEEDED.
    """
    root = verify_roots(trusted_root, ())
    case = _Case(parse_evidence(data), trusted_root, anchors_pem)
    _check_nodes(case)
    _check_records(case)
    _check_contents(case)
    _check_policies(case)
    _check_authority(case)
    _check_identity(case, trust_domain_of(root))
    _check_time(case)
    return Report(
        case.evidence.contents,
        tuple(case.approved),
        tuple(str(key.node) for key in case.keys.values()),
        tuple(case.findings),
    )


def _check_nodes(case: _Case) -> None:
    """Integrity: each checkpoint is signed by the key that the file names, under the node's own name."""
    named = {record.node for record in case.evidence.records}
    for number, node in enumerate(case.evidence.nodes):
        where = f"nodes[{number}]"
        if node.name not in named:
            case.wrong(Section.INTEGRITY, f"{where}.name", "no record is of this node")
        try:
            log = Verifier.parse(node.key)
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.key", error)
            continue
        if log.name.rpartition("/node/")[2] != node.name:
            case.wrong(Section.INTEGRITY, f"{where}.key", f"it is the key of {log.name}, not of {node.name}")
        try:
            case.checkpoints[node.name] = open_checkpoint(node.checkpoint, log).checkpoint
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.checkpoint", error)


def _check_records(case: _Case) -> None:
    """Integrity: each record is well-formed, its node's, and in the tree of its node's checkpoint."""
    for number, part in enumerate(case.evidence.records):
        where = f"records[{number}]"
        try:
            record = parse_record(part.record)
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.record", error)
            continue
        case.records[part.node, part.index] = record
        if record.node != part.node:
            case.wrong(Section.INTEGRITY, f"{where}.node", f"the record is of node {record.node}")
        checkpoint = case.checkpoints.get(part.node)
        if checkpoint is None:
            case.wrong(Section.INTEGRITY, f"{where}.node", f"there is no good checkpoint of node {part.node}")
            continue
        try:
            leaf = leaf_hash(record_digest(part.record))
            root = root_from_inclusion(leaf, part.index, checkpoint.size, part.proof)
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.proof", error)
            continue
        if root != checkpoint.root:
            what = f"record {part.index} of {part.node} with its proof does not lead to the signed root"
            case.wrong(Section.INTEGRITY, where, what)


def _check_contents(case: _Case) -> None:
    """Integrity: the table of contents is that of the records, and two sides of a call do not contradict each other."""
    used: set[tuple[str, int]] = set()
    seen: dict[str, list[Seen]] = {}
    for number, content in enumerate(case.evidence.contents):
        where = f"contents[{number}]"
        intent = case.records.get((content.node, content.intent))
        outcome = None if content.outcome is None else case.records.get((content.node, content.outcome))
        used |= {(content.node, i) for i in (content.intent, content.outcome) if i is not None}
        if not isinstance(intent, Intent) or not _is_of(content, intent):
            what = "there is no such intent of this execution, node and side among the records"
            case.wrong(Section.INTEGRITY, f"{where}.intent", what)
            continue
        if content.outcome is None:
            if intent.allowed:
                case.open(Section.INTEGRITY, f"{where}.outcome", "how it ended: the file has no outcome")
        elif not isinstance(outcome, Outcome) or not _is_of(content, outcome):
            what = "there is no such outcome of this execution, node and side among the records"
            case.wrong(Section.INTEGRITY, f"{where}.outcome", what)
            continue
        seen.setdefault(content.execution, []).append(
            Seen(intent, outcome if isinstance(outcome, Outcome) else None)
        )
    for number, part in enumerate(case.evidence.records):
        if (part.node, part.index) not in used:
            case.wrong(Section.INTEGRITY, f"records[{number}]", "the contents do not list it")
    for execution, sides in seen.items():
        for hop in build_tree(sides, sides[0].intent.execution_id).hops:
            for problem in hop.problems:
                case.wrong(Section.INTEGRITY, f"execution {execution}", problem)


def _is_of(content: Content, record: Record) -> bool:
    return (id_text(record.execution_id), record.side) == (content.execution, content.side)


def _check_policies(case: _Case) -> None:
    """Authority: each policy is signed by the quorums that lead to the reader's root; who they were."""
    for number, part in enumerate(case.evidence.policies):
        where = f"policies[{number}]"
        try:
            root = _newest_root(case.trusted_root, part, where)
            _check_exact(part.metadata.timestamp, Timestamp, f"{where}.timestamp")
            verified = verify_metadata(root, part.metadata)
            if set(verified.roles) != set(part.metadata.roles):
                raise EvidenceError(Reason.METADATA_INVALID, "it has a role that is not delegated")
            archives = {hashlib.sha256(data).hexdigest(): data for _, data in part.archives}
            policy = verify_policy(verified, archives.get)
            for place, (role, data) in enumerate(part.archives):
                target = policy.target(role)
                if target is None or target.data != data:
                    what = f"roles[{place}].archive is not the one that {role} signed"
                    raise EvidenceError(Reason.DIGEST_MISMATCH, what)
        except MeshError as error:
            case.wrong(Section.AUTHORITY, where, error)
            continue
        case.policies[bytes.fromhex(policy.base.sha256)] = (where, policy)
        case.approved += _approved(where, verified, policy)


def _newest_root(trusted: bytes, part: PolicyPart, where: str) -> Root:
    roots = part.metadata.roots
    for number, data in enumerate(roots):
        _check_exact(data, Root, f"{where}.roots[{number}]")
    # the reader may trust a later root than the node did: what is before it is of no use, what is after it is
    start = roots.index(trusted) + 1 if trusted in roots else 0
    return verify_roots(trusted, roots[start:])


def _check_exact(data: bytes, kind: type[Root] | type[Timestamp], where: str) -> None:
    """Refuse a second encoding of a file that no other file pins: one spelling, and every signature in it counts."""
    metadata = parse_metadata(data, Root) if kind is Root else parse_metadata(data, Timestamp)
    if data not in {metadata.to_bytes(JSONSerializer(compact=c)) for c in (False, True)}:
        raise EvidenceError(Reason.METADATA_INVALID, f"{where} is not in the encoding of TUF's reference")


def _approved(where: str, verified: VerifiedMetadata, policy: VerifiedPolicy) -> list[Approved]:
    found = []
    for role, quorum in sorted(verified.quorums.items()):
        target = policy.target(role)
        if target is not None:
            names = tuple(sorted(map(quorum.name, quorum.signed)))
            found.append(Approved(where, role, target.version, target.sha256, quorum.threshold, names))
    return found


def _check_authority(case: _Case) -> None:
    """Authority: each decision names the bundle and version that a quorum signed."""
    used: set[str] = set()
    for number, part in enumerate(case.evidence.records):
        record = case.records.get((part.node, part.index))
        where = f"records[{number}].record"
        if not isinstance(record, Intent):
            continue
        if not record.policy_sha256:
            if record.allowed:
                case.open(Section.AUTHORITY, where, "by what authority: it was allowed without a policy")
            continue
        held = case.policies.get(record.policy_sha256)
        if held is None:
            what = f"the policy it was decided under ({record.policy_sha256.hex()}) is not in the file"
            case.open(Section.AUTHORITY, where, what)
            continue
        used.add(held[0])
        if held[1].base.version != record.policy_version:
            what = f"it names policy version {record.policy_version}, signed as {held[1].base.version}"
            case.wrong(Section.AUTHORITY, where, what, Reason.DIGEST_MISMATCH)
    for where, _ in case.policies.values():
        if where not in used:
            case.wrong(Section.AUTHORITY, where, "no record names this policy", Reason.DIGEST_MISMATCH)


def _check_identity(case: _Case, trust_domain: str | None) -> None:
    """Identity: each node's key is vouched for by a certificate that leads to the CA."""
    try:
        anchors = _anchors(case)
    except MeshError as error:
        case.wrong(Section.IDENTITY, "anchors", error)
        return
    for number, node in enumerate(case.evidence.nodes):
        where = f"nodes[{number}].endorsement"
        if node.endorsement is None:
            case.open(Section.IDENTITY, where, f"whose key signed for {node.name}: it has no endorsement")
            continue
        try:
            domain = trust_domain or Verifier.parse(node.key).name.partition("/")[0]
            key = _endorsed(case, node, anchors, domain)
        except StateError as error:
            case.wrong(Section.TIME, where, error)
            case.open(Section.IDENTITY, where, f"whose key signed for {node.name}: {error.detail}")
        except MeshError as error:
            case.wrong(Section.IDENTITY, where, error)
        else:
            case.keys[node.name] = key


def _anchors(case: _Case) -> bytes:
    """Return the CA certificates to believe (PEM): the reader's; without any the file's."""
    certificates: list[Certificate] = []
    given = None if case.anchors_pem is None else _der_of(case.anchors_pem)
    for number, der in enumerate(case.evidence.anchors):
        certificate = load_certificate(der)
        if certificate.public_bytes(serialization.Encoding.DER) != der:
            raise EvidenceError(Reason.IDENTITY_INVALID, f"anchors[{number}] is not exactly one certificate")
        if given is not None and der not in given:
            what = f"anchors[{number}] is not among the CA certificates that you gave; give every CA that you trust"
            raise EvidenceError(Reason.IDENTITY_INVALID, what)
        certificates.append(certificate)
    if case.anchors_pem is None:
        case.open(
            Section.IDENTITY, "anchors", "whether this is the CA of the mesh: give its certificate with --ca"
        )
        return to_pem(certificates)
    return case.anchors_pem


def _der_of(pem: bytes) -> set[bytes]:
    return {c.public_bytes(serialization.Encoding.DER) for c in load_chain(pem)}


def _endorsed(case: _Case, node: NodePart, anchors: bytes, domain: str) -> NodeKey:
    """Return the node's key as its endorsement gives it, verified at the times of the node's records."""
    data = node.endorsement or b""
    start_ms, end_ms = endorsement_times(data)
    walls = [r.wall_ms for (name, _), r in case.records.items() if name == node.name]
    times = (
        {min(max(wall, start_ms), end_ms - 1) for wall in (min(walls), max(walls))} if walls else {start_ms}
    )
    keys = [verify_endorsement(data, anchors, domain, now_ms) for now_ms in sorted(times)]
    key = keys[0]
    log = Verifier.parse(node.key)
    if key.public_key.public_bytes_raw() != log.public_key:
        raise EvidenceError(Reason.SIGNATURE_INVALID, "it vouches for another key than the log's")
    if key.node != SpiffeId.of(domain, "node", node.name) or log.name != f"{domain}/node/{node.name}":
        raise EvidenceError(Reason.IDENTITY_INVALID, f"it is of {key.node}, the log is {log.name}")
    skew = limits.MAX_CLOCK_SKEW_MS
    if walls and (min(walls) + skew < start_ms or max(walls) >= end_ms):
        what = "the endorsement is of another time than the records of the node"
        case.open(Section.TIME, f"execution of {node.name}", what)
    return key


def _check_time(case: _Case) -> None:
    """Time: what must come first comes first, and decisions fall into the validity of the policy."""
    skew = limits.MAX_CLOCK_SKEW_MS
    starts: dict[str, dict[int, Intent]] = {}
    for number, content in enumerate(case.evidence.contents):
        where = f"contents[{number}]"
        intent = case.records.get((content.node, content.intent))
        if not isinstance(intent, Intent):
            continue
        starts.setdefault(content.execution, {})[content.side] = intent
        outcome = case.records.get((content.node, -1 if content.outcome is None else content.outcome))
        if isinstance(outcome, Outcome):
            same_boot = intent.boot_id == outcome.boot_id
            late = (
                outcome.monotonic_ms < intent.monotonic_ms
                if same_boot
                else outcome.wall_ms + skew < intent.wall_ms
            )
            if late or (content.outcome or 0) <= content.intent:
                case.wrong(Section.TIME, where, "its outcome is earlier than its intent")
        _check_policy_time(case, where, intent)
    for execution, sides in starts.items():
        _check_sides(case, execution, sides)


def _check_sides(case: _Case, execution: str, sides: Mapping[int, Intent]) -> None:
    walls: Sequence[int] = [intent.wall_ms for _, intent in sorted(sides.items())]  # the caller's side first
    if len(walls) == 2 and walls[1] + limits.MAX_CLOCK_SKEW_MS < walls[0]:
        case.wrong(Section.TIME, f"execution {execution}", "the callee decided before the caller asked")


def _check_policy_time(case: _Case, where: str, intent: Intent) -> None:
    held = case.policies.get(intent.policy_sha256)
    if held is None:
        return
    name, policy = held
    if intent.wall_ms >= policy.expires_ms:
        if intent.allowed and intent.level >= 4:
            case.wrong(Section.TIME, where, f"allowed after {name} had expired", Reason.POLICY_EXPIRED)
    elif intent.wall_ms >= policy.lease_expires_ms:
        case.open(Section.TIME, where, f"whether it was within the grace of {name}, whose lease had ended")
