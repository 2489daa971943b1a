"""JWT-SVIDs: the one that verifies, and every way to forge one."""

import base64
import json
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.jwt_svid import JwtKeys, parse_jwks, verify_jwt_svid
from trust.spiffe import SpiffeId

NOW_MS = 1_800_000_000_000
NOW_S = NOW_MS // 1000
EC_KEY = ECKey.generate_key("P-256", {"kid": "ec"})
RSA_KEY = RSAKey.generate_key(2048, {"kid": "rsa"})


def public(key: ECKey | RSAKey, kid: str, **more: str) -> dict[str, Any]:
    return {**key.as_dict(private=False), "kid": kid, **more}


KEYS = parse_jwks(
    json.dumps({"keys": [public(EC_KEY, "ec", use="jwt-svid"), public(RSA_KEY, "rsa")]}).encode()
)
OTHER = parse_jwks(json.dumps({"keys": [public(EC_KEY, "ec")]}).encode())


def claims(**changes: Any) -> dict[str, Any]:
    base = {"sub": "spiffe://mesh.test/workload/alice", "aud": ["payments"], "exp": NOW_S + 300}
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def token(payload: Any, *, header: dict[str, Any] | None = None, key: Any = EC_KEY) -> str:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = {"alg": "ES256", "kid": "ec", "typ": "JWT", **(header or {})}
    head = {name: value for name, value in head.items() if value is not ...}
    # put together by hand: a forger's library has no scruples
    signed = b".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(head).encode(), data)
    )
    signature = jws.JWSRegistry.algorithms[head["alg"]].sign(signed, key)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def verify(text: str, *, keys: JwtKeys = KEYS, audience: str = "payments", now_ms: int = NOW_MS) -> SpiffeId:
    return verify_jwt_svid(text, jwks_by_trust_domain={"mesh.test": keys}, audience=audience, now_ms=now_ms)


def refused(text: str, **options: Any) -> str:
    with pytest.raises(EvidenceError) as error:
        verify(text, **options)
    assert error.value.reason is Reason.CALLER_TOKEN_INVALID
    return error.value.detail


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ({}, EC_KEY),
        ({"typ": "JOSE"}, EC_KEY),
        ({"typ": ...}, EC_KEY),
        ({"alg": "RS256", "kid": "rsa"}, RSA_KEY),
        ({"alg": "PS256", "kid": "rsa"}, RSA_KEY),
    ],
)
def test_a_good_token_proves_its_subject(header: dict[str, Any], key: Any) -> None:
    """The algorithms and types of the specification."""
    assert str(verify(token(claims(), header=header, key=key))) == "spiffe://mesh.test/workload/alice"


def test_one_of_several_audiences_and_a_single_string_are_enough() -> None:
    """Both forms of RFC 7519."""
    assert verify(token(claims(aud=["x", "payments"])))
    assert verify(token(claims(aud="payments")))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"exp": ...}, "no expiry"),
        ({"exp": NOW_S - 6}, "expired"),
        ({"exp": NOW_S + 3600 + 6}, "lives longer"),
        ({"exp": str(NOW_S + 300)}, "not a time"),
        ({"exp": True}, "not a time"),
        ({"exp": 1e300}, "not a time"),
        ({"nbf": NOW_S + 60}, "not valid yet"),
        ({"iat": NOW_S + 60}, "not valid yet"),
        ({"aud": ...}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": ["Payments"]}, "audience"),
        ({"aud": "payments payments2"}, "audience"),
        ({"aud": {"payments": 1}}, "audience"),
        ({"sub": ...}, "no subject"),
        ({"sub": 7}, "no subject"),
        ({"sub": "alice"}, "not a SPIFFE ID"),
        ({"sub": "spiffe://mesh.test"}, "not a SPIFFE ID"),
        ({"sub": "spiffe://other.test/workload/alice"}, "trust domain"),
    ],
)
def test_a_wrong_claim_is_refused_though_the_signature_is_good(change: dict[str, Any], text: str) -> None:
    """Each rule of the specification by itself."""
    assert text in refused(token(claims(**change)))


def test_five_seconds_of_clock_skew_are_forgiven() -> None:
    """Expiry, not-before and issued-at, at the edge."""
    assert verify(token(claims(exp=NOW_S - 4)))
    assert verify(token(claims(nbf=NOW_S + 5, iat=NOW_S + 5)))


def test_the_trust_domains_do_not_share_keys() -> None:
    """A key of one domain must not speak for another."""
    text = token(claims(sub="spiffe://other.test/workload/alice"))
    both = {"mesh.test": KEYS, "other.test": {}}
    with pytest.raises(EvidenceError):
        verify_jwt_svid(text, jwks_by_trust_domain=both, audience="payments", now_ms=NOW_MS)


def test_algorithm_none_is_refused() -> None:
    """The oldest forgery: a token without signature."""
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"ec"}').rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=").decode()
    for text in (f"{head}.{body}.", f"{head}.{body}", f"{head}.{body}.AAAA"):
        refused(text)


