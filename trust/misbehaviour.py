"""Whether bytes prove that a member signed two things that cannot both be true. Self-contained, verified offline.

    {"format":"egm-misbehaviour/v1","kind":KIND,"accused":WHO,"endorsement":B64,"statements":[B64,B64],"proof":[B64,...]}

One ASCII JSON object, members in this order, no spaces; B64 is base64url without padding. By kind:

    ledger-fork      statements: two checkpoints of one ledger. Sizes equal: the roots differ. Otherwise smaller first,
                     and proof: the root that the larger tree has at the smaller size, then the consistency path of
                     the larger tree from there (32 bytes each)
    ledger-shrunk    statements: two evidence envelopes, the second with the greater counter and the shorter ledger
    counter-back     statements: two different evidence envelopes with one counter, or the second with a later time
                     and a smaller counter
    witness-rollback statements: two trust credentials of one node that the accused witness cosigned, the first before
                     the second, whose counter or ledger is behind the first's; or with ledgers of one size that differ
    cosigned-fork    statements: two checkpoints of one log with cosignatures of the accused: one size and two roots, or
                     the second cosigned later and smaller; proof: the cosigner's key (C2SP verifier key, as text)
    policy-split     statements: two files of metadata of one role and version with different content, both with the
                     role's quorum; proof: roots after the trust anchor, in order

WHO is the SPIFFE ID of a node, the name of a third-party witness, or the TUF role. The endorsement binds a node's key;
it is empty for the last two kinds, and for a witness whose key the signed roster pins. A node that the roster pins can
be accused with that key alone: whoever owns the CA cannot make up another for it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from trust import limits
from trust.attestation.cosignature import attested_text, verify_attestation
from trust.attestation.roster import Roster, Witness, witness_key_name
from trust.attestation.statement import Evidence, open_evidence
from trust.authoring import parse_metadata, signable_bytes
from trust.chain import verify_roots
from trust.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from trust.compact import from_base64url, parse_object, to_base64url, write_object
from trust.errors import EvidenceError, MeshError, Reason
from trust.merkle import grown_roots
from trust.node_key import NODE_KIND, endorsement_times, verify_endorsement
from trust.note import KeyKind, Verifier, open_note
from trust.quorum import quorum_of
from trust.spiffe import SpiffeId

FORMAT: Final = "egm-misbehaviour/v1"
LEDGER_FORK: Final = "ledger-fork"
LEDGER_SHRUNK: Final = "ledger-shrunk"
COUNTER_BACK: Final = "counter-back"
WITNESS_ROLLBACK: Final = "witness-rollback"
COSIGNED_FORK: Final = "cosigned-fork"
POLICY_SPLIT: Final = "policy-split"
_MEMBERS: Final = ("format", "kind", "accused", "endorsement", "statements", "proof")
_MAX_PARTS: Final = limits.MAX_ROOT_ROTATIONS
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof claims, parsed and not verified."""

    kind: str
    accused: str
    endorsement: bytes
    statements: tuple[bytes, bytes]
    proof: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return the one encoding."""
        return write_object(
            {
                "format": FORMAT,
                "kind": self.kind,
                "accused": self.accused,
                "endorsement": to_base64url(self.endorsement),
                "statements": [to_base64url(one) for one in self.statements],
                "proof": [to_base64url(one) for one in self.proof],
            }
        )


@dataclass(frozen=True, slots=True)
class Anchors:
    """What the verifier trusts beforehand; a part that is missing leaves the kinds that need it unproven."""

    trust_domain: str
    ca_pem: bytes = b""
    roster: Roster | None = None  # pins keys of nodes
    root: bytes = b""  # TUF root metadata


@dataclass(frozen=True, slots=True)
class Finding:
    """What was proven. `node` is the SPIFFE ID of a node to quarantine, empty when it is not one that did it."""

    id: str  # SHA-256 of the proof, 64 hexadecimal digits
    kind: str
    accused: str
    node: str
    summary: str  # one sentence for people
    keys: tuple[str, ...] = field(default=())  # key ids of approvers or online keys that signed both


def proof_id(data: bytes) -> str:
    """Return the name of a proof: SHA-256 of its bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_proof(data: bytes) -> Proof:
    """Return what a proof claims, if it is exactly what `Proof.encode` writes; nothing is verified.

    Raises:
        EvidenceError: MISBEHAVIOUR_UNPROVEN.
    """
    if len(data) > limits.MAX_PROOF_BYTES:
        unproven(f"it has {len(data)} bytes, at most {limits.MAX_PROOF_BYTES} are read")
    try:
        value = parse_object(data)
        if tuple(value) != _MEMBERS or value["format"] != FORMAT:
            raise ValueError("other members")
        first, second = (from_base64url(one) for one in value["statements"])
        if not isinstance(value["proof"], list) or len(value["proof"]) > _MAX_PARTS:
            raise ValueError("too many parts")
        proof = Proof(
            _text(value["kind"]),
            _text(value["accused"]),
            from_base64url(value["endorsement"]),
            (first, second),
            tuple(from_base64url(one) for one in value["proof"]),
        )
        canonical = proof.encode() == data
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        unproven("it is not a misbehaviour proof in its one encoding")
    if not canonical:
        unproven("it is not in its one encoding")
    return proof


