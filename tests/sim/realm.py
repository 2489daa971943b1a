"""What exists before the first event: keys, root of trust, what policy says, and how a node reads it.

Keys are derived from names, so that every run signs the same bytes. Every signature is a real Ed25519 one; what was
verified once is remembered (a pure function), because many members verify the same bytes.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner

from tests.sim.kernel import START_MS
from tests.support.emergency import EmergencyKey
from tests.support.sidecar_core import ALICE, ALLOW, PAY, RuleDecider
from tests.support.tuf_world import public
from trust.attestation.roster import AttestationSettings, WitnessSettings, witness_key_name
from trust.keys import NAME_FIELD
from trust.mesh import LeaseSettings, MeshSettings, PermanentRevocation
from trust.node_key import NodeKey, endorsement_digest
from trust.note import KeyKind, Verifier
from trust.repository import Holders, OnlineSigners, new_root, sign
from trust.spiffe import SpiffeId

DOMAIN = "mesh.local"
NODES = ("n0", "n1", "n2", "n3")  # all are witnesses; 3 of them are the quorum, so one may lie
QUORUM = 3
CALLERS, CALLEES = ("n0", "n3"), ("n1", "n2")
PAYMENTS = f"spiffe://{DOMAIN}/workload/payments"
LEASE_MS, GRACE_MS = 4_000, 4_000
TRUST_TTL_MS, MAX_LAG_MS = 6_000, 3_000
EMERGENCY = EmergencyKey("emergency-1")
STRANGER = EmergencyKey("stranger")  # signs like one, and no policy names it


def key_of(name: str) -> Ed25519PrivateKey:
    """Return the key that a name has in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"sim {name}".encode()).digest())


def _signer(name: str) -> CryptoSigner:
    made = CryptoSigner(key_of(name))
    made.public_key.unrecognized_fields[NAME_FIELD] = name
    return made


@functools.cache
def approvers() -> tuple[CryptoSigner, ...]:
    """Three approvers; two must sign."""
    return tuple(_signer(f"approver-{index}") for index in range(3))


@functools.cache
def online() -> OnlineSigners:
    """The control plane's keys."""
    return OnlineSigners(_signer("snapshot"), _signer("timestamp"))


@functools.cache
def root() -> bytes:
    """The trust anchor."""
    holders = [_signer(f"root-{index}") for index in range(3)]
    metadata = new_root(
        trust_domain=DOMAIN,
        root=Holders(public(holders), 2),
        approvers=Holders(public(approvers()), 2),
        snapshot=online().snapshot.public_key,
        timestamp=online().timestamp.public_key,
        now_ms=START_MS - 60_000,
    )
    for holder in holders[:2]:
        metadata = sign(metadata, holder, metadata.signed)
    return metadata.to_bytes()


@dataclass(frozen=True)
class Settings:
    """What one bundle says. It is the archive's content: JSON instead of Cedar, which is tested elsewhere."""

    may_pay: bool
    ended: tuple[str, ...] = ()
    permanent: tuple[str, ...] = ()  # workloads
    released: tuple[str, ...] = ()
    serial: int = 0

    def archive(self) -> bytes:
        """Return the bytes that approvers sign."""
        return json.dumps(self.__dict__, sort_keys=True).encode()


@functools.cache
def _witnesses() -> AttestationSettings:
    return AttestationSettings(
        witnesses={
            name: WitnessSettings(
                key=Verifier(
                    witness_key_name(DOMAIN, name),
                    key_of(name).public_key().public_bytes_raw(),
                    KeyKind.COSIGNATURE_V1,
                ).encode()
            )
            for name in NODES
        },
        ttl_s=TRUST_TTL_MS // 1000,
        max_lag_s=MAX_LAG_MS // 1000,
    )


@functools.lru_cache(maxsize=256)
def engine_of(archive: bytes) -> RuleDecider:
    """Return the rules and signed settings of an archive; level 5 everywhere."""
    said: dict[str, Any] = json.loads(archive)
    settings = MeshSettings(
        trust_domain=DOMAIN,
        level=5,
        lease=LeaseSettings(ttl_s=LEASE_MS // 1000, grace_s=GRACE_MS // 1000),
        attestation=_witnesses(),
        emergency_keys={EMERGENCY.name: EMERGENCY.public.hex()},
        revocations=tuple(
            PermanentRevocation(kind="workload", value=one, reason="for good") for one in said["permanent"]
        ),
        ended_revocations=tuple(said["ended"]),
        released_proofs=tuple(said["released"]),
    )
    rules = {(ALICE, PAY): ALLOW} if said["may_pay"] else {}
    return RuleDecider(mesh=settings, rules=rules)


# node keys: a certificate authority by table (X.509 is tested elsewhere)


def endorsement_of(name: str) -> bytes:
    """Return what vouches for a node's key."""
    return f"endorsement of {name}".encode()


def endorsed(data: bytes) -> NodeKey:
    """Stand in for `verify_endorsement`: the table of the simulated CA."""
    name = data.decode().removeprefix("endorsement of ")
    if name not in NODES:
        from trust.errors import EvidenceError, Reason

        raise EvidenceError(Reason.PERMIT_INVALID, "endorsement of a node key refused: no such node")
    node = SpiffeId.of(DOMAIN, "node", name)
    return NodeKey(node, key_of(name).public_key(), 2**52, endorsement_digest(data))


@functools.lru_cache(maxsize=100_000)
def _verified(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


class RememberedKey:
    """An Ed25519 public key whose verifications are real, each once."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @classmethod
    def from_public_bytes(cls, raw: bytes) -> "RememberedKey":
        """As the real one."""
        return cls(raw)

    def verify(self, signature: bytes, message: bytes) -> None:
        """As the real one."""
        if not _verified(self._raw, signature, message):
            raise InvalidSignature
