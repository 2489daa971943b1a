"""Which misbehaviour proof two contradictory statements make; None when they can both be true.

What is made here has not been verified: publish it only after `trust.misbehaviour.verify_proof`.
"""

from collections.abc import Sequence

from trust.attestation.statement import Evidence
from trust.checkpoint import parse_checkpoint
from trust.merkle import HASH_BYTES, grown_roots
from trust.misbehaviour import (
    COSIGNED_FORK,
    LEDGER_FORK,
    POLICY_SPLIT,
    WITNESS_ROLLBACK,
    Proof,
    contradiction,
)
from trust.note import Verifier
from trust.spiffe import SpiffeId


def by_evidence(first: Evidence, second: Evidence, endorsement: bytes) -> bytes | None:
    """Return the proof that two statements of one node key make, in whichever order they contradict each other.

    Args:
        first: signed by the node key that `endorsement` binds.
        second: likewise.
        endorsement: of that key.
    """
    for one, two in ((first, second), (second, first)):
        kind = contradiction(one, two)
        if kind is not None:
            accused = str(one.statement.node)
            return Proof(kind, accused, endorsement, (one.envelope, two.envelope)).encode()
    return None


def by_checkpoints(
    node: SpiffeId,
    one: bytes,
    two: bytes,
    endorsement: bytes,
    *,
    path: Sequence[bytes] = (),
    prefix: bytes = b"",
) -> bytes | None:
    """Return the proof that two checkpoints of one ledger make.

    Args:
        node: whose ledger it is.
        one: checkpoint (C2SP note) signed by the node.
        two: likewise, in any order.
        endorsement: of the node key.
        path: needed when the sizes differ: the consistency proof between them *in the larger tree*, as
            `trust.merkle.consistency_proof` makes it.
        prefix: the root that the larger tree has at the smaller size; needed only when that is a power of two, where
            the path does not show it. Nodes name it to their witnesses (`AttestRequest.cosigned_root`).

    Raises:
        EvidenceError: PROOF_INVALID, for what is no checkpoint or no path.
    """
    heads = sorted(((parse_checkpoint(_text(note)), note) for note in (one, two)), key=lambda h: h[0].size)
    (small, first), (large, second) = heads
    if small.size == large.size:
        forked = small.root != large.root
        return Proof(LEDGER_FORK, str(node), endorsement, (first, second)).encode() if forked else None
    if small.size == 0 or not path:
        return None
    if small.size.bit_count() != 1:
        prefix = grown_roots(small.size, small.root, large.size, path)[0]
    leads = len(prefix) == HASH_BYTES and grown_roots(small.size, prefix, large.size, path) == (
        prefix,
        large.root,
    )
    if not leads or prefix == small.root:
        return None
    return Proof(LEDGER_FORK, str(node), endorsement, (first, second), (prefix, *path)).encode()


def by_credentials(witness: SpiffeId, first: bytes, second: bytes, endorsement: bytes = b"") -> bytes:
    """Return the proof that `witness` vouched for an older state of a node (`second`) after a newer one (`first`).

    Args:
        witness: who is accused.
        first: trust credential with its cosignature.
        second: likewise.
        endorsement: of the witness's node key; empty where the signed roster pins it.
    """
    return Proof(WITNESS_ROLLBACK, str(witness), endorsement, (first, second)).encode()


def by_cosignatures(accused: str, key: Verifier, first: bytes, second: bytes) -> bytes:
    """Return the proof that a cosigner of the roster cosigned two checkpoints that it must not."""
    return Proof(COSIGNED_FORK, accused, b"", (first, second), (key.encode().encode(),)).encode()


def by_metadata(role: str, first: bytes, second: bytes, roots: Sequence[bytes] = ()) -> bytes:
    """Return the proof that a role's quorum signed two contents of one version.

    Args:
        role: "targets", "snapshot" or "timestamp".
        first: TUF metadata with its signatures.
        second: likewise.
        roots: root metadata after the verifier's trust anchor, in order.
    """
    return Proof(POLICY_SPLIT, role, b"", (first, second), tuple(roots)).encode()


def _text(note: bytes) -> bytes:
    return note.rpartition(b"\n\n")[0] + b"\n"
