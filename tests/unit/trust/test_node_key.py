"""Endorsements of node keys: the one that verifies, and every way to vouch for the wrong key."""

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, RSAKey

from tests.support.permits import NODE, NOW_MS, NOW_S, OTHER_NODE, NodeCa, b64
from trust import limits
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.identity import Svid
from trust.node_key import NodeKey, endorsement_digest, make_endorsement, verify_endorsement
from trust.spiffe import SpiffeId

CA = NodeCa()
LEAF = ec.generate_private_key(ec.SECP256R1())
SVID = CA.svid(key=LEAF)
KEY = Ed25519PrivateKey.generate().public_key()
SMALL_ORDER = (
    "00" * 32,
    "01" + "00" * 31,
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)


def accept(endorsement: bytes, *, anchors: bytes = CA.pem, now_ms: int = NOW_MS) -> NodeKey:
    return verify_endorsement(endorsement, anchors, "mesh.local", now_ms)


def refused(endorsement: bytes, **options: Any) -> tuple[Reason, str]:
    with pytest.raises(MeshError) as error:
        accept(endorsement, **options)
    assert type(error.value) is (
        StateError if error.value.reason is Reason.PERMIT_UNVERIFIABLE else EvidenceError
    )
    return error.value.reason, error.value.detail


def chain_of(svid: Svid) -> list[str]:
    return [
        base64.b64encode(base64.b64decode(part)).decode()
        for part in svid.chain_pem.split(b"-----")
        if len(part) > 100
    ]


def forge(
    claims: Any = None, header: Any = None, *, key: Any = None, alg: str = "ES256", svid: Svid = SVID
) -> bytes:
    """Sign any header and claims with the certificate's key: what a node that lies can make."""
    right_header = {"alg": alg, "typ": "egm-node-key+jwt", "x5c": chain_of(svid)}
    right_claims = {
        "sub": str(svid.spiffe_id),
        "jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(KEY.public_bytes_raw())},
        "iat": NOW_S,
        "exp": NOW_S + 3000,
    }
    parts = []
    for given, right in ((header, right_header), (claims, right_claims)):
        if isinstance(given, bytes):
            parts.append(b64(given))
            continue
        value = {name: each for name, each in {**right, **(given or {})}.items() if each is not ...}
        parts.append(b64(json.dumps(value, separators=(",", ":")).encode()))
    signed = ".".join(parts)
    signature = jws.JWSRegistry.algorithms[alg].sign(signed.encode(), key or ECKey(LEAF, LEAF))
    return f"{signed}.{b64(signature)}".encode()


def test_the_forger_of_these_tests_can_also_tell_the_truth() -> None:
    """Otherwise every refusal below would prove nothing."""
    assert accept(forge()).node == NODE


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (rsa.generate_private_key(65537, 2048), "RS256"),
    ],
)
def test_a_node_endorses_its_key_with_whatever_key_its_certificate_has(key: Any, alg: str) -> None:
    """The embedded CA issues P-256, SPIRE also P-384 and RSA."""
    endorsement = make_endorsement(CA.svid(key=key), KEY, NOW_MS)
    held = accept(endorsement)
    assert (held.node, held.not_after_ms) == (NODE, NOW_S * 1000 + 3_600_000)
    assert held.public_key.public_bytes_raw() == KEY.public_bytes_raw()
    assert held.digest == endorsement_digest(endorsement) == b64(hashlib.sha256(endorsement).digest())
    head = endorsement.split(b".")[0]
    assert json.loads(base64.urlsafe_b64decode(head + b"=="))["alg"] == alg


def test_a_chain_with_an_intermediate_leads_to_the_root() -> None:
    """SPIRE's servers sign with an intermediate; the root travels in no endorsement."""
    svid = NodeCa(issuer=NodeCa(issuer=CA)).svid()
    assert accept(make_endorsement(svid, KEY, NOW_MS)).node == NODE


