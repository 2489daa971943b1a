"""Whose signing key this is: a node's certificate (X.509-SVID) vouches for the Ed25519 key that signs its permits.

Certificates change every few hours and are meant for TLS; the node key stays. An *endorsement* ties them together:
a compact JWS, signed with the certificate's key and carrying its chain, whose claims name the node and the key:

    header  {"alg": "ES256" | "ES384" | "RS256", "typ": "egm-node-key+jwt", "x5c": [DER in base64, leaf first]}
    claims  {"sub": SPIFFE ID of the node, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": ...}, "iat", "exp"}

It is public, the same for every call until it is renewed, and known by the SHA-256 of its bytes.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey
from securesystemslib.signer import SSlibKey

from trust import limits
from trust.compact import from_base64url, parse_object, to_base64url, write_object
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.identity import Svid
from trust.keys import check_public_key
from trust.spiffe import SpiffeId
from trust.x509 import (
    check_anchors,
    check_leaf,
    load_certificate,
    load_chain,
    spiffe_id_of,
    validity,
    verify_chain,
)

ENDORSEMENT_KEY: Final = "egm-node-key-bin"  # gRPC metadata key
ENDORSEMENT_TYPE: Final = "egm-node-key+jwt"
NODE_KIND: Final = "node"
_ALGORITHMS: Final = ("ES256", "ES384", "RS256")
_HEADER: Final = frozenset({"alg", "typ", "x5c"})
_CLAIMS: Final = frozenset({"sub", "jwk", "iat", "exp"})
_JWK: Final = frozenset({"kty", "crv", "x"})


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A node's public signing key and how long it is vouched for. Holding one means that this was verified."""

    node: SpiffeId
    public_key: Ed25519PublicKey
    not_after_ms: int  # Unix ms; the earlier of the endorsement's and the certificate's
    digest: str  # base64url SHA-256 of the endorsement: the key id of its permits

    @property
    def spki_sha256(self) -> bytes:
        """SHA-256 of the key's DER SubjectPublicKeyInfo: how a revocation names it."""
        return ed25519_spki_sha256(self.public_key.public_bytes_raw())


# DER of SubjectPublicKeyInfo up to the 32 bytes of the key (RFC 8410, section 4)
_SPKI_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")


def ed25519_spki_sha256(public_key: bytes) -> bytes:
    """Return the SHA-256 of the DER SubjectPublicKeyInfo of an Ed25519 key (32 bytes)."""
    return hashlib.sha256(_SPKI_PREFIX + public_key).digest()


def endorsement_digest(endorsement: bytes) -> str:
    """Return the key id that an endorsement stands for: base64url of its SHA-256, 43 characters."""
    return to_base64url(hashlib.sha256(endorsement).digest())


def make_endorsement(svid: Svid, public_key: Ed25519PublicKey, now_ms: int) -> bytes:
    """Return the endorsement of `public_key` by the node's certificate, valid until that ends or for 24 h.

    Args:
        svid: of a node.
        public_key: the node's Ed25519 key.
        now_ms: Unix time, ms.

    Raises:
        EvidenceError: IDENTITY_INVALID, for an SVID that is not a node's or whose chain is too large to send.
        StateError: IDENTITY_UNAVAILABLE, if it has expired.
    """
    if svid.spiffe_id.kind != NODE_KIND:
        raise EvidenceError(
            Reason.IDENTITY_INVALID, f"{svid.spiffe_id} is not a node: it endorses no node key"
        )
    now_s, ends_s = now_ms // 1000, svid.not_after_ms // 1000
    if now_s >= ends_s:
        raise StateError(Reason.IDENTITY_UNAVAILABLE, f"the certificate of {svid.spiffe_id} has expired")
    key = serialization.load_pem_private_key(svid.key_pem, password=None)
    algorithm, signer = _signer(key)
    chain = [
        certificate.public_bytes(serialization.Encoding.DER) for certificate in load_chain(svid.chain_pem)
    ]
    header = {
        "alg": algorithm,
        "typ": ENDORSEMENT_TYPE,
        "x5c": [base64.b64encode(der).decode("ascii") for der in chain],
    }
    raw = public_key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    claims = {
        "sub": str(svid.spiffe_id),
        "jwk": {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(raw)},
        "iat": now_s,
        "exp": min(ends_s, now_s + limits.MAX_ENDORSEMENT_LIFETIME_S),
    }
    endorsement = jws.serialize_compact(header, write_object(claims), signer, registry=_registry()).encode()
    if len(endorsement) > limits.MAX_ENDORSEMENT_BYTES:
        raise EvidenceError(
            Reason.IDENTITY_INVALID,
            f"the certificate chain of {svid.spiffe_id} makes an endorsement of {len(endorsement)} bytes; at most "
            f"{limits.MAX_ENDORSEMENT_BYTES} can be sent with a call: use EC keys or a shorter chain",
        )
    return endorsement


