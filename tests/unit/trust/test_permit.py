"""Permits: the one that is accepted, and every way to misuse or forge one."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, OKPKey

from tests.support.permits import (
    ALICE,
    CERTIFICATE,
    EXECUTION,
    NODE,
    NOW_MS,
    NOW_S,
    OTHER_NODE,
    PAY,
    PAYMENTS,
    REQUEST,
    ROOT,
    NodeCa,
    Signing,
    b64,
    claims,
    forge,
    payload_of,
    token,
)
from trust import limits
from trust.errors import MeshError, Reason
from trust.permit import Permit, certificate_sha256, mint, permit_sha256, read_claims, verify

NODE_KEY = Signing()
SKEW_S = limits.MAX_CLOCK_SKEW_MS // 1000
FOREIGN = "spiffe://mesh.local/workload/bob"


def accept(text: str, **changes: Any) -> Permit:
    options: dict[str, Any] = {
        "key_of": NODE_KEY.key_of,
        "caller": ALICE,
        "audience": PAYMENTS,
        "method": PAY,
        "request_sha256": REQUEST,
        "client_cert_sha256": CERTIFICATE,
        "now_ms": NOW_MS,
    }
    return verify(text, **{**options, **changes})


def refused(text: str, **changes: Any) -> tuple[Reason, str]:
    with pytest.raises(MeshError) as error:
        accept(text, **changes)
    return error.value.reason, error.value.detail


def test_a_permit_is_accepted_for_exactly_the_execution_it_was_minted_for() -> None:
    """Every claim comes back as it went in, with the digest a child will name."""
    text = token(NODE_KEY)
    permit = accept(text)
    assert permit.claims == claims()
    assert permit.key == NODE_KEY.public
    assert permit.sha256 == permit_sha256(text)
    assert read_claims(text) == claims()


def test_a_permit_of_a_child_execution_names_parent_and_root() -> None:
    """The chain is in the signed claims."""
    child = {"root_id": ROOT, "parent_sha256": permit_sha256(token(NODE_KEY))}
    assert accept(token(NODE_KEY, **child)).claims == claims(**child)


@pytest.mark.parametrize("change", [{"root_id": ROOT}, {"parent_sha256": b"\x01" * 32}])
def test_a_root_with_a_parent_or_a_child_without_is_never_minted(change: dict[str, Any]) -> None:
    """Membership in a chain is proved by a parent, or there is none."""
    with pytest.raises(MeshError) as error:
        token(NODE_KEY, **change)
    assert error.value.reason is Reason.PERMIT_INVALID


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"caller": FOREIGN}, "(sub)"),
        ({"audience": FOREIGN}, "(aud)"),
        ({"method": "shop.Payments/Refund"}, "(mth)"),
        ({"method": PAY.lower()}, "(mth)"),
        ({"request_sha256": b"\x12" * 32}, "(req)"),
        ({"request_sha256": None}, "(req)"),
        ({"client_cert_sha256": b"\x23" * 32}, "(cnf)"),
    ],
)
def test_a_genuine_permit_for_another_call_is_a_mismatch(changes: dict[str, Any], text: str) -> None:
    """Stolen, redirected, or with other bytes: each binding by itself."""
    reason, detail = refused(token(NODE_KEY), **changes)
    assert reason is Reason.PERMIT_MISMATCH
    assert text in detail


def test_a_permit_bound_by_method_alone_is_not_enough_where_the_request_counts() -> None:
    """A stream's permit must not be spent on a unary call with chosen bytes."""
    text = token(NODE_KEY, request_sha256=None)
    assert accept(text, request_sha256=None)
    assert refused(text)[0] is Reason.PERMIT_MISMATCH


@pytest.mark.parametrize(
    ("now_ms", "accepted"),
    [
        ((NOW_S + 30) * 1000 + limits.MAX_CLOCK_SKEW_MS - 1, True),
        ((NOW_S + 30) * 1000 + limits.MAX_CLOCK_SKEW_MS, False),
        (NOW_S * 1000 - limits.MAX_CLOCK_SKEW_MS, True),
        (NOW_S * 1000 - limits.MAX_CLOCK_SKEW_MS - 1, False),
    ],
)
def test_time_is_exact_to_the_millisecond_with_the_skew_forgiven(now_ms: int, *, accepted: bool) -> None:
    """Expired and not yet valid, at the edges."""
    if accepted:
        assert accept(token(NODE_KEY), now_ms=now_ms)
    else:
        assert refused(token(NODE_KEY), now_ms=now_ms)[0] is Reason.PERMIT_EXPIRED


