"""A misbehaviour proof as it travels, and what its verifier trusts beforehand. What it shows: `trust.misbehaviour`."""

import hashlib
from dataclasses import dataclass
from typing import Final, NoReturn

from trust import limits
from trust.attestation.roster import Roster
from trust.compact import from_base64url, parse_object, to_base64url, write_object
from trust.errors import EvidenceError, Reason
from trust.node_key import NODE_KIND, endorsement_times, verify_endorsement
from trust.spiffe import SpiffeId

FORMAT: Final = "egm-misbehaviour/v1"
LEDGER_FORK: Final = "ledger-fork"
LEDGER_SHRUNK: Final = "ledger-shrunk"
COUNTER_BACK: Final = "counter-back"
WITNESS_ROLLBACK: Final = "witness-rollback"
COSIGNED_FORK: Final = "cosigned-fork"
POLICY_BACK: Final = "policy-back"
POLICY_SPLIT: Final = "policy-split"
_MEMBERS: Final = ("format", "kind", "accused", "endorsement", "statements", "proof")
_MAX_PARTS: Final = limits.MAX_ROOT_ROTATIONS


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
class Found:
    """What a judge found."""

    summary: str
    keys: tuple[str, ...] = ()


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


def unproven(what: str) -> NoReturn:
    """Refuse a proof."""
    raise EvidenceError(Reason.MISBEHAVIOUR_UNPROVEN, f"not proven: {what}")


def node_key(proof: Proof, anchors: Anchors) -> tuple[SpiffeId, bytes]:
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


def is_node(text: str, trust_domain: str) -> bool:
    """Return whether `text` is the SPIFFE ID of a node of the trust domain."""
    try:
        spiffe_id = SpiffeId.parse(text)
    except EvidenceError:
        return False
    return (spiffe_id.trust_domain, spiffe_id.kind) == (trust_domain, NODE_KIND)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value
