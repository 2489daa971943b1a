"""Collects the evidence of executions from the directories of the nodes that recorded them.

NODE_DATA/ledger          the node's ledger, and the archives of its older parts
NODE_DATA/endorsements/   what its certificates said about its key, with the CA certificates of that time; in `peers`
                          the same of other nodes, whose permits it accepted
NODE_DATA/credentials/    trust credentials that its permits named; in `peers` those of other nodes
NODE_DATA/tuf/            the policy that it accepted last; earlier ones come from the control plane's repository

Nothing found here is believed: what is written is only worth what `trust.evidence_verify` says about it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from tuf.api.metadata import Targets

from control_plane.edge.evidence_find import Position, find_records
from trust import limits
from trust.attestation.credential import credential_sha256
from trust.authoring import parse_metadata
from trust.chain import sha256_of_target
from trust.compact import from_base64url, parse_object
from trust.edge.credential_files import find_credentials
from trust.edge.endorsements import PEERS, find_endorsement, read_endorsements
from trust.edge.files import read_at_most
from trust.edge.ledger import Place, Reader, places_of
from trust.edge.policy_cache import PolicyCache
from trust.errors import InputError, MeshError, Reason
from trust.evidence import Content, Evidence, LinkPart, NodePart, PolicyPart, RecordPart, build_evidence
from trust.evidence_links import witnessed_head
from trust.execution import id_text
from trust.node_key import endorsement_digest
from trust.past_policy import find_policy, with_roots
from trust.permit import PermitClaims, read_claims
from trust.record import Intent, Record, Side, parse_record
from trust.verified import BASE_ROLE
from trust.x509 import load_chain

_KEY_FILE: Final = "key"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where evidence may be found besides the ledgers; everything here may be empty."""

    archives: Mapping[str, Sequence[Place]] = field(
        default_factory=dict
    )  # node -> besides what its ledger names
    # `endorsements` folders of nodes whose ledger is not here; `credentials` beside them is read, too
    endorsements: Sequence[Path] = ()
    repository: Callable[[str], bytes | None] | None = None  # a file of the control plane's, by path
    positions: Sequence[Position] = ()  # where an index says that records are


@dataclass(slots=True)
class _Found:
    parts: list[RecordPart] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    nodes: list[NodePart] = field(default_factory=list)
    anchors: set[bytes] = field(default_factory=set)
    policies: dict[bytes, PolicyPart] = field(default_factory=dict)
    endorsements: set[bytes] = field(default_factory=set)
    intents: list[Intent] = field(default_factory=list)


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


