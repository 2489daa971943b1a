"""Whether a permit allows one execution: minted by a vouched node, for this caller, callee, method, bytes and time.

A permit is a JWT in one spelling only (docs/protocol.md):

    header  {"alg":"EdDSA","typ":"egm-permit+jwt","kid":KEY}       exactly these bytes
    claims  iss, sub, aud, iat, exp, jti, txn, eid, [parent,] mth, [req,] bnd {v, d}, cnf {x5t#S256}

The compact form is written and read here rather than by joserfc, because joserfc warns at every use of the name
EdDSA (which Envoy needs) and because a header of fixed bytes leaves no room for another algorithm, type or a
critical extension. Tests hold both directions equal to joserfc's.
"""

import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from trust import limits
from trust.compact import from_base64url, parse_object, to_base64url, write_object
from trust.errors import EvidenceError, Reason, StateError
from trust.node_key import ENDORSEMENT_KEY, NodeKey
from trust.x509 import load_certificate

__all__ = [
    "ENDORSEMENT_KEY",
    "PERMIT_KEY",
    "PERMIT_TYPE",
    "Permit",
    "PermitClaims",
    "authenticate",
    "certificate_sha256",
    "check_binding",
    "format_id",
    "mint",
    "permit_sha256",
    "read_claims",
    "verify",
]

PERMIT_KEY: Final = "egm-permit"  # gRPC metadata key
PERMIT_TYPE: Final = "egm-permit+jwt"
ALGORITHM: Final = "EdDSA"
_SIGNATURE_CHARS: Final = 86  # 64 bytes in base64url
_DIGEST_BYTES: Final = 32
_ID_BYTES: Final = 16

# 45 and 45 bytes: the first 60 characters of an encoded header never change, the other 60 hold the key id.
_HEADER_START: Final = to_base64url(b'{"alg":"EdDSA","typ":"egm-permit+jwt","kid":"')
_HEADER_CHARS: Final = 120
_KEY_ID: Final = re.compile(r'([A-Za-z0-9_-]{43})"\}\Z')
_UUID7: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z"
)  # RFC 9562, section 5.7
_REQUIRED: Final = frozenset({"iss", "sub", "aud", "iat", "exp", "jti", "txn", "eid", "mth", "bnd", "cnf"})
_KNOWN: Final = _REQUIRED | {"parent", "req"}
_BUNDLE: Final = frozenset({"v", "d"})
_CONFIRMATION: Final = frozenset({"x5t#S256"})
_MAX_NUMBER: Final = 2**40  # of seconds and versions


@dataclass(frozen=True, slots=True)
class PermitClaims:
    """What a permit says. Digests are 32 raw bytes (SHA-256), ids 16."""

    issuer: str  # SPIFFE ID of the node that minted it
    subject: str  # SPIFFE ID of the calling workload
    audience: str  # SPIFFE ID of the workload that may execute it
    issued_s: int  # Unix seconds
    expires_s: int
    permit_id: bytes  # jti: 128 random bits
    root_id: bytes  # txn: execution (UUIDv7) at the start of the chain
    execution_id: bytes  # eid: this execution (UUIDv7)
    method: str  # "package.Service/Method"
    policy_version: int  # of the base bundle that the minting node decided under
    policy_digest: bytes  # of what it enforced
    certificate_sha256: bytes  # of the client certificate (DER) that the call comes with
    request_sha256: bytes | None = None  # of the request as received; None: bound by method alone
    parent_sha256: bytes | None = None  # of the permit of the execution that makes this call; None: a root


@dataclass(frozen=True, slots=True)
class Permit:
    """A permit whose signature, shape, time and audience were verified (`authenticate`)."""

    claims: PermitClaims
    key: NodeKey
    sha256: bytes  # of the token: what a child's `parent` names


def permit_sha256(token: str) -> bytes:
    """Return the digest that identifies a permit: SHA-256 of the token as it travels."""
    return hashlib.sha256(token.encode("ascii", "replace")).digest()