def test_an_endorsement_ends_with_its_certificate_and_after_a_day_at_the_latest() -> None:
    """A key is never vouched for longer than its node."""
    short = make_endorsement(CA.svid(after_ms=NOW_MS + 60_000), KEY, NOW_MS)
    assert accept(short).not_after_ms == (NOW_S + 60) * 1000
    assert accept(short, now_ms=(NOW_S + 60) * 1000 - 1)
    assert refused(short, now_ms=(NOW_S + 60) * 1000)[0] is Reason.PERMIT_UNVERIFIABLE
    long = make_endorsement(CA.svid(after_ms=NOW_MS + 90 * 24 * 3_600_000), KEY, NOW_MS)
    assert accept(long).not_after_ms == (NOW_S + limits.MAX_ENDORSEMENT_LIFETIME_S) * 1000


def test_only_a_node_with_a_living_certificate_endorses() -> None:
    """A workload's certificate must not turn its holder into a permit issuer."""
    with pytest.raises(EvidenceError, match="not a node"):
        make_endorsement(CA.svid(SpiffeId("mesh.local", "workload/alice")), KEY, NOW_MS)
    with pytest.raises(StateError):
        make_endorsement(CA.svid(after_ms=NOW_MS), KEY, NOW_MS)


@pytest.mark.parametrize("path", ["workload/n1", "control-plane/n1", "operator/n1", "nodes/n1", "x/node/n1"])
def test_the_certificate_of_anybody_else_vouches_for_no_node_key(path: str) -> None:
    """Every workload has a certificate of the same CA."""
    svid = CA.svid(SpiffeId("mesh.local", path), key=LEAF)
    assert refused(forge(svid=svid))[0] is Reason.PERMIT_INVALID
    assert refused(forge({"sub": str(NODE)}, svid=svid))[0] is Reason.PERMIT_INVALID


def test_a_certificate_with_two_names_or_of_another_domain_is_refused() -> None:
    """Exactly one SPIFFE ID, of this trust domain, even under the same CA."""
    two = CA.svid(key=LEAF, uris=[str(NODE), str(OTHER_NODE)])
    assert refused(forge(svid=two))[0] is Reason.PERMIT_INVALID
    other = CA.svid(SpiffeId("other.local", "node/n1"), key=LEAF)
    assert refused(forge(svid=other))[0] is Reason.PERMIT_INVALID


def test_a_chain_that_leads_elsewhere_or_is_broken_is_refused() -> None:
    """Another CA, a CA's certificate as leaf, an intermediate left out, parts swapped."""
    assert refused(forge(), anchors=NodeCa().pem)[0] is Reason.PERMIT_INVALID
    assert refused(forge(svid=CA.svid(key=LEAF, ca=True)))[0] is Reason.PERMIT_INVALID
    deep = NodeCa(issuer=CA).svid(key=LEAF)
    assert refused(forge(header={"x5c": chain_of(deep)[:1]}))[0] is Reason.PERMIT_INVALID
    assert refused(forge(header={"x5c": chain_of(deep)[::-1]}))[0] is Reason.PERMIT_INVALID


@pytest.mark.parametrize(
    ("before_ms", "after_ms"), [(NOW_MS - 9000, NOW_MS), (NOW_MS + 6000, NOW_MS + 60_000)]
)
def test_a_certificate_outside_its_time_makes_the_key_unverifiable(before_ms: int, after_ms: int) -> None:
    """The node renews, or the clocks are mended: it may heal."""
    svid = CA.svid(key=LEAF, before_ms=before_ms, after_ms=after_ms)
    assert refused(forge(svid=svid))[0] is Reason.PERMIT_UNVERIFIABLE


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": str(OTHER_NODE)},
        {"sub": ...},
        {"sub": [str(NODE)]},
        {"jwk": ...},
        {"jwk": {"kty": "EC", "crv": "Ed25519", "x": b64(KEY.public_bytes_raw())}},
        {"jwk": {"kty": "OKP", "crv": "X25519", "x": b64(KEY.public_bytes_raw())}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(KEY.public_bytes_raw()), "d": "AA"}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(KEY.public_bytes_raw()[:31])}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": 7}},
        {"jwk": "AA"},
        {"iat": ...},
        {"iat": True},
        {"iat": 1.5},
        {"exp": NOW_S},
        {"exp": NOW_S + limits.MAX_ENDORSEMENT_LIFETIME_S + 1},
        {"exp": "never"},
        {"nbf": NOW_S},
        b"[]",
        b'{"sub":"a","sub":"b"}',
        b"\xff",
    ],
)
def test_a_wrong_claim_is_refused_though_the_signature_is_good(claims: Any) -> None:
    """Each rule by itself."""
    assert refused(forge(claims))[0] is Reason.PERMIT_INVALID


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_key_of_small_order_is_never_endorsed_nor_believed(point: str) -> None:
    """Anybody can make a signature that verifies under such a key."""
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes.fromhex(point))}
    reason, detail = refused(forge({"jwk": jwk}))
    assert (reason, "small order" in detail) == (Reason.PERMIT_INVALID, True)


