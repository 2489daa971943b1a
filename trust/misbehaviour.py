"""Whether bytes prove that a member signed two things that cannot both be true. Self-contained, verified offline.

    {"format":"egm-misbehaviour/v1","kind":KIND,"accused":WHO,"endorsement":B64,"statements":[B64,B64],"proof":[B64,...]}

One ASCII JSON object, members in this order, no spaces; B64 is base64url without padding. By kind:

    ledger-fork      statements: two checkpoints of one ledger. Sizes equal: the roots differ. Otherwise smaller first,
                     and proof: the root that the larger tree has at the smaller size, then the consistency path of
                     the larger tree from there (32 bytes each)
    ledger-shrunk    statements: two evidence envelopes, the second with the greater counter and the shorter ledger
    counter-back     statements: two different evidence envelopes with one counter, or the second with a later time
                     and a smaller counter
    policy-back      statements: two evidence envelopes, the second with the greater counter and an older version of a
                     bundle that both enforce
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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from trust.attestation.credential import log_verifier
from trust.attestation.statement import Evidence, open_evidence
from trust.authoring import parse_metadata, signable_bytes
from trust.chain import verify_roots
from trust.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from trust.errors import EvidenceError, MeshError, Reason
from trust.merkle import grown_roots
from trust.misbehaviour_cosigners import cosigned_fork, witness_rollback
from trust.misbehaviour_proof import (
    COSIGNED_FORK,
    COUNTER_BACK,
    FORMAT,
    LEDGER_FORK,
    LEDGER_SHRUNK,
    POLICY_BACK,
    POLICY_SPLIT,
    WITNESS_ROLLBACK,
    Anchors,
    Found,
    Proof,
    is_node,
    node_key,
    proof_id,
    read_proof,
    unproven,
)
from trust.note import Verifier, open_note
from trust.quorum import quorum_of
from trust.spiffe import SpiffeId

__all__ = [
    "COSIGNED_FORK",
    "COUNTER_BACK",
    "FORMAT",
    "KINDS",
    "LEDGER_FORK",
    "LEDGER_SHRUNK",
    "POLICY_BACK",
    "POLICY_SPLIT",
    "WITNESS_ROLLBACK",
    "Anchors",
    "Finding",
    "Proof",
    "contradiction",
    "proof_id",
    "read_proof",
    "unproven",
    "verify_proof",
]

_NAMED_KEYS: Final = 8  # that the sentence for people names; all are in `Finding.keys`


@dataclass(frozen=True, slots=True)
class Finding:
    """What was proven. `node` is the SPIFFE ID of a node to quarantine, empty when it is not one that did it."""

    id: str  # SHA-256 of the proof, 64 hexadecimal digits
    kind: str
    accused: str
    node: str
    summary: str  # one sentence for people
    keys: tuple[str, ...] = field(default=())  # key ids of approvers or online keys that signed both


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
    node = proof.accused if is_node(proof.accused, anchors.trust_domain) else ""
    return Finding(proof_id(data), proof.kind, proof.accused, node, found.summary, found.keys)


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
    if two.counter > one.counter and _older_roles(first, second):
        return POLICY_BACK
    return None


def _counter_back(proof: Proof, anchors: Anchors) -> Found:
    node, first, second = _two_evidences(proof, anchors)
    if contradiction(first, second) != COUNTER_BACK:
        unproven("the counters and times of the two statements can both be true")
    one, two = first.statement, second.statement
    if one.counter == two.counter:
        return Found(f"{node} signed two different statements with the counter {one.counter}")
    return Found(f"{node} signed the counter {two.counter} after it had signed {one.counter}")


def _ledger_shrunk(proof: Proof, anchors: Anchors) -> Found:
    node, first, second = _two_evidences(proof, anchors)
    if contradiction(first, second) != LEDGER_SHRUNK:
        unproven("the ledger of the second statement is not shorter than that of the first")
    sizes = [_size(one.statement.checkpoint) for one in (first, second)]
    return Found(f"{node} signed a ledger of {sizes[1]} records after one of {sizes[0]}")


def _older_roles(first: Evidence, second: Evidence) -> list[str]:
    """Return the TUF roles of which the second statement enforces an older version; one that is gone is none."""
    now = second.statement.enforced()
    return [
        role
        for role, before in first.statement.enforced().items()
        if role in now and now[role].version < before.version
    ]


def _policy_back(proof: Proof, anchors: Anchors) -> Found:
    node, first, second = _two_evidences(proof, anchors)
    roles = _older_roles(first, second)
    if second.statement.counter <= first.statement.counter or not roles:
        unproven(
            "no bundle of the second statement is older than in the first, or it is the earlier statement"
        )
    before, now = (one.statement.enforced()[roles[0]].version for one in (first, second))
    return Found(f"{node} signed that it enforces {roles[0]} version {now} after version {before}")


def _ledger_fork(proof: Proof, anchors: Anchors) -> Found:
    node, key = node_key(proof, anchors)
    log = Verifier(f"{node.trust_domain}/{node.path}", key)
    one, two = (open_checkpoint(note, log).checkpoint for note in proof.statements)
    return Found(f"{node} signed two histories of its ledger: {_differ(one, two, proof.proof)}")


def _policy_split(proof: Proof, anchors: Anchors) -> Found:
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
    return Found(
        f"two contents of {proof.accused} version {version} carry its quorum; {len(keys)} keys signed both: "
        f"{', '.join(keys[:_NAMED_KEYS]) or 'none'}{', ...' if len(keys) > _NAMED_KEYS else ''}",
        keys,
    )


_JUDGES: Final[Mapping[str, Callable[[Proof, Anchors], Found]]] = {
    LEDGER_FORK: _ledger_fork,
    LEDGER_SHRUNK: _ledger_shrunk,
    COUNTER_BACK: _counter_back,
    POLICY_BACK: _policy_back,
    WITNESS_ROLLBACK: witness_rollback,
    COSIGNED_FORK: cosigned_fork,
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
    node, key = node_key(proof, anchors)
    first, second = (open_evidence(data) for data in proof.statements)
    for one in (first, second):
        if one.statement.node != node or one.statement.public_key != key:
            unproven(f"a statement is not of {node} and its endorsed key")
        open_note(one.statement.checkpoint, [log_verifier(one)])
    return node, first, second


def _size(note: bytes) -> int:
    """Return the size in a checkpoint whose form was checked, or -1."""
    try:
        return parse_checkpoint(note.rpartition(b"\n\n")[0] + b"\n").size
    except EvidenceError:
        return -1