def verify_endorsement(endorsement: bytes, anchors_pem: bytes, trust_domain: str, now_ms: int) -> NodeKey:
    """Return the node key that `endorsement` proves.

    Args:
        endorsement: as received, at most MAX_ENDORSEMENT_BYTES.
        anchors_pem: CA certificates that are trusted.
        trust_domain: which the node must belong to.
        now_ms: Unix time, ms; MAX_CLOCK_SKEW_MS early is forgiven, late is not.

    Raises:
        EvidenceError: PERMIT_INVALID, saying what is wrong.
        StateError: PERMIT_UNVERIFIABLE, if it or its certificate is outside its time.
    """
    if len(endorsement) > limits.MAX_ENDORSEMENT_BYTES:
        _refuse(f"it is larger than {limits.MAX_ENDORSEMENT_BYTES} bytes")
    header, claims = _parts(endorsement)
    chain = _chain(header)
    node = _node(chain, anchors_pem, trust_domain, now_ms)
    _check_signature(endorsement, header["alg"], chain[0])
    if claims.keys() != _CLAIMS:
        _refuse("its claims are not exactly sub, jwk, iat and exp")
    if claims["sub"] != str(node):
        _refuse("its subject is not the node of its certificate")
    not_after_ms = min(_check_times(claims, now_ms), validity(chain[0])[1])
    if now_ms >= not_after_ms:
        raise StateError(Reason.PERMIT_UNVERIFIABLE, f"the endorsement of {node}'s signing key has ended")
    return NodeKey(node, _public_key(claims["jwk"]), not_after_ms, endorsement_digest(endorsement))


def endorsement_times(endorsement: bytes) -> tuple[int, int]:
    """Return from when to when an endorsement says that it is valid, Unix ms; nothing of it is verified.

    Raises:
        EvidenceError: PERMIT_INVALID, if it is malformed.
    """
    if len(endorsement) > limits.MAX_ENDORSEMENT_BYTES:
        _refuse(f"it is larger than {limits.MAX_ENDORSEMENT_BYTES} bytes")
    claims = _parts(endorsement)[1]
    if claims.keys() != _CLAIMS:
        _refuse("its claims are not exactly sub, jwk, iat and exp")
    end_ms = _check_times(claims, 2**53 * 1000)
    return claims["iat"] * 1000, end_ms


def _refuse(why: str) -> NoReturn:
    raise EvidenceError(Reason.PERMIT_INVALID, f"endorsement of a node key refused: {why}")


def _registry() -> jws.JWSRegistry:
    registry = jws.JWSRegistry(algorithms=_ALGORITHMS)
    registry.max_header_length = limits.MAX_ENDORSEMENT_BYTES  # the default has no room for a chain
    return registry


def _signer(key: object) -> tuple[str, ECKey | RSAKey]:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in {"secp256r1", "secp384r1"}:
        return ("ES256" if key.curve.name == "secp256r1" else "ES384"), ECKey(key, key)
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256", RSAKey(key, key)
    raise EvidenceError(Reason.IDENTITY_INVALID, "the certificate's key must be EC P-256, EC P-384 or RSA")


