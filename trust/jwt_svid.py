"""Whether a JWT-SVID proves who sent it (JWT-SVID specification, sections 2 to 4), given keys and a time.

Strict where the specification leaves room: three header parameters, a key id, one bounded lifetime, no duplicate
claims. Everything that does not verify is CALLER_TOKEN_INVALID, with a detail that repeats nothing of the token.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from trust import limits
from trust.compact import members_once
from trust.errors import EvidenceError, MeshError, Reason
from trust.spiffe import SpiffeId

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"}
)
_HEADERS: Final = frozenset({"alg", "kid", "typ"})
_TYPES: Final = frozenset({"JWT", "JOSE"})
_USES: Final = ("jwt-svid", "sig")  # "sig": plain JWKS; absent is accepted too
_MIN_RSA_BITS: Final = 2048
_CURVES: Final = frozenset({"secp256r1", "secp384r1", "secp521r1"})
_EC_MEMBERS: Final = ("kty", "crv", "x", "y")
_RSA_MEMBERS: Final = ("kty", "n", "e")

PublicKey = ECKey | RSAKey
JwtKeys = Mapping[str, PublicKey]  # key id -> key, of one trust domain


def verify_jwt_svid(
    token: str, *, jwks_by_trust_domain: Mapping[str, JwtKeys], audience: str, now_ms: int
) -> SpiffeId:
    """Return the SPIFFE ID that the token proves.

    Args:
        token: compact JWS, at most MAX_JWT_SVID_BYTES.
        jwks_by_trust_domain: the keys that may sign for each trust domain (`parse_jwks`).
        audience: must be among the token's.
        now_ms: Unix time, ms; MAX_CLOCK_SKEW_MS is forgiven.

    Raises:
        EvidenceError: CALLER_TOKEN_INVALID.
    """
    if len(token) > limits.MAX_JWT_SVID_BYTES:
        _refuse(f"it is larger than {limits.MAX_JWT_SVID_BYTES} bytes")
    registry = jws.JWSRegistry(algorithms=sorted(ALGORITHMS))
    try:
        parsed = jws.extract_compact(token.encode("ascii"), registry=registry)
        header = parsed.headers()
        kid = _check_header(header)
        claims = _claims(parsed.payload or b"")
        subject = _subject(claims)
        key = jwks_by_trust_domain.get(subject.trust_domain, {}).get(kid)
        if key is None:
            _refuse("no trusted key has its key id in its trust domain")
        if not jws.validate_compact(parsed, key, registry=registry):
            _refuse("its signature does not verify")
    except (JoseError, ValueError, TypeError, RecursionError):
        # malformed in one of many ways; ValueError includes bad base64, bad JSON and non-ASCII
        _refuse("it is not a well-formed, signed JWT-SVID")
    _check_audience(claims, audience)
    _check_times(claims, now_ms=now_ms)
    return subject


def _refuse(why: str) -> NoReturn:
    raise EvidenceError(Reason.CALLER_TOKEN_INVALID, f"JWT-SVID refused: {why}")


def _check_header(header: Mapping[str, Any]) -> str:
    if not header.keys() <= _HEADERS:
        _refuse("its header has parameters other than alg, kid and typ")
    if header.get("alg") not in ALGORITHMS:
        _refuse("its algorithm is not one of RS, ES or PS")
    if "typ" in header and header["typ"] not in _TYPES:
        _refuse("its type is neither JWT nor JOSE")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        _refuse("it names no key id")
    return kid


def _claims(payload: bytes) -> dict[str, Any]:
    claims = json.loads(payload, object_pairs_hook=members_once, parse_constant=_no_constant)
    if not isinstance(claims, dict):
        _refuse("its payload is not an object")
    return claims


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _subject(claims: Mapping[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    if not isinstance(subject, str):
        _refuse("it has no subject")
    try:
        return SpiffeId.parse(subject)
    except MeshError:
        _refuse("its subject is not a SPIFFE ID")


def _check_audience(claims: Mapping[str, Any], audience: str) -> None:
    audiences = claims.get("aud")
    if isinstance(audiences, str):
        audiences = [audiences]
    if not isinstance(audiences, list) or audience not in audiences:
        _refuse("it is not for this audience")


def _check_times(claims: Mapping[str, Any], *, now_ms: int) -> None:
    skew_ms, longest_ms = limits.MAX_CLOCK_SKEW_MS, limits.MAX_JWT_SVID_LIFETIME_S * 1000
    expires_ms = _time_ms(claims, "exp")
    if expires_ms is None:
        _refuse("it has no expiry")
    if now_ms >= expires_ms + skew_ms:
        _refuse("it has expired")
    if expires_ms > now_ms + longest_ms + skew_ms:
        _refuse(f"it lives longer than {limits.MAX_JWT_SVID_LIFETIME_S} s")
    for name in ("nbf", "iat"):
        start_ms = _time_ms(claims, name)
        if start_ms is not None and start_ms > now_ms + skew_ms:
            _refuse("it is not valid yet; check the clocks")


def _time_ms(claims: Mapping[str, Any], name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        _refuse(f"its {name} is not a time")
    return int(value * 1000)


def parse_jwks(data: bytes) -> JwtKeys:
    """Return the JWT-SVID signing keys in a JWKS or SPIFFE bundle document, by key id.

    Keys of other uses and kinds (x509-svid, symmetric, Ed25519) are left out.

    Raises:
        EvidenceError: IDENTITY_INVALID, for a malformed document, a weak key, a repeated or missing key id.
    """
    if len(data) > limits.MAX_JWKS_BYTES:
        raise EvidenceError(Reason.IDENTITY_INVALID, f"JWKS larger than {limits.MAX_JWKS_BYTES} bytes")
    try:
        document = json.loads(data, object_pairs_hook=members_once)
    except (ValueError, RecursionError):
        raise EvidenceError(Reason.IDENTITY_INVALID, "JWKS is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise EvidenceError(Reason.IDENTITY_INVALID, 'JWKS has no list of keys: {"keys": [...]}')
    keys: dict[str, PublicKey] = {}
    for entry in entries:
        if entry.get("kty") not in ("EC", "RSA") or entry.get("use", "sig") not in _USES:
            continue
        kid = entry.get("kid")
        if not isinstance(kid, str) or not kid or kid in keys:
            raise EvidenceError(Reason.IDENTITY_INVALID, "JWKS has a key without a key id of its own (kid)")
        keys[kid] = _public_key(entry, kid)
    return keys


def from_public_key(raw: object) -> PublicKey | None:
    """Return a pyca/cryptography public key as one that may sign JWT-SVIDs; None if it is of no accepted kind."""
    key: PublicKey
    if isinstance(raw, ec.EllipticCurvePublicKey) and raw.curve.name in _CURVES:
        key = ECKey(raw, raw)
    elif isinstance(raw, rsa.RSAPublicKey) and raw.key_size >= _MIN_RSA_BITS:
        key = RSAKey(raw, raw)
    else:
        return None
    return key


def _public_key(entry: Mapping[str, Any], kid: str) -> PublicKey:
    members = _EC_MEMBERS if entry["kty"] == "EC" else _RSA_MEMBERS
    public = {name: entry[name] for name in members if name in entry}  # never a private part
    try:
        if entry["kty"] == "EC":
            return ECKey.import_key(public)
        # looked at before the import, which only warns about short keys
        if _bits(str(public["n"])) >= _MIN_RSA_BITS:
            return RSAKey.import_key(public)
    except (JoseError, ValueError, TypeError, KeyError):
        raise EvidenceError(Reason.IDENTITY_INVALID, f"JWKS key {kid[:80]!r} is not readable") from None
    raise EvidenceError(Reason.KEY_UNSAFE, f"JWKS key {kid[:80]!r} is shorter than {_MIN_RSA_BITS} bits")


def _bits(base64url: str) -> int:
    number = base64.b64decode(base64url + "=" * (-len(base64url) % 4), altchars=b"-_", validate=True)
    return int.from_bytes(number, "big").bit_length()
