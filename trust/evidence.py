"""What an evidence file holds: one JSON document in one accepted encoding, everything in it bounded.

It carries records (with the permits in them) and their proofs, the checkpoints and keys of the nodes and what vouches
for those keys, the policies that were in force with their metadata, and CA certificates, so that
`trust.evidence_verify` needs nothing else but the root metadata and the CA that the reader already trusts. Reading
one proves nothing. Every field is described in docs/evidence.md.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from trust import limits
from trust.chain import Stored
from trust.compact import parse_object, write_object
from trust.errors import CapacityError, EvidenceError, Reason
from trust.merkle import HASH_BYTES, MAX_SIZE
from trust.record import Side
from trust.verified import BASE_ROLE

T = TypeVar("T")
FORMAT: Final = "egm-evidence/4"
FIRST_FORMAT: Final = "egm-evidence/1"
SECOND_FORMAT: Final = "egm-evidence/2"
THIRD_FORMAT: Final = "egm-evidence/3"
# what is still read and no longer written, with the members that came later
_EARLIER: Final = {
    FIRST_FORMAT: frozenset({"endorsements", "credentials", "links"}),
    SECOND_FORMAT: frozenset({"credentials", "links"}),
    THIRD_FORMAT: frozenset({"links"}),
}
_MEMBERS: Final = frozenset(
    {"format", "contents", "nodes", "records", "policies", "anchors", "endorsements", "credentials", "links"}
)
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_SIDES: Final = {side.name.lower(): side for side in Side}
_MAX_NAME_CHARS: Final = 255
_MAX_PROOF_HASHES: Final = 63


@dataclass(frozen=True, slots=True)
class Content:
    """One side of one execution that the file covers: where its records are in the node's ledger."""

    execution: str  # UUIDv7 as text
    node: str
    side: Side
    intent: int
    outcome: int | None  # None: the file has none; a refused call never has one

    @property
    def order(self) -> tuple[str, str, int]:
        """Where it stands among the others."""
        return self.execution, self.node, self.side


@dataclass(frozen=True, slots=True)
class NodePart:
    """A node: its log's C2SP verifier key, its signed checkpoint, and the endorsement of its key if there is one."""

    name: str
    key: str
    checkpoint: bytes
    endorsement: bytes | None


@dataclass(frozen=True, slots=True)
class RecordPart:
    """A record's bytes, its index in the node's ledger, and its inclusion proof under the node's checkpoint."""

    node: str
    index: int
    record: bytes
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PolicyPart:
    """One policy: TUF metadata files and the bundle archive of each role."""

    metadata: Stored
    archives: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class LinkPart:
    """A consistency proof: the node's ledger at `size`, as a credential here has it, to its checkpoint here."""

    node: str
    size: int
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """An evidence file, well-formed and otherwise unverified. Lists are in ascending order, without repetition."""

    contents: tuple[Content, ...]
    nodes: tuple[NodePart, ...]
    records: tuple[RecordPart, ...]
    policies: tuple[PolicyPart, ...]  # in the order of their base archives' metadata (`targets`)
    anchors: tuple[bytes, ...]  # CA certificates, DER
    endorsements: tuple[bytes, ...] = ()  # of keys that signed permits, besides those of `nodes`
    credentials: tuple[bytes, ...] = ()  # trust credentials that permits name
    links: tuple[LinkPart, ...] = ()  # from the tree heads in them to the checkpoints of `nodes`


def build_evidence(evidence: Evidence) -> bytes:
    """Return the file. What `parse_evidence` would refuse is not written.

    Raises:
        EvidenceError: PROOF_INVALID, naming the place.
        CapacityError: LIMIT_EXCEEDED.
    """
    data = _write(_to_json(evidence))
    if parse_evidence(data) != evidence:
        raise EvidenceError(Reason.PROOF_INVALID, "the evidence has no encoding that reads back as the same")
    return data


