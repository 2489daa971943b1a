"""Collects the evidence of executions from the directories of the nodes that recorded them.

NODE_DATA/ledger          the node's ledger
NODE_DATA/endorsements/   what its certificates said about its key, with the CA certificates of that time
NODE_DATA/tuf/            the policy that it accepted last

Nothing found here is believed: what is written is only worth what `trust.evidence_verify` says about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from tuf.api.metadata import Targets

from trust.authoring import parse_metadata
from trust.chain import sha256_of_target
from trust.edge.endorsements import read_endorsements
from trust.edge.ledger import Reader
from trust.edge.policy_cache import PolicyCache
from trust.errors import InputError, MeshError, Reason
from trust.evidence import Content, Evidence, NodePart, PolicyPart, RecordPart, build_evidence
from trust.execution import id_text
from trust.record import Intent, Record, Side, parse_record
from trust.verified import BASE_ROLE
from trust.x509 import load_chain

_KEY_FILE: Final = "key"


@dataclass(slots=True)
class _Found:
    parts: list[RecordPart] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    nodes: list[NodePart] = field(default_factory=list)
    anchors: set[bytes] = field(default_factory=set)
    policies: dict[bytes, PolicyPart] = field(default_factory=dict)


def ledgers_of(mesh: Path) -> dict[str, Path]:
    """Return node to ledger directory, of a mesh that `egm up` made.

    Raises:
        InputError: NOT_FOUND, if there is none.
    """
    found = {path.parents[1].name: path for path in sorted(mesh.glob("nodes/*/data/ledger"))}
    if not found:
        raise InputError(
            Reason.NOT_FOUND, f"{mesh}/nodes has no node with a ledger; name ledgers with --ledger NODE=DIR"
        )
    return found


def export_evidence(
    executions: Sequence[bytes], ledgers: Mapping[str, Path], *, ca_pem: bytes | None = None
) -> tuple[bytes, Evidence]:
    """Return the evidence file of `executions` (16-byte ids), and what is in it.

    Args:
        executions: at least one.
        ledgers: node to ledger directory.
        ca_pem: CA certificates to include besides those that the nodes kept.

    Raises:
        InputError: NOT_FOUND, for an execution that no ledger has, or without any CA certificate.
        EvidenceError: PROOF_INVALID or DIGEST_MISMATCH, for a damaged ledger.
        CapacityError: LIMIT_EXCEEDED.
    """
    found = _Found()
    for node, directory in sorted(ledgers.items()):
        _from_node(found, frozenset(executions), node, directory)
    recorded = {content.execution for content in found.contents}
    missing = [text for text in map(id_text, executions) if text not in recorded]
    if missing:
        raise InputError(
            Reason.NOT_FOUND,
            f"no signed record of {', '.join(missing)} in the ledgers of {', '.join(sorted(ledgers))}; a record is "
            "signed about a second after it was written",
        )
    if ca_pem is not None:
        found.anchors |= {c.public_bytes(Encoding.DER) for c in load_chain(ca_pem)}
    if not found.anchors:
        raise InputError(Reason.NOT_FOUND, "no node kept CA certificates; name the mesh's with --ca CA.pem")
    evidence = Evidence(
        contents=tuple(sorted(found.contents, key=lambda c: c.order)),
        nodes=tuple(found.nodes),
        records=tuple(found.parts),
        policies=tuple(sorted(found.policies.values(), key=lambda p: p.metadata.roles[BASE_ROLE])),
        anchors=tuple(sorted(found.anchors)),
    )
    return build_evidence(evidence), evidence


def _from_node(found: _Found, wanted: frozenset[bytes], node: str, directory: Path) -> None:
    reader = Reader(directory)
    records: dict[int, Record] = {}
    for frame in reader.scan():
        if any(execution in frame.record for execution in wanted):
            record = parse_record(frame.record)
            if record.execution_id in wanted:
                records[frame.index] = record
                proof = reader.inclusion_proof(frame.index)
                found.parts.append(RecordPart(node, frame.index, frame.record, proof))
    if not records:
        return
    found.contents += _contents(node, records)
    at_ms = min(record.wall_ms for record in records.values())
    endorsement, anchors = read_endorsements(directory.parent / "endorsements", at_ms)
    found.anchors |= set() if anchors is None else {c.public_bytes(Encoding.DER) for c in load_chain(anchors)}
    key = (directory / _KEY_FILE).read_text("utf-8").strip()
    found.nodes.append(NodePart(node, key, reader.checkpoint_note, endorsement))
    _add_policy(found, directory.parent / "tuf", [r for r in records.values() if isinstance(r, Intent)])


def _contents(node: str, records: Mapping[int, Record]) -> list[Content]:
    intents: dict[tuple[bytes, Side], int] = {}
    outcomes: dict[tuple[bytes, Side], int] = {}
    for index, record in records.items():
        (intents if isinstance(record, Intent) else outcomes)[record.execution_id, record.side] = index
    return [
        Content(id_text(execution), node, side, index, outcomes.get((execution, side)))
        for (execution, side), index in intents.items()
    ]


def _add_policy(found: _Found, directory: Path, intents: Sequence[Intent]) -> None:
    """Add the policy that the node has, for the records that name it; an earlier one is not kept by nodes."""
    cache = PolicyCache(directory)
    try:
        stored = cache.read(0)
    except MeshError:
        return  # a damaged cache: the policy is then not in the file, and verification says so
    if stored is None:
        return
    digests = {
        role: sha256_of_target(role, parse_metadata(data, Targets).signed)
        for role, data in stored.roles.items()
    }
    archives = {role: cache.read_target(sha256) for role, sha256 in sorted(digests.items())}
    if any(data is None for data in archives.values()):
        return
    digest = bytes.fromhex(digests[BASE_ROLE])
    if any(intent.policy_sha256 == digest for intent in intents):
        # the leases of two nodes may differ, and their root, too: one policy is enough
        part = PolicyPart(stored, tuple((role, data) for role, data in archives.items() if data is not None))
        found.policies.setdefault(digest, part)