def certificate_sha256(certificate: bytes) -> bytes:
    """Return what `cnf` binds: SHA-256 of the DER of a certificate (of a chain: the leaf), PEM or DER.

    Raises:
        EvidenceError: IDENTITY_INVALID, if it cannot be read.
    """
    return load_certificate(certificate).fingerprint(hashes.SHA256())


def format_id(identifier: bytes) -> str:
    """Return an execution id (16 bytes) in the spelling of RFC 9562."""
    text = identifier.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def mint(claims: PermitClaims, sign: Callable[[bytes], bytes], kid: str) -> str:
    """Return the signed permit.

    Args:
        claims: what it says; a permit that nobody would accept is not minted.
        sign: makes the Ed25519 signature (64 bytes) of the node key.
        kid: digest of the endorsement of that key (`NodeKey.digest`).

    Raises:
        EvidenceError: PERMIT_INVALID, naming the claim that is out of bounds.
    """
    _check_mintable(claims)
    payload: dict[str, Any] = {
        "iss": claims.issuer,
        "sub": claims.subject,
        "aud": claims.audience,
        "iat": claims.issued_s,
        "exp": claims.expires_s,
        "jti": to_base64url(claims.permit_id),
        "txn": format_id(claims.root_id),
        "eid": format_id(claims.execution_id),
        "mth": claims.method,
        "bnd": {"v": claims.policy_version, "d": to_base64url(claims.policy_digest)},
        "cnf": {"x5t#S256": to_base64url(claims.certificate_sha256)},
    }
    if claims.parent_sha256 is not None:
        payload["parent"] = to_base64url(claims.parent_sha256)
    if claims.request_sha256 is not None:
        payload["req"] = to_base64url(claims.request_sha256)
    signed = f"{_header(kid)}.{to_base64url(write_object(payload))}"
    token = f"{signed}.{to_base64url(sign(signed.encode('ascii')))}"
    if len(token) > limits.MAX_PERMIT_BYTES:
        _refuse(f"it is larger than {limits.MAX_PERMIT_BYTES} bytes")
    return token


def verify(
    token: str,
    *,
    key_of: Callable[[str], NodeKey],
    caller: str,
    audience: str,
    method: str,
    request_sha256: bytes | None,
    client_cert_sha256: bytes,
    now_ms: int,
) -> Permit:
    """Return the permit that `token` is, if it allows exactly this execution now. Does not look for replays.

    Args:
        token: as received.
        key_of: returns the verified key of a key id, or raises MeshError (PERMIT_UNVERIFIABLE).
        caller: SPIFFE ID that the connection proves.
        audience: SPIFFE ID of the workload that is to execute it.
        method: "package.Service/Method".
        request_sha256: of the request as received; None accepts only a permit that is bound by method alone.
        client_cert_sha256: of the connection's client certificate (DER).
        now_ms: Unix time, ms; MAX_CLOCK_SKEW_MS is forgiven on both sides.

    Raises:
        EvidenceError: PERMIT_INVALID, or PERMIT_MISMATCH naming the claim.
        StateError: PERMIT_EXPIRED, PERMIT_UNVERIFIABLE.
    """
    permit = authenticate(token, key_of=key_of, audience=audience, now_ms=now_ms)
    check_binding(
        permit,
        caller=caller,
        method=method,
        request_sha256=request_sha256,
        client_cert_sha256=client_cert_sha256,
    )
    return permit


def authenticate(token: str, *, key_of: Callable[[str], NodeKey], audience: str, now_ms: int) -> Permit:
    """Return the permit if a vouched node signed it, for `audience`, and its time is now.

    Nothing of a token is believed, and so no other reason given, before its signature verifies.

    Raises:
        EvidenceError: PERMIT_INVALID, or PERMIT_MISMATCH for another audience.
        StateError: PERMIT_EXPIRED, PERMIT_UNVERIFIABLE.
    """
    header, body, signature = _split(token)
    key = key_of(_key_id(header))
    if now_ms >= key.not_after_ms:
        raise StateError(Reason.PERMIT_UNVERIFIABLE, f"the endorsement of {key.node}'s signing key has ended")
    try:
        key.public_key.verify(from_base64url(signature), f"{header}.{body}".encode("ascii"))
    except (InvalidSignature, ValueError):
        _refuse("its signature does not verify")
    claims = _read(body)
    if claims.issuer != str(key.node):
        _refuse("its issuer (iss) is not the node whose key signed it")
    _check_time(claims, now_ms)
    if claims.audience != audience:
        _mismatch("it is for another callee (aud)")
    return Permit(claims, key, permit_sha256(token))


