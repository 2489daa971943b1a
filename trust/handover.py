"""Whether a sidecar handed this call to the service next to it: a token that only that service's process reads.

A hand-over is a JWT (compact JWS) in the strict form of permits (`trust.permit`):

    header  {"alg":"EdDSA","typ":"egm-handover+jwt"}   exactly these bytes: there is one key, that of the own node
    claims  aud      SPIFFE ID of the workload that it is for
            iat exp  Unix seconds, at most MAX_HANDOVER_LIFETIME_S apart
            jti      128 random bits, base64url
            eid      UUIDv7 of the execution
            mth      "package.Service/Method"
            sub      SPIFFE ID of the caller; absent when it is not known
            prm      base64url SHA-256 of the permit that was accepted; absent when there was none
            req      base64url SHA-256 of the request (of a stream: of its opening message; `NO_MESSAGE` when it
                     ended without one); absent when it was let through before that was known
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from trust import limits
from trust.compact import (
    bytes_claim,
    from_base64url,
    number_claim,
    parse_object,
    split_token,
    text_claim,
    to_base64url,
    uuid7_claim,
    write_object,
)
from trust.ed25519 import is_signature
from trust.errors import EvidenceError, Reason, StateError
from trust.permit_claims import format_id

HANDOVER_KEY: Final = "egm-handover"  # gRPC metadata key
HANDOVER_TYPE: Final = "egm-handover+jwt"
_HEADER: Final = to_base64url(b'{"alg":"EdDSA","typ":"egm-handover+jwt"}')
_REQUIRED: Final = frozenset({"aud", "iat", "exp", "jti", "eid", "mth"})
_KNOWN: Final = _REQUIRED | {"sub", "prm", "req"}


@dataclass(frozen=True, slots=True)
class Handover:
    """What a hand-over says. Digests are 32 raw bytes (SHA-256), ids 16."""

    audience: str  # SPIFFE ID of the workload
    issued_s: int  # Unix seconds
    expires_s: int
    token_id: bytes  # jti
    execution_id: bytes  # UUIDv7
    method: str  # "package.Service/Method"
    caller: str | None = None  # SPIFFE ID
    permit_sha256: bytes | None = None
    request_sha256: bytes | None = None  # of the (opening) request, or NO_MESSAGE


def mint_handover(claims: Handover, sign: Callable[[bytes], bytes]) -> str:
    """Return the signed hand-over.

    Args:
        claims: what it says.
        sign: makes the Ed25519 signature (64 bytes) of the node key.

    Raises:
        EvidenceError: PERMIT_INVALID, naming the claim that nobody would accept.
    """
    payload: dict[str, Any] = {
        "aud": claims.audience,
        "iat": claims.issued_s,
        "exp": claims.expires_s,
        "jti": to_base64url(claims.token_id),
        "eid": format_id(claims.execution_id),
        "mth": claims.method,
    }
    if claims.caller is not None:
        payload["sub"] = claims.caller
    if claims.permit_sha256 is not None:
        payload["prm"] = to_base64url(claims.permit_sha256)
    if claims.request_sha256 is not None:
        payload["req"] = to_base64url(claims.request_sha256)
    _claims(payload)
    signed = f"{_HEADER}.{to_base64url(write_object(payload))}"
    token = f"{signed}.{to_base64url(sign(signed.encode('ascii')))}"
    if len(token) > limits.MAX_PERMIT_BYTES:
        _refuse(f"it is larger than {limits.MAX_PERMIT_BYTES} bytes")
    return token


def authenticate_handover(token: str, key: Ed25519PublicKey, *, audience: str, now_ms: int) -> Handover:
    """Return the hand-over if `key` signed it, for `audience`, and its time is now. Does not look for replays.

    No clock skew is forgiven: sidecar and service share one machine.

    Raises:
        EvidenceError: PERMIT_INVALID, or PERMIT_MISMATCH for another audience.
        StateError: PERMIT_EXPIRED.
    """
    try:
        header, body, signature = split_token(token, limits.MAX_PERMIT_BYTES)
    except ValueError as error:
        _refuse(str(error))
    if header != _HEADER:
        _refuse(f'its header is not exactly {{"alg":"EdDSA","typ":"{HANDOVER_TYPE}"}}')
    try:
        genuine = is_signature(from_base64url(signature), f"{header}.{body}".encode("ascii"), key)
    except ValueError:
        genuine = False
    if not genuine:
        _refuse("its signature is not that of this node's key")
    try:
        payload = parse_object(from_base64url(body))
    except (ValueError, RecursionError):
        _refuse("its claims are not one JSON object, each claim once")
    claims = _claims(payload)
    if not claims.issued_s * 1000 <= now_ms < claims.expires_s * 1000:
        raise StateError(Reason.PERMIT_EXPIRED, "the hand-over is outside its time (iat, exp)")
    if claims.audience != audience:
        _mismatch("it is for another workload (aud)")
    return claims


def check_handover(claims: Handover, *, method: str, permit_sha256: bytes | None) -> None:
    """Refuse a genuine hand-over of another call, or one that came with another permit.

    Raises:
        EvidenceError: PERMIT_MISMATCH, naming the claim.
    """
    if claims.method != method:
        _mismatch("it is for another method (mth)")
    if claims.permit_sha256 != permit_sha256:
        _mismatch("it is for another permit (prm)")


def check_handed_request(claims: Handover, request_sha256: bytes) -> None:
    """Refuse a genuine hand-over of another (first) request; NO_MESSAGE for a stream that ended without one.

    A hand-over without a request is good for any: its sidecar let the call through before there was one.

    Raises:
        EvidenceError: PERMIT_MISMATCH.
    """
    if claims.request_sha256 is not None and claims.request_sha256 != request_sha256:
        _mismatch("it is for another request (req)")


def _refuse(why: str) -> NoReturn:
    raise EvidenceError(Reason.PERMIT_INVALID, f"hand-over refused: {why}")


def _mismatch(why: str) -> NoReturn:
    raise EvidenceError(Reason.PERMIT_MISMATCH, f"hand-over refused: {why}")


def _claims(payload: dict[str, Any]) -> Handover:
    names = payload.keys()
    if not names >= _REQUIRED:
        _refuse("it lacks " + ", ".join(sorted(_REQUIRED - names)))
    if not names <= _KNOWN:
        _refuse("it has claims that this version does not know")
    try:
        claims = Handover(
            audience=text_claim(payload, "aud"),
            issued_s=number_claim(payload["iat"], "iat"),
            expires_s=number_claim(payload["exp"], "exp"),
            token_id=bytes_claim(payload["jti"], 16, "jti"),
            execution_id=uuid7_claim(payload["eid"], "eid"),
            method=text_claim(payload, "mth"),
            caller=text_claim(payload, "sub") if "sub" in names else None,
            permit_sha256=bytes_claim(payload["prm"], 32, "prm") if "prm" in names else None,
            request_sha256=bytes_claim(payload["req"], 32, "req") if "req" in names else None,
        )
    except ValueError as error:
        _refuse(str(error))
    if not 0 < claims.expires_s - claims.issued_s <= limits.MAX_HANDOVER_LIFETIME_S:
        _refuse(f"it lives not between 1 and {limits.MAX_HANDOVER_LIFETIME_S} s (iat, exp)")
    return claims