def parse_evidence(data: bytes) -> Evidence:
    """Return what the file holds, if it is the one encoding of it. Total over arbitrary bytes.

    Raises:
        EvidenceError: PROOF_INVALID, naming the place.
        CapacityError: LIMIT_EXCEEDED, for a file over `limits.MAX_EVIDENCE_BYTES`.
    """
    if len(data) > limits.MAX_EVIDENCE_BYTES:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED,
            f"the file has {len(data)} bytes; at most {limits.MAX_EVIDENCE_BYTES} are read: export fewer executions",
        )
    try:
        document = parse_object(data)
    except (ValueError, RecursionError):
        _refuse("the file", "it is not one ASCII JSON object; it may be cut off")
    if document.get("format") not in (FORMAT, *_EARLIER):  # a tuple: it may be anything
        _refuse("format", f"this version reads {', '.join((*_EARLIER, FORMAT))}; upgrade to read newer")
    evidence = _document(document)
    if _write(document) != data:
        _refuse("the file", "another encoding than the one with sorted members and no spaces")
    return evidence


def _refuse(where: str, what: str) -> NoReturn:
    raise EvidenceError(Reason.PROOF_INVALID, f"{where}: {what}")


def _write(document: dict[str, Any]) -> bytes:
    return write_object(_sorted(document)) + b"\n"


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _to_json(evidence: Evidence) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "contents": [
            {
                "execution": c.execution,
                "node": c.node,
                "side": c.side.name.lower(),
                "intent": c.intent,
                "outcome": c.outcome,
            }
            for c in evidence.contents
        ],
        "nodes": [
            {
                "name": n.name,
                "key": n.key,
                "checkpoint": _b64(n.checkpoint),
                "endorsement": None if n.endorsement is None else _b64(n.endorsement),
            }
            for n in evidence.nodes
        ],
        "records": [
            {"node": r.node, "index": r.index, "record": _b64(r.record), "proof": [_b64(h) for h in r.proof]}
            for r in evidence.records
        ],
        "policies": [
            {
                "roots": [_b64(root) for root in p.metadata.roots],
                "timestamp": _b64(p.metadata.timestamp),
                "snapshot": _b64(p.metadata.snapshot),
                "roles": [
                    {"role": role, "metadata": _b64(p.metadata.roles[role]), "archive": _b64(archive)}
                    for role, archive in p.archives
                ],
            }
            for p in evidence.policies
        ],
        "anchors": [_b64(anchor) for anchor in evidence.anchors],
        "endorsements": [_b64(endorsement) for endorsement in evidence.endorsements],
        "credentials": [_b64(credential) for credential in evidence.credentials],
        "links": [
            {"node": one.node, "size": one.size, "proof": [_b64(h) for h in one.proof]}
            for one in evidence.links
        ],
    }


def _document(document: dict[str, Any]) -> Evidence:
    absent = _EARLIER.get(document["format"], frozenset())
    _members(document, "the file", set(_MEMBERS - absent))
    contents = _list(document, "contents", limits.MAX_EVIDENCE_RECORDS, _content)
    nodes = _list(document, "nodes", limits.MAX_EVIDENCE_NODES, _node)
    records = _list(document, "records", limits.MAX_EVIDENCE_RECORDS, _record)
    policies = _list(document, "policies", limits.MAX_EVIDENCE_POLICIES, _policy)
    anchors = _list(document, "anchors", limits.MAX_EVIDENCE_ANCHORS, _bytes)
    document = {name: [] for name in absent} | document
    endorsements = _list(document, "endorsements", limits.MAX_EVIDENCE_ENDORSEMENTS, _bytes)
    credentials = _list(document, "credentials", limits.MAX_EVIDENCE_CREDENTIALS, _bytes)
    links = _list(document, "links", limits.MAX_EVIDENCE_CREDENTIALS, _link)
    _ascending("contents", [c.order for c in contents])
    _ascending("nodes", [n.name for n in nodes])
    _ascending("records", [(r.node, r.index) for r in records])
    _ascending("policies", [p.metadata.roles[BASE_ROLE] for p in policies])
    _ascending("anchors", anchors)
    _ascending("endorsements", endorsements)
    _ascending("credentials", credentials)
    _ascending("links", [(one.node, one.size) for one in links])
    for name, found in (("contents", contents), ("anchors", anchors)):
        if not found:
            _refuse(name, "it is empty")
    return Evidence(contents, nodes, records, policies, anchors, endorsements, credentials, links)