def check_binding(
    permit: Permit, *, caller: str, method: str, request_sha256: bytes | None, client_cert_sha256: bytes
) -> None:
    """Refuse a genuine permit that speaks of another call; arguments as for `verify`.

    Raises:
        EvidenceError: PERMIT_MISMATCH, naming the claim.
    """
    claims = permit.claims
    if claims.subject != caller:
        _mismatch("it is for another caller (sub)")
    if claims.certificate_sha256 != client_cert_sha256:
        _mismatch("it is for another client certificate (cnf)")
    if claims.method != method:
        _mismatch("it is for another method (mth)")
    if claims.request_sha256 != request_sha256:
        if claims.request_sha256 is None:
            _mismatch("it binds no request (req), and this call needs that")
        _mismatch("it is for another request (req)")


def read_claims(token: str) -> PermitClaims:
    """Return what `token` says, without any proof: for display, and to know what it would bind.

    Raises:
        EvidenceError: PERMIT_INVALID, if it has not the shape of a permit.
    """
    header, body, _ = _split(token)
    _key_id(header)
    return _read(body)


def _refuse(why: str) -> NoReturn:
    raise EvidenceError(Reason.PERMIT_INVALID, f"permit refused: {why}")


def _mismatch(why: str) -> NoReturn:
    raise EvidenceError(Reason.PERMIT_MISMATCH, f"permit refused: {why}")


def _split(token: str) -> tuple[str, str, str]:
    if len(token) > limits.MAX_PERMIT_BYTES:
        _refuse(f"it is larger than {limits.MAX_PERMIT_BYTES} bytes")
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        _refuse("it is not a compact JWS")
    header, body, signature = parts
    if len(signature) != _SIGNATURE_CHARS:
        _refuse("its signature has not 64 bytes")
    return header, body, signature


@functools.lru_cache(maxsize=64)
def _header(kid: str) -> str:
    tail = f'{kid}"}}'
    if _KEY_ID.match(tail) is None:
        _refuse("its key id is not a SHA-256 in base64url")
    return _HEADER_START + to_base64url(tail.encode())


@functools.lru_cache(maxsize=1024)
def _key_id(header: str) -> str:
    if not header.startswith(_HEADER_START) or len(header) != _HEADER_CHARS:
        _refuse(f'its header is not exactly {{"alg":"{ALGORITHM}","typ":"{PERMIT_TYPE}","kid":"..."}}')
    try:
        found = _KEY_ID.match(from_base64url(header[len(_HEADER_START) :]).decode("ascii"))
    except ValueError:
        found = None
    if found is None:
        _refuse("its key id is not a SHA-256 in base64url")
    return found[1]


def _read(body: str) -> PermitClaims:
    try:
        payload = parse_object(from_base64url(body))
    except (ValueError, RecursionError):
        _refuse("its claims are not one canonical JSON object")
    return _claims(payload)