@pytest.mark.parametrize("key", [EC_KEY, RSA_KEY])
def test_a_public_key_used_as_hmac_secret_is_refused(key: ECKey | RSAKey) -> None:
    """Algorithm confusion: HS256 keyed with what everybody knows."""
    pem = key.as_pem(private=False)
    secret = OctKey.import_key(base64.b64encode(pem).decode())
    refused(token(claims(), header={"alg": "HS256", "kid": "rsa"}, key=secret))
    refused(token(claims(), header={"alg": "HS256", "kid": "ec"}, key=secret))


def test_an_algorithm_that_does_not_fit_the_key_is_refused() -> None:
    """ES256 with the id of an RSA key, RS256 with that of an EC key, EdDSA at all."""
    refused(token(claims(), header={"kid": "rsa"}))
    refused(token(claims(), header={"alg": "RS256", "kid": "ec"}, key=RSA_KEY))
    refused(token(claims(), header={"alg": "EdDSA"}, key=OKPKey.generate_key("Ed25519")))


@pytest.mark.parametrize(
    "header",
    [
        {"kid": "unknown"},
        {"kid": ...},
        {"kid": ""},
        {"kid": 7},
        {"typ": "at+jwt"},
        {"typ": "jwt"},
        {"jku": "https://example.org/keys"},
        {"jwk": {"kty": "EC"}},
        {"crit": ["exp"]},
        {"b64": False, "crit": ["b64"]},
    ],
)
def test_a_header_beyond_alg_kid_and_typ_is_refused(header: dict[str, Any]) -> None:
    """Key sources, critical extensions and other token types have no place in a JWT-SVID."""
    refused(token(claims(), header=header))


def test_a_signature_by_an_unknown_key_or_over_other_bytes_is_refused() -> None:
    """Forged, and altered after signing."""
    refused(token(claims(), key=ECKey.generate_key("P-256")))
    head, body, signature = token(claims()).split(".")
    altered = (
        base64.urlsafe_b64encode(json.dumps(claims(aud=["admin", "payments"])).encode()).rstrip(b"=").decode()
    )
    refused(f"{head}.{altered}.{signature}")
    refused(f"{head}.{body}.{signature[:-4]}")


def test_repeated_claims_are_refused() -> None:
    """Two parsers could read two different tokens."""
    body = json.dumps(claims())[:-1] + ', "sub": "spiffe://mesh.test/workload/bob"}'
    refused(token(body.encode()))


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "é.é.é", "x" * 100, "{}", "[" * 5000])
def test_garbage_is_refused(text: str) -> None:
    """No exception but ours leaves the verifier."""
    refused(text)


def test_an_oversized_token_is_refused_unread() -> None:
    """Eight KiB are plenty."""
    assert "larger" in refused(token(claims(x="y" * limits.MAX_JWT_SVID_BYTES)))


def test_deeply_nested_payload_is_refused() -> None:
    """Recursion is not an internal error."""
    refused(token(b'{"x":' + b"[" * 2500 + b"]" * 2500 + b"}"))


def test_the_detail_never_repeats_the_token() -> None:
    """Refusals are logged and sent to peers: a bearer token must not be in them."""
    text = token(claims(aud=["other"]))
    assert all(part not in refused(text) for part in text.split("."))


def test_jwks_of_other_uses_and_kinds_are_left_out() -> None:
    """A SPIFFE bundle document also holds X.509 anchors; symmetric keys never sign JWT-SVIDs."""
    document = {
        "spiffe_sequence": 3,
        "keys": [
            public(EC_KEY, "anchor", use="x509-svid"),
            {"kty": "oct", "k": "AAAA", "kid": "secret"},
            {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "ed"},
            public(EC_KEY, "good", use="jwt-svid"),
        ],
    }
    assert list(parse_jwks(json.dumps(document).encode())) == ["good"]


def test_the_private_part_of_a_published_key_is_not_kept() -> None:
    """A carelessly exported JWKS must not put a private key into the sidecar's memory."""
    document = {"keys": [{**EC_KEY.as_dict(private=True), "kid": "a"}]}
    key = parse_jwks(json.dumps(document).encode())["a"]
    assert not key.is_private


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": [1]}',
        b'{"keys": [{"kty": "EC", "kid": "a", "crv": "P-256"}]}',
        b'{"keys": [{"kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"}]}',
        b'{"keys": [{"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB"}]}',
        b'{"keys": [], "keys": []}',
        json.dumps({"keys": [public(EC_KEY, "")]}).encode(),
        json.dumps({"keys": [public(EC_KEY, "a"), public(RSA_KEY, "a")]}).encode(),
        b" " * (limits.MAX_JWKS_BYTES + 1),
    ],
)
def test_a_malformed_jwks_is_refused(document: bytes) -> None:
    """Total over what a file may hold."""
    with pytest.raises(EvidenceError) as error:
        parse_jwks(document)
    assert error.value.reason in {Reason.IDENTITY_INVALID, Reason.KEY_UNSAFE}


def test_a_short_rsa_key_in_a_jwks_is_unsafe() -> None:
    """1024 bits can be factored."""
    modulus = base64.urlsafe_b64encode(b"\xff" * 128).rstrip(b"=").decode()
    entry = {"kty": "RSA", "n": modulus, "e": "AQAB", "kid": "weak"}
    with pytest.raises(EvidenceError) as error:
        parse_jwks(json.dumps({"keys": [entry]}).encode())
    assert error.value.reason is Reason.KEY_UNSAFE
