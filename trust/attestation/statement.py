"""What a node says of itself: one in-toto Statement, read in exactly one encoding (ASCII JSON, members in this order).

    _type, subject       in-toto Statement v1; the subject is the node, its digest that of its measurement
    predicateType        urn:egm:attestation:v1
    predicate            EAT claim names (RFC 9711, RFC 7519, RFC 7800) where there is one:
      eat_profile sub iat   the profile, the node's SPIFFE ID, Unix seconds
      eat_nonce cnf         the nonces of the witnesses that are asked, ascending; the node key that signs
      bootseed counter      which run of the process; counts every statement that the node ever signed
      swname swversion measurements    what runs
      policy level          what it enforces: base and namespaces, each version and digest; the level in force
      checkpoint            its ledger's signed tree head, a C2SP note
      tpm                   only where the signed policy pins the node's TPM: a quote over the statement without it

The digest of these bytes is what witnesses sign, so they vouch for every claim and not for the tree head alone.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trust import limits
from trust.attestation import dsse
from trust.attestation.measurement import Measurement
from trust.attestation.tpm import Quote
from trust.compact import bytes_claim, from_base64url, number_claim, parse_object, to_base64url, write_object
from trust.errors import EvidenceError, MeshError, Reason
from trust.node_key import NODE_KIND
from trust.spiffe import SpiffeId, check_name
from trust.verified import BASE_ROLE

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:egm:attestation:v1"
SOFTWARE_NAME: Final = "egm"
NONCE_BYTES: Final = 32
_KEY_BYTES: Final = 32
_BOOT_BYTES: Final = range(8, 65)
_QUOTED: Final = b"egm-tpm-quote/v1\n"
_MAX_LEVEL: Final = 5
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Enforced:
    """One bundle in force: its version (that of its TUF role) and the SHA-256 of its archive, 32 bytes."""

    version: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Statement:
    """What a node says of itself at one moment."""

    node: SpiffeId
    public_key: bytes  # Ed25519, 32 bytes: the node key that signs the statement
    issued_s: int  # Unix seconds, never going back from one statement of a node to its next
    nonces: tuple[bytes, ...]  # 32 bytes each, ascending
    boot: bytes  # 8 to 64 bytes, new at every start
    counter: int  # 1 and up, across restarts
    measurement: Measurement
    policy: Enforced  # the base bundle
    level: int
    checkpoint: bytes  # C2SP note, signed by the node key
    namespaces: tuple[tuple[str, Enforced], ...] = field(default=())  # by name, ascending
    quote: Quote | None = None  # by the node's TPM, over `quoted_digest`

    def enforced(self) -> dict[str, Enforced]:
        """Return every bundle in force by TUF role; the base bundle under "targets"."""
        return {BASE_ROLE: self.policy, **dict(self.namespaces)}


@dataclass(frozen=True, slots=True)
class Evidence:
    """A statement with the envelope that it came in. Holding one means: the key that it names signed it."""

    statement: Statement
    envelope: bytes  # the bytes as received or sent
    sha256: bytes  # of the statement: what witnesses sign


def sign_evidence(statement: Statement, sign: Callable[[bytes], bytes], *, key_id: str) -> Evidence:
    """Return the statement in its signed envelope.

    Args:
        statement: what the node says.
        sign: makes the Ed25519 signature of `statement.public_key`.
        key_id: digest of the endorsement of that key (`NodeKey.digest`).

    Raises:
        EvidenceError: EVIDENCE_INVALID, naming what no witness would read.
    """
    payload = write_statement(statement)
    return open_evidence(dsse.seal(PAYLOAD_TYPE, payload, key_id=key_id, sign=sign))


def open_evidence(envelope: bytes) -> Evidence:
    """Return the evidence if the key that it names signed it. That this is the node's key, its endorsement proves.

    Raises:
        EvidenceError: EVIDENCE_INVALID.
    """
    parsed = dsse.decode(envelope, max_bytes=limits.MAX_EVIDENCE_STATEMENT_BYTES)
    if parsed.payload_type != PAYLOAD_TYPE:
        raise _invalid(f"its payload is not {PAYLOAD_TYPE}")
    statement = parse_statement(parsed.payload)
    try:
        dsse.verify(parsed, statement.public_key)
    except EvidenceError as error:
        raise _invalid(error.detail) from None
    return Evidence(statement, envelope, hashlib.sha256(parsed.payload).digest())


def evidence_key_id(envelope: bytes) -> str:
    """Return which endorsement vouches for the signing key, unverified.

    Raises:
        EvidenceError: EVIDENCE_INVALID.
    """
    return dsse.decode(envelope, max_bytes=limits.MAX_EVIDENCE_STATEMENT_BYTES).key_id


def quoted_digest(statement: Statement) -> bytes:
    """Return what the node's TPM signs with its quote: a digest of all that the statement says besides, 32 bytes."""
    return hashlib.sha256(_QUOTED + _write(replace(statement, quote=None))).digest()