def _claims(payload: dict[str, Any]) -> PermitClaims:
    names = payload.keys()
    if not names >= _REQUIRED:
        _refuse("it lacks " + ", ".join(sorted(_REQUIRED - names)))
    if not names <= _KNOWN:
        _refuse("it has claims that this version does not know")
    bundle, confirmation = payload["bnd"], payload["cnf"]
    if not isinstance(bundle, dict) or bundle.keys() != _BUNDLE:
        _refuse("its policy (bnd) is not exactly v and d")
    if not isinstance(confirmation, dict) or confirmation.keys() != _CONFIRMATION:
        _refuse("its certificate (cnf) is not exactly x5t#S256")
    claims = PermitClaims(
        issuer=_text(payload, "iss"),
        subject=_text(payload, "sub"),
        audience=_text(payload, "aud"),
        issued_s=_number(payload["iat"], "iat"),
        expires_s=_number(payload["exp"], "exp"),
        permit_id=_bytes(payload["jti"], _ID_BYTES, "jti"),
        root_id=_id(payload["txn"], "txn"),
        execution_id=_id(payload["eid"], "eid"),
        method=_text(payload, "mth"),
        policy_version=_number(bundle["v"], "bnd.v"),
        policy_digest=_bytes(bundle["d"], _DIGEST_BYTES, "bnd.d"),
        certificate_sha256=_bytes(confirmation["x5t#S256"], _DIGEST_BYTES, "cnf"),
        request_sha256=_bytes(payload["req"], _DIGEST_BYTES, "req") if "req" in names else None,
        parent_sha256=_bytes(payload["parent"], _DIGEST_BYTES, "parent") if "parent" in names else None,
    )
    _check_sense(claims)
    return claims


def _check_sense(claims: PermitClaims) -> None:
    """Refuse what no reader accepts although every claim has its shape."""
    if not 0 < claims.expires_s - claims.issued_s <= limits.MAX_PERMIT_LIFETIME_S:
        _refuse(f"it lives not between 1 and {limits.MAX_PERMIT_LIFETIME_S} s (iat, exp)")
    if (claims.parent_sha256 is None) != (claims.root_id == claims.execution_id):
        _refuse("a root, and only a root, is its own transaction (txn, eid, parent)")


def _check_mintable(claims: PermitClaims) -> None:
    """Refuse claims that `_claims` would refuse to read."""
    if not (claims.issuer and claims.subject and claims.audience and claims.method):
        _refuse("its iss, sub, aud or mth is empty")
    for number in (claims.issued_s, claims.expires_s, claims.policy_version):
        if not 0 <= number < _MAX_NUMBER:
            _refuse("its iat, exp or bnd.v is out of bounds")
    for digest in (
        claims.policy_digest,
        claims.certificate_sha256,
        claims.request_sha256,
        claims.parent_sha256,
    ):
        if digest is not None and len(digest) != _DIGEST_BYTES:
            _refuse("one of its digests is no SHA-256")
    if len(claims.permit_id) != _ID_BYTES:
        _refuse(f"its jti is not {_ID_BYTES} bytes")
    for uuid in (claims.root_id, claims.execution_id):
        if len(uuid) != _ID_BYTES or uuid[6] >> 4 != 7 or uuid[8] >> 6 != 2:
            _refuse("its txn or eid is not a UUIDv7")
    _check_sense(claims)


def _check_time(claims: PermitClaims, now_ms: int) -> None:
    if now_ms >= claims.expires_s * 1000 + limits.MAX_CLOCK_SKEW_MS:
        raise StateError(Reason.PERMIT_EXPIRED, "the permit has expired (exp)")
    if claims.issued_s * 1000 > now_ms + limits.MAX_CLOCK_SKEW_MS:
        raise StateError(
            Reason.PERMIT_EXPIRED, "the permit is not valid yet (iat); compare the clocks of the nodes"
        )


def _text(payload: dict[str, Any], name: str) -> str:
    value = payload[name]
    if not isinstance(value, str) or not value:
        _refuse(f"its {name} is not a text")
    return value


def _number(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < _MAX_NUMBER:
        _refuse(f"its {name} is not a whole number in bounds")
    return value


def _bytes(value: object, size: int, name: str) -> bytes:
    if isinstance(value, str):
        try:
            data = from_base64url(value)
        except ValueError:
            data = b""
        if len(data) == size:
            return data
    _refuse(f"its {name} is not {size} bytes in base64url")


def _id(value: object, name: str) -> bytes:
    if not isinstance(value, str) or _UUID7.match(value) is None:
        _refuse(f"its {name} is not a UUIDv7")
    return bytes.fromhex(value.replace("-", ""))