def test_times_at_their_edges() -> None:
    """Skew is forgiven to an early endorsement, nothing to a late one."""
    assert accept(forge({"iat": NOW_S + 5}))
    assert refused(forge({"iat": NOW_S + 6}))[0] is Reason.PERMIT_UNVERIFIABLE
    ended = forge({"iat": NOW_S - 10, "exp": NOW_S})
    assert refused(ended)[0] is Reason.PERMIT_UNVERIFIABLE


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "RS256"},
        {"alg": "ES384"},
        {"alg": "EdDSA"},
        {"typ": "JWT"},
        {"typ": "egm-permit+jwt"},
        {"typ": ...},
        {"x5c": ...},
        {"x5c": []},
        {"x5c": "AA"},
        {"x5c": ["AA"]},
        {"x5c": ["é"]},
        {"x5c": [7]},
        {"x5c": chain_of(SVID) * (limits.MAX_CERTIFICATE_CHAIN + 1)},
        {"x5c": [chain_of(SVID)[0] + "\n"]},
        {"kid": "x"},
        {"crit": ["exp"]},
        {"jku": "https://example.org"},
        b"[]",
        b"{",
    ],
)
def test_any_other_header_is_refused_though_the_signature_is_good(header: Any) -> None:
    """Algorithm, type and key source are pinned."""
    assert refused(forge(header=header))[0] is Reason.PERMIT_INVALID


def test_the_signature_must_be_by_the_key_of_the_certificate() -> None:
    """By another key, by the endorsed key itself, by an algorithm that does not fit, by a public key as secret."""
    other = ec.generate_private_key(ec.SECP256R1())
    assert refused(forge(key=ECKey(other, other)))[0] is Reason.PERMIT_INVALID
    strange = rsa.generate_private_key(65537, 2048)
    assert refused(forge(alg="RS256", key=RSAKey(strange, strange)))[0] is Reason.PERMIT_INVALID
    secret = OctKey.import_key(b64(ECKey(LEAF, LEAF).as_pem(private=False)))
    assert refused(forge(alg="HS256", key=secret))[0] is Reason.PERMIT_INVALID


def test_bytes_changed_or_spelled_otherwise_are_refused() -> None:
    """One endorsement has one spelling, so it has one digest."""
    good = make_endorsement(SVID, KEY, NOW_MS)
    for bad in (
        b"",
        good + b"=",
        good + b"\n",
        good[:-1],
        good + b".",
        b"A" + good,
        good.replace(b".", b"", 1),
    ):
        assert refused(bad)[0] is Reason.PERMIT_INVALID
    assert "larger" in refused(b"A" * (limits.MAX_ENDORSEMENT_BYTES + 1))[1]


def test_a_chain_too_large_to_send_with_a_call_is_refused_where_it_is_made() -> None:
    """The node's operator hears of it, not every callee."""
    issuer = CA
    for _ in range(30):
        issuer = NodeCa(issuer=issuer)
    with pytest.raises(EvidenceError, match="shorter chain"):
        make_endorsement(issuer.svid(), KEY, NOW_MS)
