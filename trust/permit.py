"""Whether a permit allows one execution: minted by a vouched node, for this caller, callee, method, bytes and time.

A permit is a JWT (compact JWS):

    header  {"alg":"EdDSA","typ":"egm-permit+jwt","kid":KEY}   exactly these bytes; KEY: `NodeKey.digest`
    claims  one JSON object, see `trust.permit_claims`

The compact form is written and read here rather than by joserfc, because joserfc warns at every use of the name
EdDSA (which Envoy needs) and because a header of fixed bytes leaves no room for another algorithm, type or a
critical extension. Tests hold both directions equal to joserfc's.
"""

import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from cryptography.hazmat.primitives import hashes

from trust import limits
from trust.compact import from_base64url, split_token, to_base64url
from trust.ed25519 import is_signature
from trust.errors import EvidenceError, Reason, StateError
from trust.node_key import ENDORSEMENT_KEY, NodeKey
from trust.permit_claims import NO_MESSAGE, PermitClaims, format_id, parse_claims, refuse, write_claims
from trust.x509 import load_certificate

__all__ = [
    "ENDORSEMENT_KEY",
    "NO_MESSAGE",
    "PERMIT_KEY",
    "PERMIT_TYPE",
    "Permit",
    "PermitClaims",
    "authenticate",
    "certificate_sha256",
    "check_binding",
    "check_caller",
    "check_request",
    "format_id",
    "mint",
    "permit_sha256",
    "read_claims",
    "verify",
]

PERMIT_KEY: Final = "egm-permit"  # gRPC metadata key
PERMIT_TYPE: Final = "egm-permit+jwt"
ALGORITHM: Final = "EdDSA"

# 45 and 45 bytes: the first 60 characters of an encoded header never change, the other 60 hold the key id.
_HEADER_START: Final = to_base64url(b'{"alg":"EdDSA","typ":"egm-permit+jwt","kid":"')
_HEADER_CHARS: Final = 120
_KEY_ID: Final = re.compile(r'([A-Za-z0-9_-]{43})"\}\Z')


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


def mint(claims: PermitClaims, sign: Callable[[bytes], bytes], kid: str) -> str:
    """Return the signed permit.

    Args:
        claims: what it says; a permit that nobody would accept is not minted.
        sign: makes the Ed25519 signature (64 bytes) of the node key.
        kid: digest of the endorsement of that key (`NodeKey.digest`).

    Raises:
        EvidenceError: PERMIT_INVALID, naming the claim that is out of bounds.
    """
    signed = f"{_header(kid)}.{to_base64url(write_claims(claims))}"
    token = f"{signed}.{to_base64url(sign(signed.encode('ascii')))}"
    if len(token) > limits.MAX_PERMIT_BYTES:
        refuse(f"it is larger than {limits.MAX_PERMIT_BYTES} bytes")
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
        genuine = is_signature(from_base64url(signature), f"{header}.{body}".encode("ascii"), key.public_key)
    except ValueError:
        genuine = False
    if not genuine:
        refuse("its signature does not verify")
    claims = _read(body)
    if claims.issuer != str(key.node):
        refuse("its issuer (iss) is not the node whose key signed it")
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
    check_caller(permit, caller=caller, method=method, client_cert_sha256=client_cert_sha256)
    check_request(permit, request_sha256)


def check_caller(permit: Permit, *, caller: str, method: str, client_cert_sha256: bytes) -> None:
    """Refuse a genuine permit of another caller or method: all of its binding that is known when a call opens.

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


def check_request(permit: Permit, request_sha256: bytes | None) -> None:
    """Refuse a genuine permit of another request; None accepts only a permit that is bound by method alone.

    Raises:
        EvidenceError: PERMIT_MISMATCH.
    """
    claims = permit.claims
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


def _mismatch(why: str) -> NoReturn:
    raise EvidenceError(Reason.PERMIT_MISMATCH, f"permit refused: {why}")


def _split(token: str) -> tuple[str, str, str]:
    try:
        return split_token(token, limits.MAX_PERMIT_BYTES)
    except ValueError as error:
        refuse(str(error))


@functools.lru_cache(maxsize=64)
def _header(kid: str) -> str:
    tail = f'{kid}"}}'
    if _KEY_ID.match(tail) is None:
        refuse("its key id is not a SHA-256 in base64url")
    return _HEADER_START + to_base64url(tail.encode())


@functools.lru_cache(maxsize=1024)
def _key_id(header: str) -> str:
    if not header.startswith(_HEADER_START) or len(header) != _HEADER_CHARS:
        refuse(f'its header is not exactly {{"alg":"{ALGORITHM}","typ":"{PERMIT_TYPE}","kid":"..."}}')
    try:
        found = _KEY_ID.match(from_base64url(header[len(_HEADER_START) :]).decode("ascii"))
    except ValueError:
        found = None
    if found is None:
        refuse("its key id is not a SHA-256 in base64url")
    return found[1]


def _read(body: str) -> PermitClaims:
    try:
        data = from_base64url(body)
    except ValueError:
        refuse("its claims are not base64url")
    return parse_claims(data)


def _check_time(claims: PermitClaims, now_ms: int) -> None:
    if now_ms >= claims.expires_s * 1000 + limits.MAX_CLOCK_SKEW_MS:
        raise StateError(Reason.PERMIT_EXPIRED, "the permit has expired (exp)")
    if claims.issued_s * 1000 > now_ms + limits.MAX_CLOCK_SKEW_MS:
        raise StateError(
            Reason.PERMIT_EXPIRED, "the permit is not valid yet (iat); compare the clocks of the nodes"
        )