def verify_proof(data: bytes, anchors: Anchors) -> Finding:
    """Return what the proof shows; every signature and every step is checked here.

    Args:
        data: as received, at most MAX_PROOF_BYTES.
        anchors: what is trusted beforehand.

    Raises:
        EvidenceError: MISBEHAVIOUR_UNPROVEN, saying what is missing; never for want of a network.
    """
    proof = read_proof(data)
    judge = _JUDGES.get(proof.kind)
    if judge is None:
        unproven(f"this version knows no misbehaviour {proof.kind[:40]!r}")
    if proof.statements[0] == proof.statements[1]:
        unproven("both statements are the same")
    try:
        found = judge(proof, anchors)
    except MeshError as error:
        if error.reason is Reason.MISBEHAVIOUR_UNPROVEN:
            raise
        unproven(error.detail)
    node = proof.accused if _is_node(proof.accused, anchors.trust_domain) else ""
    return Finding(proof_id(data), proof.kind, proof.accused, node, found.summary, found.keys)


def unproven(what: str) -> NoReturn:
    """Refuse a proof."""
    raise EvidenceError(Reason.MISBEHAVIOUR_UNPROVEN, f"not proven: {what}")


@dataclass(frozen=True, slots=True)
class _Found:
    summary: str
    keys: tuple[str, ...] = ()


def contradiction(first: Evidence, second: Evidence) -> str | None:
    """Return the kind of misbehaviour that two statements of one key show in this order; None for none.

    Sees what the statements alone show. Ledgers of different sizes that diverge need a consistency path.
    """
    one, two = first.statement, second.statement
    if first.sha256 == second.sha256:
        return None
    if one.counter == two.counter or (two.issued_s > one.issued_s and two.counter < one.counter):
        return COUNTER_BACK
    if two.counter > one.counter and _size(two.checkpoint) < _size(one.checkpoint):
        return LEDGER_SHRUNK
    return None


def _counter_back(proof: Proof, anchors: Anchors) -> _Found:
    node, first, second = _two_evidences(proof, anchors)
    if contradiction(first, second) != COUNTER_BACK:
        unproven("the counters and times of the two statements can both be true")
    one, two = first.statement, second.statement
    if one.counter == two.counter:
        return _Found(f"{node} signed two different statements with the counter {one.counter}")
    return _Found(f"{node} signed the counter {two.counter} after it had signed {one.counter}")


def _ledger_shrunk(proof: Proof, anchors: Anchors) -> _Found:
    node, first, second = _two_evidences(proof, anchors)
    if contradiction(first, second) != LEDGER_SHRUNK:
        unproven("the ledger of the second statement is not shorter than that of the first")
    sizes = [_size(one.statement.checkpoint) for one in (first, second)]
    return _Found(f"{node} signed a ledger of {sizes[1]} records after one of {sizes[0]}")