def _content(value: Any, where: str) -> Content:
    item = _members(value, where, {"execution", "node", "side", "intent", "outcome"})
    execution = item["execution"]
    if not isinstance(execution, str) or _ID.match(execution) is None:
        _refuse(f"{where}.execution", "not a UUIDv7")
    side = item["side"]
    if not isinstance(side, str) or side not in _SIDES:
        _refuse(f"{where}.side", "neither outbound nor inbound")
    outcome = item["outcome"]
    return Content(
        execution,
        _text(item["node"], f"{where}.node"),
        _SIDES[side],
        _index(item["intent"], f"{where}.intent"),
        None if outcome is None else _index(outcome, f"{where}.outcome"),
    )


def _node(value: Any, where: str) -> NodePart:
    item = _members(value, where, {"name", "key", "checkpoint", "endorsement"})
    endorsement = item["endorsement"]
    return NodePart(
        _text(item["name"], f"{where}.name"),
        _text(item["key"], f"{where}.key", 2 * _MAX_NAME_CHARS),
        _bytes(item["checkpoint"], f"{where}.checkpoint"),
        None if endorsement is None else _bytes(endorsement, f"{where}.endorsement"),
    )


def _record(value: Any, where: str) -> RecordPart:
    item = _members(value, where, {"node", "index", "record", "proof"})
    return RecordPart(
        _text(item["node"], f"{where}.node"),
        _index(item["index"], f"{where}.index"),
        _bytes(item["record"], f"{where}.record"),
        _hashes(item, _MAX_PROOF_HASHES, where),
    )


def _link(value: Any, where: str) -> LinkPart:
    item = _members(value, where, {"node", "size", "proof"})
    return LinkPart(
        _text(item["node"], f"{where}.node"),
        _index(item["size"], f"{where}.size"),
        _hashes(item, limits.MAX_CONSISTENCY_HASHES, where),
    )


def _hashes(item: dict[str, Any], most: int, where: str) -> tuple[bytes, ...]:
    proof = _list(item, "proof", most, _bytes, where)
    for number, part in enumerate(proof):
        if len(part) != HASH_BYTES:
            _refuse(f"{where}.proof[{number}]", f"not {HASH_BYTES} bytes")
    return proof


def _policy(value: Any, where: str) -> PolicyPart:
    item = _members(value, where, {"roots", "timestamp", "snapshot", "roles"})
    roles = _list(item, "roles", limits.MAX_NAMESPACES + 1, _role, where)
    names = [name for name, _, _ in roles]
    _ascending(f"{where}.roles", names)
    if BASE_ROLE not in names:
        _refuse(f"{where}.roles", f"the role {BASE_ROLE} is missing")
    stored = Stored(
        roots=_list(item, "roots", limits.MAX_ROOT_ROTATIONS, _bytes, where),
        timestamp=_bytes(item["timestamp"], f"{where}.timestamp"),
        snapshot=_bytes(item["snapshot"], f"{where}.snapshot"),
        roles={name: metadata for name, metadata, _ in roles},
    )
    return PolicyPart(stored, tuple((name, archive) for name, _, archive in roles))


def _role(value: Any, where: str) -> tuple[str, bytes, bytes]:
    item = _members(value, where, {"role", "metadata", "archive"})
    return (
        _text(item["role"], f"{where}.role"),
        _bytes(item["metadata"], f"{where}.metadata"),
        _bytes(item["archive"], f"{where}.archive"),
    )


def _members(value: Any, where: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        _refuse(where, "its members are not exactly " + ", ".join(sorted(names)))
    return value


def _list(
    parent: dict[str, Any], name: str, most: int, read: Callable[[Any, str], T], within: str = ""
) -> tuple[T, ...]:
    where = f"{within}.{name}" if within else name
    value = parent[name]
    if not isinstance(value, list) or len(value) > most:
        _refuse(where, f"not a list of at most {most}")
    return tuple(read(item, f"{where}[{number}]") for number, item in enumerate(value))


def _ascending(where: str, keys: Sequence[Any]) -> None:
    for number in range(1, len(keys)):
        if not keys[number - 1] < keys[number]:
            _refuse(f"{where}[{number}]", "out of order, or there twice")


def _bytes(value: Any, where: str) -> bytes:
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if data and _b64(data) == value:
            return data
    _refuse(where, "not canonical base64 of at least one byte")


def _text(value: Any, where: str, most: int = _MAX_NAME_CHARS) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
        _refuse(where, f"not a text of 1 to {most} printable characters")
    return value


def _index(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < MAX_SIZE:
        _refuse(where, "not an index")
    return value
