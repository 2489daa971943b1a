"""The quick way to read and write claims is only quicker: one encoding, and nothing accepted that was refused."""

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.test_permits import any_claims
from trust.compact import parse_object, to_base64url
from trust.errors import MeshError
from trust.permit_claims import (
    PermitClaims,
    _claims,
    _read_usual,
    format_id,
    parse_claims,
    write_claims,
)

quick = settings(max_examples=300, deadline=None)
PLAIN = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1, max_size=60)
# What an attacker who holds a node's key might put anywhere: other spellings of numbers, texts and digests.
ODD = st.sampled_from(
    [
        *(
            b'"',
            b"\\",
            b"0",
            b"00",
            b"-1",
            b"1.0",
            b"1e3",
            b" ",
            b",",
            b"}",
            b"=",
            b"B",
            b"\x00",
            b"\xff",
            b"\n",
        ),
        *(b"true", b"9" * 13, b'"\\u0041"', b'"iss":"x",', b'"att":"x"', b"+", b"/", b"{", b"F"),
    ]
)


def slowly(data: bytes) -> PermitClaims | None:
    """Read claims the general way; None when they are refused."""
    try:
        return _claims(parse_object(data))
    except (ValueError, RecursionError, MeshError):
        return None


@quick
@given(any_claims())
def test_claims_are_written_as_a_json_encoder_writes_them(told: PermitClaims) -> None:
    """ASCII, no spaces, in one order, whatever the texts hold."""
    payload = {
        "iss": told.issuer,
        "sub": told.subject,
        "aud": told.audience,
        "iat": told.issued_s,
        "exp": told.expires_s,
        "jti": to_base64url(told.permit_id),
        "txn": format_id(told.root_id),
        "eid": format_id(told.execution_id),
        "mth": told.method,
        "bnd": {"v": told.policy_version, "d": to_base64url(told.policy_digest)},
        "cnf": {"x5t#S256": to_base64url(told.certificate_sha256)},
        "parent": told.parent_sha256 and to_base64url(told.parent_sha256),
        "req": told.request_sha256 and to_base64url(told.request_sha256),
        "att": told.credential_sha256 and to_base64url(told.credential_sha256),
    }
    present = {name: value for name, value in payload.items() if value is not None}
    assert write_claims(told) == json.dumps(present, separators=(",", ":")).encode()


@quick
@given(any_claims(), PLAIN, PLAIN)
def test_ordinary_claims_are_read_the_quick_way(told: PermitClaims, one: str, other: str) -> None:
    """SPIFFE IDs and method names need no escape; what does is read the general way, to the same claims."""
    data = write_claims(told)
    assert _read_usual(data) in {None, told}
    assert parse_claims(data) == slowly(data) == told
    plain = replace(told, subject=one, audience=other, method=one)
    needs_escape = set('"\\') & set(one + other)
    assert _read_usual(write_claims(plain)) == (None if needs_escape else plain)


@quick
@given(any_claims(), st.data())
def test_the_quick_way_accepts_nothing_that_the_general_way_refuses(
    told: PermitClaims, data: st.DataObject
) -> None:
    """Bytes changed, dropped or put in anywhere: the quick reading is absent, or the general one."""
    if data.draw(
        st.booleans()
    ):  # most texts that are drawn need escapes, and would always go the general way
        told = replace(told, subject="spiffe://mesh.local/workload/a", audience="b", method="c")
    text = write_claims(told)
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(len(text), at + 3)))
    changed = text[:at] + data.draw(ODD | st.binary(max_size=2)) + text[until:]
    for candidate in (text, changed):
        quickly = _read_usual(candidate)
        if quickly is not None:
            try:
                read: PermitClaims | None = parse_claims(candidate)
            except MeshError:
                read = None
            assert slowly(candidate) == read
            assert read in {None, quickly}