def _ledger_fork(proof: Proof, anchors: Anchors) -> _Found:
    node, key = _node_key(proof, anchors)
    log = Verifier(f"{node.trust_domain}/{node.path}", key)
    one, two = (open_checkpoint(note, log).checkpoint for note in proof.statements)
    return _Found(f"{node} signed two histories of its ledger: {_differ(one, two, proof.proof)}")


def _cosigned_fork(proof: Proof, anchors: Anchors) -> _Found:
    """Judge a cosigner. It is accused by key: the roster, and not the proof, says whose that is."""
    if len(proof.proof) != 1 or proof.endorsement:
        unproven("one key is expected")
    key = Verifier.parse(proof.proof[0].decode("utf-8", "replace"))
    known = None if anchors.roster is None else _named(anchors.roster, proof.accused, anchors.trust_domain)
    if key.kind is not KeyKind.COSIGNATURE_V1 or known is None or known.key != key:
        unproven(f"the signed roster does not know {proof.accused[:200]} by this key")
    heads: list[Checkpoint] = []
    times: list[int] = []
    for data in proof.statements:
        note = open_note(data, [key])
        heads.append(parse_checkpoint(note.text))
        times.append(note.verified[0].time_s or 0)
    one, two = heads
    if one.origin != two.origin:
        unproven("the two checkpoints are of two logs")
    if one.size == two.size and one.root != two.root:
        return _Found(f"{proof.accused} cosigned two histories of {one.origin} at size {one.size}")
    if times[0] < times[1] and two.size < one.size:
        return _Found(f"{proof.accused} cosigned {one.origin} at size {two.size} after size {one.size}")
    unproven("the two checkpoints can both have been cosigned")


def _witness_rollback(proof: Proof, anchors: Anchors) -> _Found:
    if proof.endorsement:
        node, key = _node_key(proof, anchors)
        verifier = Verifier(witness_key_name(anchors.trust_domain, node.name), key, KeyKind.COSIGNATURE_V1)
        witness = Witness(node.name, verifier, "")
    else:
        roster = anchors.roster
        known = None if roster is None else _named(roster, proof.accused, anchors.trust_domain)
        if known is None:
            unproven(f"the signed roster does not name {proof.accused[:200]}")
        witness = known
    (first, time1), (second, time2) = (_attested(data, witness) for data in proof.statements)
    one, two = first.statement, second.statement
    if one.node != two.node:
        unproven("the two credentials are of two nodes")
    if first.sha256 == second.sha256:
        unproven("it vouched for one and the same evidence")
    heads = [parse_checkpoint(open_note(s.checkpoint, [_log(s)]).text) for s in (one, two)]
    if heads[0].size == heads[1].size and heads[0].root != heads[1].root:
        return _Found(f"{proof.accused} vouched for two histories of the ledger of {one.node}")
    if time1 < time2 and (two.counter <= one.counter or heads[1].size < heads[0].size):
        return _Found(f"{proof.accused} vouched for an older state of {one.node} after a newer one")
    unproven("both can have been vouched for in this order")


def _policy_split(proof: Proof, anchors: Anchors) -> _Found:
    if not anchors.root:
        unproven("a policy split needs the mesh's root metadata")
    root = verify_roots(anchors.root, proof.proof)
    kind: type[Any] | None = {"targets": Targets, "snapshot": Snapshot, "timestamp": Timestamp}.get(
        proof.accused
    )
    if kind is None:
        unproven(f"{proof.accused[:80]!r} is not a role that root delegates to")
    one, two = (parse_metadata(data, kind) for data in proof.statements)
    if one.signed.version != two.signed.version or signable_bytes(one) == signable_bytes(two):
        unproven("the two files are not two contents of one version")
    both = [_signed_by(root, proof.accused, metadata) for metadata in (one, two)]
    keys = tuple(sorted(both[0] & both[1]))
    version = one.signed.version
    return _Found(
        f"two contents of {proof.accused} version {version} carry its quorum; {len(keys)} keys signed both",
        keys,
    )


_JUDGES: Final[Mapping[str, Callable[[Proof, Anchors], _Found]]] = {
    LEDGER_FORK: _ledger_fork,
    LEDGER_SHRUNK: _ledger_shrunk,
    COUNTER_BACK: _counter_back,
    WITNESS_ROLLBACK: _witness_rollback,
    COSIGNED_FORK: _cosigned_fork,
    POLICY_SPLIT: _policy_split,
}
KINDS: Final = tuple(_JUDGES)