def write_statement(statement: Statement) -> bytes:
    """Return the one encoding of a statement.

    Raises:
        EvidenceError: EVIDENCE_INVALID, naming what `parse_statement` would refuse.
    """
    data = _write(statement)
    if parse_statement(data) != statement:
        raise _invalid("the statement does not survive its own encoding")
    return data


def parse_statement(data: bytes) -> Statement:
    """Return what `data` says, if it is exactly what `write_statement` writes.

    Raises:
        EvidenceError: EVIDENCE_INVALID.
    """
    try:
        statement = _statement(parse_object(data)["predicate"])
        canonical = _write(statement) == data
    except MeshError as error:
        raise _invalid(error.detail) from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise _invalid("a member is missing or of another kind") from None
    except ValueError as error:
        raise _invalid(str(error)) from None
    if not canonical:
        raise _invalid("it is not in its one encoding")
    return statement


def _write(said: Statement) -> bytes:
    subject = {"name": str(said.node), "digest": {"sha256": said.measurement.sha256.hex()}}
    policy = {
        **_enforced_json(said.policy),
        "ns": {name: _enforced_json(enforced) for name, enforced in said.namespaces},
    }
    predicate: dict[str, Any] = {
        "eat_profile": PREDICATE_TYPE,
        "sub": str(said.node),
        "iat": said.issued_s,
        "eat_nonce": [to_base64url(nonce) for nonce in said.nonces],
        "cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(said.public_key)}},
        "bootseed": to_base64url(said.boot),
        "counter": said.counter,
        "swname": SOFTWARE_NAME,
        "swversion": [said.measurement.version],
        "measurements": [said.measurement.to_json()],
        "policy": policy,
        "level": said.level,
        "checkpoint": said.checkpoint.decode(),
    }
    if said.quote is not None:
        predicate["tpm"] = said.quote.to_json()
    return write_object(
        {
            "_type": STATEMENT_TYPE,
            "subject": [subject],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
    )


def _statement(said: dict[str, Any]) -> Statement:
    """Return what the predicate says; what is not looked at here, writing it again compares."""
    node = SpiffeId.parse(said["sub"])
    check_name(node.name)
    if node.kind != NODE_KIND:
        raise ValueError(f"{node} is not a node")
    nonces = tuple(bytes_claim(nonce, NONCE_BYTES, "eat_nonce") for nonce in said["eat_nonce"])
    if not 1 <= len(nonces) <= limits.MAX_WITNESSES or list(nonces) != sorted(set(nonces)):
        raise ValueError(f"its nonces are not 1 to {limits.MAX_WITNESSES}, ascending, each once")
    boot = from_base64url(said["bootseed"])
    if len(boot) not in _BOOT_BYTES:
        raise ValueError("its bootseed has not 8 to 64 bytes")
    level = number_claim(said["level"], "level")
    counter = number_claim(said["counter"], "counter")
    if level > _MAX_LEVEL or counter == 0:
        raise ValueError("its level or counter is out of bounds")
    (measured,) = said["measurements"]
    namespaces = tuple((check_name(name), _enforced(value)) for name, value in said["policy"]["ns"].items())
    if [name for name, _ in namespaces] != sorted(dict(namespaces)) or len(
        namespaces
    ) > limits.MAX_NAMESPACES:
        raise ValueError("its namespaces are not ascending, each once")
    return Statement(
        node=node,
        public_key=bytes_claim(said["cnf"]["jwk"]["x"], _KEY_BYTES, "cnf"),
        issued_s=number_claim(said["iat"], "iat"),
        nonces=nonces,
        boot=boot,
        counter=counter,
        measurement=Measurement.from_json(measured),
        policy=_enforced(said["policy"]),
        level=level,
        checkpoint=said["checkpoint"].encode(),
        namespaces=namespaces,
        quote=Quote.from_json(said["tpm"]) if "tpm" in said else None,
    )


def _enforced_json(enforced: Enforced) -> dict[str, Any]:
    return {"v": enforced.version, "d": enforced.sha256.hex()}


def _enforced(value: dict[str, Any]) -> Enforced:
    digest = value["d"]
    if not isinstance(digest, str) or _HEX.match(digest) is None:
        raise ValueError("its policy has a digest that is not SHA-256 in lower-case hex")
    return Enforced(number_claim(value["v"], "policy.v"), bytes.fromhex(digest))


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.EVIDENCE_INVALID, f"evidence refused: {what}")
