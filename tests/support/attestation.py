"""Nodes with ledgers and keys, and witnesses with a roster, in memory: what attestation is tested with."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.pki import Authority, now_ms
from trust.attestation.cosignature import attested_text, cosign_attestation
from trust.attestation.credential import log_origin, write_credential
from trust.attestation.measurement import Measurement
from trust.attestation.roster import (
    AttestationSettings,
    LogWitnessSettings,
    Roster,
    WitnessSettings,
    witness_key_name,
)
from trust.attestation.statement import Enforced, Evidence, Statement, sign_evidence
from trust.attestation.witness import Memory, Seen, Submission, View
from trust.checkpoint import Checkpoint, sign_checkpoint
from trust.merkle import CompactTree, consistency_proof, leaf_hash, node_hash
from trust.node_key import endorsement_digest, make_endorsement
from trust.note import KeyKind, Verifier, cosign
from trust.spiffe import SpiffeId

DOMAIN = "mesh.local"
NOW_MS = now_ms()
NOW_S = NOW_MS // 1000
MEASUREMENT = Measurement("1.2.3", b"\x01" * 32, b"\x02" * 32)
BASE = Enforced(7, b"\x07" * 32)
NONCE = b"\x0a" * 32


@dataclass
class WitnessHolder:
    """A witness's key."""

    name: str
    domain: str = DOMAIN
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def key(self) -> Verifier:
        """Its key as it stands under checkpoints."""
        return Verifier(
            witness_key_name(self.domain, self.name),
            self.private.public_key().public_bytes_raw(),
            KeyKind.COSIGNATURE_V1,
        )

    def attest(self, evidence: Evidence, *, time_s: int = NOW_S) -> bytes:
        """Return its line over the evidence."""
        text = attested_text(evidence.statement.node, evidence.sha256)
        return cosign_attestation(text, self.key, self.private.sign, time_s=time_s)

    def log(self, evidence: Evidence, *, time_s: int = NOW_S) -> bytes:
        """Return its cosignature of the checkpoint."""
        text = evidence.statement.checkpoint.partition(b"\n\n")[0] + b"\n"
        return cosign(text, self.key.name, self.private.sign, public_key=self.key.public_key, time_s=time_s)


PARTY = WitnessHolder("w1", "witness.example")
PARTY_KEY = Verifier("witness.example/w1", PARTY.key.public_key, KeyKind.COSIGNATURE_V1)


def third_party(url: str = "https://witness.example/w1") -> dict[str, LogWitnessSettings]:
    """Return a roster's log witness."""
    return {"w1": LogWitnessSettings(key=PARTY_KEY.encode(), url=url)}


class Tree:
    """A ledger: leaves, any root, any proof."""

    def __init__(self, entries: Iterable[bytes] = ()) -> None:
        self.leaves = [leaf_hash(entry) for entry in entries]

    def read(self, level: int, index: int) -> bytes:
        """Return the root of a perfect subtree."""
        if level == 0:
            return self.leaves[index]
        return node_hash(self.read(level - 1, 2 * index), self.read(level - 1, 2 * index + 1))

    def checkpoint(self, origin: str, size: int | None = None) -> Checkpoint:
        """Return the tree head."""
        tree = CompactTree()
        for leaf in self.leaves[:size]:
            tree.append(leaf)
        return Checkpoint(origin, tree.size, tree.root())

    def proof(self, size1: int, size2: int | None = None) -> tuple[bytes, ...]:
        """Return the consistency proof."""
        return consistency_proof(size1, len(self.leaves) if size2 is None else size2, self.read)


@dataclass
class AttestedNode:
    """A node as it gives evidence."""

    name: str = "a"
    ca: Authority = field(default_factory=Authority)
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    tree: Tree = field(default_factory=lambda: Tree([b"one", b"two", b"three"]))
    counter: int = 0

    def __post_init__(self) -> None:
        self.id = SpiffeId.of(DOMAIN, "node", self.name)
        self.endorsement = make_endorsement(self.ca.svid(self.id), self.private.public_key(), NOW_MS)

    def grow(self, *entries: bytes) -> None:
        """Append to the ledger."""
        self.tree.leaves += [leaf_hash(entry) for entry in entries]

    def statement(self, **changes: Any) -> Statement:
        """Return a statement that every witness accepts, with `changes`."""
        public = self.private.public_key().public_bytes_raw()
        note = sign_checkpoint(
            self.tree.checkpoint(log_origin(self.id)), self.private.sign, public_key=public
        )
        right = Statement(
            node=self.id,
            public_key=public,
            issued_s=NOW_S,
            nonces=(NONCE,),
            boot=hashlib.sha256(self.name.encode()).digest()[:8],
            counter=self.counter + 1,
            measurement=MEASUREMENT,
            policy=BASE,
            level=5,
            checkpoint=note,
        )
        return replace(right, **changes)

    def evidence(self, **changes: Any) -> Evidence:
        """Return signed evidence; the counter moves on."""
        made = sign_evidence(
            self.statement(**changes), self.private.sign, key_id=endorsement_digest(self.endorsement)
        )
        self.counter = made.statement.counter
        return made

    def submission(
        self, evidence: Evidence | None = None, *, since: int = 0, consistency: Sequence[bytes] | None = None
    ) -> Submission:
        """Return what the node sends to a witness that saw `since` records."""
        evidence = evidence or self.evidence()
        proof = self.tree.proof(since) if consistency is None else consistency
        return Submission(self.id, evidence.envelope, self.endorsement, proof)


def settings_of(holders: Sequence[WitnessHolder], **changes: Any) -> AttestationSettings:
    """Return the signed settings that name `holders`."""
    return AttestationSettings(
        **{"witnesses": {one.name: WitnessSettings(key=one.key.encode()) for one in holders}, **changes}
    )


def roster_of(holders: Sequence[WitnessHolder], **changes: Any) -> Roster:
    """Return the roster of `holders`; a majority is needed."""
    return Roster.of(settings_of(holders, **changes), DOMAIN)


def holders(*names: str) -> list[WitnessHolder]:
    """Return witnesses with fresh keys."""
    return [WitnessHolder(name) for name in names]


def credential_of(evidence: Evidence, witnesses: Sequence[WitnessHolder], *, time_s: int = NOW_S) -> bytes:
    """Return a credential that `witnesses` signed."""
    return write_credential(
        evidence,
        [one.attest(evidence, time_s=time_s) for one in witnesses],
        [one.log(evidence, time_s=time_s) for one in witnesses],
    )


def view_of(node: AttestedNode, roster: Roster, **changes: Any) -> View:
    """Return what a witness knows that enforces the same policy as `node`."""
    right = View(
        roster=roster,
        bundles={"targets": Seen(BASE, 0)},
        level=5,
        references=None,
        anchors_pem=node.ca.pem,
    )
    return replace(right, **changes)


EMPTY = Memory()
