"""What exists before the first event: keys, root of trust, what policy says, and how a node reads it.

Keys are derived from names, so that every run signs the same bytes. Every signature is a real Ed25519 one; what was
verified once is remembered (a pure function), because many members verify the same bytes.
"""

import functools
import hashlib
import json
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from tests.sim.kernel import START_MS
from tests.support.emergency import EmergencyKey
from tests.support.tuf_world import public
from trust.keys import NAME_FIELD
from trust.node_key import NodeKey, endorsement_digest
from trust.repository import Holders, OnlineSigners, new_root, sign
from trust.spiffe import SpiffeId

DOMAIN = "mesh.local"
NODES = ("n0", "n1", "n2", "n3")  # all are witnesses; 3 of them are the quorum, so one may lie
QUORUM = 3
CALLERS, CALLEES = ("n0", "n3"), ("n1", "n2")
REFUND = "shop.Payments/Refund"  # needs approvers
RESTOCK = "shop.Stock/Restock"  # is a namespace's
APPROVERS = ("ann", "ben", "cleo")
LEASE_MS, GRACE_MS = 4_000, 4_000
TRUST_TTL_MS, MAX_LAG_MS = 6_000, 3_000
EMERGENCY = EmergencyKey("emergency-1")
STRANGER = EmergencyKey("stranger")  # signs like one, and no policy names it


@functools.cache
def key_of(name: str) -> Ed25519PrivateKey:
    """Return the key that a name has in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"sim {name}".encode()).digest())


@functools.cache
def signer(name: str) -> CryptoSigner:
    """Return who signs metadata with the key of a name."""
    made = CryptoSigner(key_of(name))
    made.public_key.unrecognized_fields[NAME_FIELD] = name
    return made


@dataclass(frozen=True)
class Keys:
    """Who may sign, under one root. Two must, where there are three."""

    holders: tuple[CryptoSigner, ...]
    approvers: tuple[CryptoSigner, ...]
    online: OnlineSigners

    def root(self, version: int = 1) -> Metadata[Root]:
        """Return root metadata that names them, unsigned."""
        metadata = new_root(
            trust_domain=DOMAIN,
            root=Holders(public(self.holders), 2),
            approvers=Holders(public(self.approvers), 2),
            snapshot=self.online.snapshot.public_key,
            timestamp=self.online.timestamp.public_key,
            now_ms=START_MS - 60_000,
        )
        metadata.signed.version = version
        return metadata


@functools.cache
def keys_named(kind: str = "") -> Keys:
    """Return three root holders, three approvers and the online keys; those of the beginning, or others."""
    return Keys(
        tuple(signer(f"{kind}root-{index}") for index in range(3)),
        tuple(signer(f"{kind}approver-{index}") for index in range(3)),
        OnlineSigners(signer(f"{kind}snapshot"), signer(f"{kind}timestamp")),
    )


@functools.cache
def root() -> bytes:
    """The trust anchor."""
    keys = keys_named()
    metadata = keys.root()
    for holder in keys.holders[:2]:
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


_MOST_KNOWN = 200_000
_known: dict[tuple[bytes, bytes, bytes], bool] = {}  # key, signature, message -> whether it verifies


def _verified(key: bytes, signature: bytes, message: bytes) -> bool:
    signed = (key, signature, message)
    known = _known.get(signed)
    return _remembered(signed, good=_verify(*signed)) if known is None else known


def _remembered(signed: tuple[bytes, bytes, bytes], *, good: bool) -> bool:
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[signed] = good
    return good


def _verify(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


class SigningKey:
    """A private key: what it signed itself need not be verified any more."""

    def __init__(self, name: str) -> None:
        self._private = key_of(name)
        self.public = self._private.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Sign."""
        signature = self._private.sign(data)
        _remembered((self.public, signature, data), good=True)
        return signature


@functools.cache
def signing_key(name: str) -> SigningKey:
    """Return the key of a name, as members sign with it."""
    return SigningKey(name)


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