@pytest.mark.parametrize("lifetime", [-1, 0, limits.MAX_PERMIT_LIFETIME_S + 1])
def test_a_lifetime_out_of_bounds_is_neither_minted_nor_accepted(lifetime: int) -> None:
    """A node that mints for a day is not believed."""
    with pytest.raises(MeshError):
        token(NODE_KEY, expires_s=NOW_S + lifetime)
    payload = {**payload_of(token(NODE_KEY)), "exp": NOW_S + lifetime}
    assert refused(forge(NODE_KEY, payload))[0] is Reason.PERMIT_INVALID


WRONG: list[tuple[str, Any]] = [
    ("iss", str(OTHER_NODE)),
    ("iss", None),
    ("sub", ""),
    ("sub", 7),
    ("aud", [PAYMENTS]),
    ("aud", ...),
    ("iat", NOW_S + 0.5),
    ("iat", True),
    ("iat", str(NOW_S)),
    ("iat", -1),
    ("exp", ...),
    ("exp", 1e300),
    ("exp", 2**70),
    ("jti", b64(b"\x33" * 15)),
    ("jti", b64(b"\x33" * 16) + "="),
    ("jti", b64(b"\x33" * 16)[:-1] + "x"),  # the same bytes, but spare bits that are not zero
    ("txn", "0198F2F3-EAAA-7BBB-8CCC-0123456789AC"),
    ("txn", "0198f2f3-eaaa-4bbb-8ccc-0123456789ac"),  # version 4
    ("txn", "0198f2f3-eaaa-7bbb-8ccc-0123456789ab"),  # another root, without a parent
    ("eid", ...),
    ("eid", "0198f2f3eaaa7bbb8ccc0123456789ac"),
    ("parent", b64(b"\x01" * 32)),  # a root with a parent
    ("parent", None),
    ("mth", ...),
    ("mth", ""),
    ("req", "é"),
    ("req", None),
    ("req", b64(REQUEST[:31])),
    ("bnd", ...),
    ("bnd", {"v": 7}),
    ("bnd", {"v": 7, "d": b64(b"\x44" * 32), "x": 1}),
    ("bnd", {"v": True, "d": b64(b"\x44" * 32)}),
    ("bnd", [7]),
    ("cnf", {}),
    ("cnf", {"x5t#S256": "AA"}),
    ("cnf", {"x5t#S256": b64(CERTIFICATE), "jwk": {}}),
    ("cnf", "x5t#S256"),
    ("nbf", NOW_S),
    ("att", "A" * 42),
    ("att", 7),
    ("admin", True),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_misshapen_claim_is_invalid_though_the_signature_is_good(name: str, value: Any) -> None:
    """Canonical or refused: each claim by itself, and claims that do not exist."""
    payload = {**payload_of(token(NODE_KEY)), name: value}
    payload = {key: each for key, each in payload.items() if each is not ...}
    assert refused(forge(NODE_KEY, payload))[0] is Reason.PERMIT_INVALID


@pytest.mark.parametrize("name", list(payload_of(token(NODE_KEY))))
def test_a_claim_changed_after_signing_is_invalid(name: str) -> None:
    """Whatever is altered in a signed permit, it is the signature that fails, and no other reason is given."""
    header, _, signature = token(NODE_KEY).split(".")
    payload = payload_of(token(NODE_KEY))
    payload[name] = 1 if isinstance(payload[name], int) else FOREIGN
    altered = b64(json.dumps(payload, separators=(",", ":")).encode())
    reason, detail = refused(f"{header}.{altered}.{signature}")
    assert reason is Reason.PERMIT_INVALID
    assert "signature" in detail


HEADER = {"alg": "EdDSA", "typ": "egm-permit+jwt", "kid": NODE_KEY.kid}


@pytest.mark.parametrize(
    "header",
    [
        {**HEADER, "alg": "none"},
        {**HEADER, "alg": "Ed25519"},
        {**HEADER, "alg": "eddsa"},
        {**HEADER, "alg": "ES256"},
        {**HEADER, "alg": "HS256"},
        {**HEADER, "typ": "JWT"},
        {**HEADER, "typ": "egm-node-key+jwt"},
        {**HEADER, "typ": "application/egm-permit+jwt"},
        {**HEADER, "crit": ["exp"]},
        {**HEADER, "jwk": {}},
        {**HEADER, "b64": False, "crit": ["b64"]},
        {**HEADER, "kid": ""},
        {**HEADER, "kid": 7},
        {"alg": "EdDSA", "typ": "egm-permit+jwt"},
        {"alg": "EdDSA", "kid": NODE_KEY.kid},
        {"typ": "egm-permit+jwt", "alg": "EdDSA", "kid": NODE_KEY.kid},  # another order
        json.dumps(HEADER).encode(),  # with spaces
        json.dumps(HEADER, separators=(",", ":"))[:-1].encode() + b',"alg":"none"}',
        b"[]",
        b"",
    ],
    ids=lambda header: type(header).__name__,  # the key, and so the text, differs in every process
)
def test_any_other_header_is_invalid_though_the_signature_is_good(header: Any) -> None:
    """Algorithm, type and members are pinned to the byte, so none of them can be negotiated."""
    assert refused(forge(NODE_KEY, payload_of(token(NODE_KEY)), header=header))[0] is Reason.PERMIT_INVALID


def by_joserfc(alg: str, key: Any, header: dict[str, Any] | None = None) -> str:
    body = json.dumps(payload_of(token(NODE_KEY)), separators=(",", ":")).encode()
    head = b64(json.dumps(header or {**HEADER, "alg": alg}, separators=(",", ":")).encode())
    signed = f"{head}.{b64(body)}"
    return f"{signed}.{b64(jws.JWSRegistry.algorithms[alg].sign(signed.encode(), key))}"


def test_the_public_key_used_as_a_secret_or_another_algorithm_is_invalid() -> None:
    """Algorithm confusion, announced in the header or hidden behind the right one."""
    public = NODE_KEY.private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (public.public_bytes_raw(), pem):
        key = OctKey.import_key(b64(secret))
        assert refused(by_joserfc("HS256", key))[0] is Reason.PERMIT_INVALID
        assert refused(by_joserfc("HS256", key, HEADER))[0] is Reason.PERMIT_INVALID
    ec_key = ECKey.generate_key("P-256")
    assert refused(by_joserfc("ES256", ec_key))[0] is Reason.PERMIT_INVALID
    assert refused(by_joserfc("ES256", ec_key, HEADER))[0] is Reason.PERMIT_INVALID


def test_a_permit_without_signature_is_invalid() -> None:
    """The oldest forgery."""
    header, body, signature = token(NODE_KEY).split(".")
    none = b64(json.dumps({**HEADER, "alg": "none"}, separators=(",", ":")).encode())
    forged = (f"{none}.{body}.", f"{header}.{body}.", f"{header}.{body}", f"{header}..{signature}")
    for text in (*forged, f"{header}.{body}.{signature}.{signature}"):
        assert refused(text)[0] is Reason.PERMIT_INVALID


def test_a_signature_with_another_spelling_is_invalid() -> None:
    """Spare bits of base64url, padding, whitespace: one permit has one spelling."""
    text = token(NODE_KEY)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet[alphabet.index(text[-1]) | 1]
    for other in (text[:-1] + last, text + "=", text + "==", text + "\n", " " + text):
        assert refused(other)[0] is Reason.PERMIT_INVALID


def test_the_key_id_of_another_node_does_not_help() -> None:
    """Signed by n1 under the id of n2, and signed by n2 in the name of n1."""
    other = Signing(node=OTHER_NODE)
    keys = {NODE_KEY.kid: NODE_KEY.public, other.kid: other.public}
    text = mint(claims(), NODE_KEY.private.sign, other.kid)
    reason, detail = refused(text, key_of=keys.__getitem__)
    assert (reason, "signature" in detail) == (Reason.PERMIT_INVALID, True)
    reason, detail = refused(token(other), key_of=keys.__getitem__)
    assert (reason, "iss" in detail) == (Reason.PERMIT_INVALID, True)
    assert accept(token(other, issuer=str(OTHER_NODE)), key_of=keys.__getitem__)


def test_an_unknown_key_or_one_that_is_no_longer_vouched_for_is_unverifiable() -> None:
    """What cannot be checked is not accepted, and the caller may try again."""
    assert refused(token(Signing()))[0] is Reason.PERMIT_UNVERIFIABLE
    ended = Signing(not_after_ms=NOW_MS)
    assert refused(token(ended), key_of=ended.key_of)[0] is Reason.PERMIT_UNVERIFIABLE


@pytest.mark.parametrize("body", [b'{"iss":"a","iss":"b"}', b"[]", b"", b"{", b"\xff", b'{"iat":NaN}'])
def test_claims_that_are_not_one_json_object_are_invalid(body: bytes) -> None:
    """Duplicates would let two readers see two permits."""
    assert refused(forge(NODE_KEY, body))[0] is Reason.PERMIT_INVALID


def test_a_repeated_claim_is_invalid_at_any_depth() -> None:
    """Also inside `bnd`."""
    body = json.dumps(payload_of(token(NODE_KEY)), separators=(",", ":"))
    for forged in (body[:-1] + ',"aud":"x"}', body.replace('{"v":7', '{"v":6,"v":7')):
        assert refused(forge(NODE_KEY, forged.encode()))[0] is Reason.PERMIT_INVALID


def test_deep_nesting_and_excess_size_are_invalid() -> None:
    """Recursion and volume end as a refusal."""
    nested = b'{"iss":' + b"[" * 1400 + b"]" * 1400 + b"}"
    assert refused(forge(NODE_KEY, nested))[0] is Reason.PERMIT_INVALID
    reason, detail = refused("A" * (limits.MAX_PERMIT_BYTES + 1))
    assert (reason, "larger" in detail) == (Reason.PERMIT_INVALID, True)
    with pytest.raises(MeshError, match="larger"):
        token(NODE_KEY, method="m" * limits.MAX_PERMIT_BYTES)


def test_joserfc_reads_our_permits_and_we_read_what_it_writes() -> None:
    """The compact form is handled here: an independent library agrees with both directions, to the byte."""
    private = OKPKey(NODE_KEY.private, NODE_KEY.private)
    public = OKPKey(NODE_KEY.private.public_key(), NODE_KEY.private.public_key())
    ours = token(NODE_KEY)
    with pytest.warns(SecurityWarning, match="EdDSA"):
        parsed = jws.deserialize_compact(ours, public, algorithms=["EdDSA"])
    assert parsed.headers() == HEADER
    assert json.loads(parsed.payload or b"") == payload_of(ours)
    with pytest.warns(SecurityWarning, match="EdDSA"):
        theirs = jws.serialize_compact(HEADER, parsed.payload or b"", private, algorithms=["EdDSA"])
    assert theirs == ours  # Ed25519 is deterministic
    assert accept(theirs).claims == claims()


def test_refusals_never_repeat_the_permit() -> None:
    """Details are logged and sent to peers."""
    for change in ({"caller": FOREIGN}, {"now_ms": 0}, {"method": "x.Y/Z"}):
        _, detail = refused(token(NODE_KEY), **change)
        assert ALICE not in detail
        assert all(part not in detail for part in token(NODE_KEY).split("."))


@pytest.mark.parametrize("kid", ["", "x", "A" * 42, "A" * 44, "A" * 42 + "!", "A" * 42 + '"'])
def test_a_key_id_that_is_no_digest_is_never_minted(kid: str) -> None:
    """It would be refused everywhere, so the mistake shows where it is made."""
    with pytest.raises(MeshError):
        mint(claims(), NODE_KEY.private.sign, kid)


def test_the_certificate_digest_is_that_of_the_leaf_in_der() -> None:
    """RFC 8705, section 3.1: what any other implementation computes."""
    svid = NodeCa(issuer=NodeCa()).svid(NODE)
    body = svid.chain_pem.split(b"-----")[2]
    import hashlib

    assert certificate_sha256(svid.chain_pem) == hashlib.sha256(base64.b64decode(body)).digest()


def test_ids_are_written_as_uuids() -> None:
    """What a person reads in a decoded permit is what `egm lineage` prints."""
    assert payload_of(token(NODE_KEY))["eid"] == "01a3185c-50fa-7bbb-8ccc-0123456789ac"
    assert read_claims(token(NODE_KEY)).execution_id == EXECUTION