def _signed_by(root: Root, role: str, metadata: Metadata[Any]) -> set[str]:
    quorum = quorum_of(root, role, metadata)
    if not quorum.met:
        unproven(f"one of the files lacks its quorum ({quorum.explain()}), so nobody had to accept it")
    return set(quorum.signed)


def _differ(one: Checkpoint, two: Checkpoint, path: Sequence[bytes]) -> str:
    """Say how two tree heads of one log contradict each other."""
    if one.size == two.size:
        if one.root == two.root:
            unproven("both checkpoints have the same tree")
        return f"two trees of size {one.size}"
    if one.size > two.size or not path:
        unproven("checkpoints of different sizes need the smaller one first, and a consistency path")
    if one.size == 0:
        unproven("every tree continues the empty one")
    prefix, *rest = path
    if grown_roots(one.size, prefix, two.size, rest) != (prefix, two.root):
        unproven("the path does not lead to the larger tree")
    if prefix == one.root:
        unproven("the larger tree continues the smaller one")
    return f"the tree of size {two.size} does not continue that of size {one.size}"


def _two_evidences(proof: Proof, anchors: Anchors) -> tuple[SpiffeId, Evidence, Evidence]:
    node, key = _node_key(proof, anchors)
    first, second = (open_evidence(data) for data in proof.statements)
    for one in (first, second):
        if one.statement.node != node or one.statement.public_key != key:
            unproven(f"a statement is not of {node} and its endorsed key")
        open_note(one.statement.checkpoint, [_log(one.statement)])
    return node, first, second


def _node_key(proof: Proof, anchors: Anchors) -> tuple[SpiffeId, bytes]:
    """Return the accused node and the key that its certificate vouched for at that time."""
    if not anchors.ca_pem:
        unproven("whose key it is needs the mesh's CA certificates")
    at_ms = endorsement_times(proof.endorsement)[0]
    key = verify_endorsement(proof.endorsement, anchors.ca_pem, anchors.trust_domain, at_ms)
    if str(key.node) != proof.accused:
        unproven(f"the endorsed key is of {key.node}, not of {proof.accused[:200]}")
    raw = key.public_key.public_bytes_raw()
    pinned = None if anchors.roster is None else anchors.roster.witnesses.get(key.node.name)
    if pinned is not None and pinned.key.public_key != raw:
        unproven(f"the signed roster pins another key for {key.node}")
    return key.node, raw


def _named(roster: Roster, accused: str, trust_domain: str) -> Witness | None:
    """Return the witness of the roster that `accused` stands for: a node's SPIFFE ID, or a third party's name."""
    if _is_node(accused, trust_domain):
        return roster.witnesses.get(SpiffeId.parse(accused).name)
    return roster.log_witnesses.get(accused)


def _attested(data: bytes, witness: Witness) -> tuple[Evidence, int]:
    """Return the evidence in a credential and when `witness` vouched for it."""
    try:
        value = parse_object(data)
        envelope, lines = write_object(value["evidence"]), value["attested"].encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        unproven("a statement is not a trust credential")
    evidence = open_evidence(envelope)
    text = attested_text(evidence.statement.node, evidence.sha256)
    times = verify_attestation(text, lines, [witness]).times_s
    if witness.name not in times:
        unproven(f"{witness.name} vouched for only one of the two")
    return evidence, times[witness.name]


def _log(said: Any) -> Verifier:
    return Verifier(f"{said.node.trust_domain}/{said.node.path}", said.public_key)


def _size(note: bytes) -> int:
    """Return the size in a checkpoint whose form was checked, or -1."""
    try:
        return parse_checkpoint(note.rpartition(b"\n\n")[0] + b"\n").size
    except EvidenceError:
        return -1


def _is_node(text: str, trust_domain: str) -> bool:
    try:
        spiffe_id = SpiffeId.parse(text)
    except EvidenceError:
        return False
    return (spiffe_id.trust_domain, spiffe_id.kind) == (trust_domain, NODE_KIND)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value