def _parts(endorsement: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims, unverified; the bytes are canonical, so everybody reads the same."""
    try:
        parts = endorsement.decode("ascii").split(".")
        if len(parts) != 3:
            raise ValueError("not three parts")
        header, claims, _ = (from_base64url(part) for part in parts)
        parsed = parse_object(header), parse_object(claims)
    except (ValueError, RecursionError):
        _refuse("it is not a well-formed compact JWS")
    if parsed[0].keys() != _HEADER:
        _refuse("its header is not exactly alg, typ and x5c")
    if parsed[0]["typ"] != ENDORSEMENT_TYPE:
        _refuse(f"its type is not {ENDORSEMENT_TYPE}")
    if parsed[0]["alg"] not in _ALGORITHMS:
        _refuse("its algorithm is not one of " + ", ".join(_ALGORITHMS))
    return parsed


def _chain(header: dict[str, Any]) -> Sequence[x509.Certificate]:
    encoded = header["x5c"]
    if not isinstance(encoded, list) or not 1 <= len(encoded) <= limits.MAX_CERTIFICATE_CHAIN:
        _refuse(f"its chain has not 1 to {limits.MAX_CERTIFICATE_CHAIN} certificates")
    try:
        return [load_certificate(_der(text)) for text in encoded]
    except (ValueError, TypeError, MeshError):
        _refuse("its chain has a part that is no certificate")


def _der(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError("not text")
    der = base64.b64decode(text, validate=True)
    if base64.b64encode(der).decode("ascii") != text:
        raise ValueError("not canonical base64")
    return der


def _node(chain: Sequence[x509.Certificate], anchors_pem: bytes, trust_domain: str, now_ms: int) -> SpiffeId:
    try:
        check_leaf(chain[0])
        node = spiffe_id_of(chain[0])
        verify_chain(chain, check_anchors(anchors_pem), now_ms=now_ms)
    except StateError as error:
        raise StateError(Reason.PERMIT_UNVERIFIABLE, f"endorsement of a node key: {error.detail}") from None
    except MeshError as error:
        _refuse(error.detail)
    if node.kind != NODE_KIND or node.trust_domain != trust_domain:
        _refuse(f"{node} is not a node of {trust_domain}")
    return node


def _check_signature(endorsement: bytes, algorithm: str, leaf: x509.Certificate) -> None:
    raw = leaf.public_key()
    key: ECKey | RSAKey
    if isinstance(raw, ec.EllipticCurvePublicKey):
        fitting, key = ("ES256" if raw.curve.name == "secp256r1" else "ES384"), ECKey(raw, raw)
    elif isinstance(raw, rsa.RSAPublicKey):
        fitting, key = "RS256", RSAKey(raw, raw)
    else:
        _refuse("its certificate has a key of another kind")
    if algorithm != fitting:
        _refuse("its algorithm is not the one of its certificate's key")
    try:
        parsed = jws.extract_compact(endorsement, registry=_registry())
        good = jws.validate_compact(parsed, key, registry=_registry())
    except (JoseError, ValueError, TypeError, RecursionError):
        good = False
    if not good:
        _refuse("its signature does not verify")


def _check_times(claims: dict[str, Any], now_ms: int) -> int:
    """Return the end of the endorsement, Unix ms, whether or not it has passed."""
    iat, exp = claims["iat"], claims["exp"]
    if type(iat) is not int or type(exp) is not int or not 0 <= iat < exp < 2**53:
        _refuse("its times are not whole seconds in order")
    if exp - iat > limits.MAX_ENDORSEMENT_LIFETIME_S:
        _refuse(f"it lives longer than {limits.MAX_ENDORSEMENT_LIFETIME_S} s")
    if iat * 1000 > now_ms + limits.MAX_CLOCK_SKEW_MS:
        raise StateError(
            Reason.PERMIT_UNVERIFIABLE, "the endorsement of a node key is not valid yet; compare the clocks"
        )
    return exp * 1000


def _public_key(jwk: object) -> Ed25519PublicKey:
    if not isinstance(jwk, dict) or jwk.keys() != _JWK or (jwk["kty"], jwk["crv"]) != ("OKP", "Ed25519"):
        _refuse("its key is not exactly an Ed25519 public key (kty, crv, x)")
    try:
        raw = from_base64url(jwk["x"])
        key = Ed25519PublicKey.from_public_bytes(raw)
        check_public_key(SSlibKey.from_crypto(key))  # on the curve, not of small order
    except EvidenceError as error:
        _refuse(error.detail)
    except (ValueError, TypeError, AttributeError):
        _refuse("its key is not 32 bytes in base64url")
    return key