def repository_in(directory: Path) -> Callable[[str], bytes | None]:
    """Return how to read the files of a repository's directory (`repository` in a control plane's `data_dir`).

    Raises:
        InputError: NOT_FOUND, if it is none.
    """
    if not (directory / "metadata").is_dir():
        raise InputError(
            Reason.NOT_FOUND,
            f"{directory} is no repository: there is no folder 'metadata' in it; name 'repository' in the data_dir "
            "of a control plane",
        )

    def read(path: str) -> bytes | None:
        if ".." in PurePosixPath(path).parts:  # whoever wrote the metadata there chose the names in it
            return None
        try:
            return read_at_most(directory / path, limits.MAX_BUNDLE_ARCHIVE_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None

    return read


def export_evidence(
    executions: Sequence[bytes],
    ledgers: Mapping[str, Path],
    *,
    ca_pem: bytes | None = None,
    sources: Sources | None = None,
) -> tuple[bytes, Evidence]:
    """Return the evidence file of `executions` (16-byte ids), and what is in it.

    Args:
        executions: at least one.
        ledgers: node to ledger directory.
        ca_pem: CA certificates to include besides those that the nodes kept.
        sources: where else to look.

    Raises:
        InputError: NOT_FOUND, for an execution that no ledger has, or without any CA certificate.
        EvidenceError: PROOF_INVALID or DIGEST_MISMATCH, for a damaged ledger.
        CapacityError: LIMIT_EXCEEDED.
    """
    sources = sources or Sources()
    readers = {
        node: Reader(directory, archives=[*sources.archives.get(node, ()), *places_of(directory)])
        for node, directory in sorted(ledgers.items())
    }
    found = _Found()
    for node, records in find_records(frozenset(executions), readers, sources.positions).items():
        if records:
            _from_node(found, node, readers[node], dict(sorted(records.items())))
    recorded = {content.execution for content in found.contents}
    missing = [text for text in map(id_text, executions) if text not in recorded]
    if missing:
        raise InputError(
            Reason.NOT_FOUND,
            f"no signed record of {', '.join(missing)} in the ledgers of {', '.join(sorted(ledgers))}; a record is "
            "signed about a second after it was written",
        )
    _add_past_policies(found, sources)
    homes = [path.parent / "endorsements" for path in ledgers.values()]
    folders = [*homes, *sources.endorsements]
    # what others kept of it is asked last: the node itself has every one of its own
    _add_endorsements(found, [*folders, *(folder / PEERS for folder in folders)])
    credentials = _credentials(found.intents, folders)
    if ca_pem is not None:
        found.anchors |= _ders(ca_pem)
    if not found.anchors:
        raise InputError(Reason.NOT_FOUND, "no node kept CA certificates; name the mesh's with --ca CA.pem")
    evidence = Evidence(
        contents=tuple(sorted(found.contents, key=lambda c: c.order)),
        nodes=tuple(found.nodes),
        records=tuple(found.parts),
        policies=tuple(sorted(found.policies.values(), key=lambda p: p.metadata.roles[BASE_ROLE])),
        anchors=tuple(sorted(found.anchors)),
        endorsements=tuple(sorted(found.endorsements)),
        credentials=tuple(sorted(credentials.values())),
        links=_links(credentials.values(), {node.name: readers[node.name] for node in found.nodes}),
    )
    return build_evidence(evidence), evidence


def _credentials(intents: Sequence[Intent], folders: Sequence[Path]) -> dict[bytes, bytes]:
    """Return the trust credentials under which permits were issued, from beside folders `endorsements`."""
    beside = [folder.parent / "credentials" for folder in folders]
    # a running node writes the others later
    newest = [folder.parent / "credential.json" for folder in beside]
    return find_credentials(
        [*beside, *(folder / PEERS for folder in beside)], _attested_by(intents), newest=newest
    )


def missing_policies(evidence: Evidence) -> list[tuple[int, str]]:
    """Return (version, SHA-256 in hex) of each policy that a record or its permit names and the file does not hold."""
    held = {bytes.fromhex(_digest(part)) for part in evidence.policies}
    records = [parse_record(part.record) for part in evidence.records]
    named = _named(record for record in records if isinstance(record, Intent))
    return sorted((version, sha256.hex()) for sha256, (version, _) in named.items() if sha256 not in held)


def missing_credentials(evidence: Evidence) -> list[tuple[str, str]]:
    """Return (node, SHA-256 in hex) of each trust credential that a permit names and the file does not hold."""
    held = {credential_sha256(data) for data in evidence.credentials}
    records = [parse_record(part.record) for part in evidence.records]
    permits = [_permit_of(record) for record in records if isinstance(record, Intent)]
    named = {(p[0].issuer, p[0].credential_sha256) for p in permits if p is not None}
    return sorted((node, sha256.hex()) for node, sha256 in named if sha256 is not None and sha256 not in held)


def _from_node(found: _Found, node: str, reader: Reader, records: Mapping[int, tuple[bytes, Record]]) -> None:
    contents = _contents(node, {index: record for index, (_, record) in records.items()})
    listed = {index for content in contents for index in (content.intent, content.outcome)}
    parsed = {index: record for index, (_, record) in records.items() if index in listed}
    if not parsed:
        return  # an outcome whose intent was archived to where nobody looked
    found.contents += contents
    for index in parsed:
        found.parts.append(RecordPart(node, index, records[index][0], reader.inclusion_proof(index)))
    found.intents += (record for record in parsed.values() if isinstance(record, Intent))
    at_ms = min(record.wall_ms for record in parsed.values())
    home = reader.directory.parent
    endorsement, anchors = read_endorsements(home / "endorsements", at_ms)
    found.anchors |= set() if anchors is None else _ders(anchors)
    key = read_at_most(reader.directory / _KEY_FILE, limits.MAX_NOTE_BYTES).decode("utf-8").strip()
    found.nodes.append(NodePart(node, key, reader.checkpoint_note, endorsement))
    _add_policy(found, home / "tuf", [r for r in parsed.values() if isinstance(r, Intent)])


def _ders(pem: bytes) -> set[bytes]:
    return {certificate.public_bytes(Encoding.DER) for certificate in load_chain(pem)}


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
    """Add the policy that the node has, for the records that name it."""
    cache = PolicyCache(directory)
    try:
        stored = cache.read(0)
    except MeshError:
        return  # a damaged cache: the policy comes from the repository, or verification says that it is missing
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
    if digest in _named(intents):
        # the leases of two nodes may differ, and their root, too: one policy is enough
        part = PolicyPart(stored, tuple((role, data) for role, data in archives.items() if data is not None))
        found.policies.setdefault(digest, part)


def _add_past_policies(found: _Found, sources: Sources) -> None:
    """Add the policies that no node has any more, as they were when they were last decided under, and all roots."""
    if sources.repository is None:
        return
    for sha256, (version, at_ms) in sorted(_named(found.intents).items()):
        if sha256 not in found.policies:
            part = find_policy(sources.repository, version, sha256, at_ms)
            if part is not None:
                found.policies[sha256] = part
        else:  # a node has the roots after the one that it was given; a reader may trust an earlier one
            held = found.policies[sha256]
            stored = with_roots(sources.repository, held.metadata)
            found.policies[sha256] = held if stored is None else PolicyPart(stored, held.archives)


def _named(intents: Iterable[Intent]) -> dict[bytes, tuple[int, int]]:
    """Return digest to (version, last time) of every policy that records and their permits name."""
    named: dict[bytes, tuple[int, int]] = {}
    for intent in intents:
        pairs = [(intent.policy_sha256, intent.policy_version)] if intent.policy_sha256 else []
        permit = _permit_of(intent)
        if permit is not None:
            pairs.append((permit[0].policy_digest, permit[0].policy_version))
        for digest, version in pairs:
            named[digest] = version, max(intent.wall_ms, named.get(digest, (0, 0))[1])
    return named


def _digest(part: PolicyPart) -> str:
    return sha256_of_target(BASE_ROLE, parse_metadata(part.metadata.roles[BASE_ROLE], Targets).signed)


def _add_endorsements(found: _Found, folders: Sequence[Path]) -> None:
    """Add what vouches for the keys that signed the permits, where it is not what vouches for a ledger here."""
    known = {endorsement_digest(node.endorsement) for node in found.nodes if node.endorsement is not None}
    for permit in map(_permit_of, found.intents):
        if permit is None or permit[1] in known:
            continue
        claims, key_id = permit
        known.add(key_id)
        issuer = claims.issuer.rpartition("/")[2]
        own = [folder for folder in folders if issuer in folder.parts]  # likely, and only looked at first
        for folder in dict.fromkeys([*own, *folders]):
            endorsement, anchors = find_endorsement(folder, key_id, claims.issued_s * 1000)
            if endorsement is not None:
                found.endorsements.add(endorsement)
                found.anchors |= set() if anchors is None else _ders(anchors)
                break


def _attested_by(intents: Iterable[Intent]) -> dict[bytes, int]:
    """Return digest to time (Unix ms) of the trust credentials that permits name."""
    named: dict[bytes, int] = {}
    for permit in map(_permit_of, intents):
        if permit is not None and permit[0].credential_sha256 is not None:
            named.setdefault(permit[0].credential_sha256, permit[0].issued_s * 1000)
    return named


def _links(credentials: Iterable[bytes], readers: Mapping[str, Reader]) -> tuple[LinkPart, ...]:
    """Return the proofs that the ledgers in the file continue what the witnesses of their nodes saw."""
    found: dict[tuple[str, int], LinkPart] = {}
    for head in map(witnessed_head, credentials):
        reader = None if head is None else readers.get(head.node)
        if head is None or reader is None or not 0 < head.checkpoint.size < reader.size:
            continue
        try:
            proof = reader.consistency_proof(head.checkpoint.size)
        except MeshError:
            continue  # tiles are missing: verification says what stays open
        found[head.node, head.checkpoint.size] = LinkPart(head.node, head.checkpoint.size, proof)
    return tuple(found[key] for key in sorted(found))


def _permit_of(intent: Intent) -> tuple[PermitClaims, str] | None:
    """Return what the permit of a record says, and its key id; None without one that can be read."""
    try:
        token = intent.permit.decode("ascii")
        return read_claims(token), str(parse_object(from_base64url(token.partition(".")[0]))["kid"])
    except (MeshError, ValueError, KeyError):
        return None  # verification names what is wrong with it
