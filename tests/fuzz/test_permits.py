"""Whatever arrives as a permit or an endorsement is answered or refused; nothing but our own errors comes out."""

import contextlib
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.permits import (
    ALICE,
    CERTIFICATE,
    NOW_MS,
    PAY,
    PAYMENTS,
    REQUEST,
    NodeCa,
    Signing,
    b64,
    forge,
    payload_of,
    token,
)
from trust.errors import MeshError
from trust.node_key import make_endorsement, verify_endorsement
from trust.permit import read_claims, verify

quick = settings(max_examples=200, deadline=None)
SIGNING = Signing()
TOKEN = token(SIGNING)
CA = NodeCa()
ENDORSEMENT = make_endorsement(CA.svid(), SIGNING.private.public_key(), NOW_MS)


def check(text: str) -> bool:
    """Return whether `text` is accepted; only our own errors may come out."""
    with contextlib.suppress(MeshError):
        read_claims(text)
    try:
        verify(
            text,
            key_of=SIGNING.key_of,
            caller=ALICE,
            audience=PAYMENTS,
            method=PAY,
            request_sha256=REQUEST,
            client_cert_sha256=CERTIFICATE,
            now_ms=NOW_MS,
        )
    except MeshError:
        return False
    return True


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(ALICE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@quick
@given(st.text(max_size=300) | st.text("AQgw.-_=", max_size=300))
@example("..")
@example(TOKEN.split(".")[0] + "..")
@example("\ud800.\ud800.\ud800")
def test_permits_from_any_text(text: str) -> None:
    """Noise is never a permit."""
    assert not check(text)


@quick
@given(st.sampled_from([*sorted(payload_of(TOKEN)), "parent", "att", ""]), json_values)
def test_permits_with_any_value_in_any_claim(name: str, value: Any) -> None:
    """Signed by the real key: only the value that was there is accepted."""
    payload = payload_of(TOKEN)
    same = name in payload and json.dumps(payload[name]) == json.dumps(value)
    accepted = check(forge(SIGNING, {**payload, name: value}))
    # iat and exp have other values that are in time
    assert same or name in {"iat", "exp", "bnd", "jti"} or not accepted


@quick
@given(st.binary(max_size=300))
def test_permits_with_any_bytes_as_claims_or_header(data: bytes) -> None:
    """Signed by the real key, too."""
    assert not check(forge(SIGNING, data))
    assert not check(forge(SIGNING, payload_of(TOKEN), header=data))


def endorse(data: bytes) -> bool:
    """Return whether `data` is accepted as an endorsement; only our own errors may come out."""
    try:
        verify_endorsement(data, CA.pem, "mesh.local", NOW_MS)
    except MeshError:
        return False
    return True


@quick
@given(st.binary(max_size=400))
@example(b"..")
@example(b"e30.e30.")
@example(b"\xff.\xff.\xff")
def test_endorsements_from_any_bytes(data: bytes) -> None:
    """Noise vouches for nobody."""
    assert not endorse(data)


@quick
@given(st.integers(0, len(ENDORSEMENT) - 1), st.integers(1, 255))
def test_endorsements_with_one_byte_changed(position: int, flip: int) -> None:
    """Mutations of a real one reach deeper than noise, and are refused all the same."""
    data = bytearray(ENDORSEMENT)
    data[position] ^= flip
    assert endorse(ENDORSEMENT)
    assert not endorse(bytes(data))


@quick
@given(st.dictionaries(st.sampled_from(["alg", "typ", "x5c", "crit"]), json_values, max_size=4), json_values)
def test_endorsements_with_any_header_and_claims(header: Any, body: Any) -> None:
    """Every shape of JSON in both parts."""
    head, claims, signature = ENDORSEMENT.decode().split(".")
    for one, two in ((header, body), ({"alg": "ES256", "typ": "egm-node-key+jwt", **header}, body)):
        first, second = (b64(json.dumps(part).encode()) for part in (one, two))
        for parts in ((first, second, signature), (head, second, signature), (first, claims, signature)):
            assert not endorse(".".join(parts).encode())
