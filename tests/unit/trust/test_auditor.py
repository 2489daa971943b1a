"""Which keys payloads may be sealed to."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from joserfc.jwk import OKPKey

from trust import limits
from trust.auditor import key_id_of, parse_auditor_key, parse_auditors
from trust.compact import to_base64url
from trust.errors import EvidenceError, Reason
from trust.mesh import parse_mesh

P = 2**255 - 19
# RFC 7748, section 6.1 (Alice's public key)
ALICE = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
SMALL = (
    0,
    1,
    P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)


def refused(text: str) -> str:
    with pytest.raises(EvidenceError) as caught:
        parse_auditor_key("audit-1", text)
    assert caught.value.reason is Reason.KEY_UNSAFE
    return caught.value.detail


def test_the_key_id_is_the_jwk_thumbprint() -> None:
    """As joserfc computes it (RFC 7638), so any JOSE library names the same key."""
    jwk = OKPKey.import_key({"kty": "OKP", "crv": "X25519", "x": to_base64url(ALICE)})
    assert key_id_of(ALICE) == jwk.thumbprint()
    key = parse_auditor_key("audit-1", to_base64url(ALICE))
    assert (key.name, key.public, key.id) == ("audit-1", ALICE, jwk.thumbprint())


@pytest.mark.parametrize("u", SMALL)
def test_points_of_small_order_are_refused(u: int) -> None:
    """What is sealed to one of them everybody can read; the library agrees that they are such points."""
    raw = u.to_bytes(32, "little")
    assert "small order" in refused(to_base64url(raw))
    with pytest.raises(ValueError, match=r"."):
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))


@pytest.mark.parametrize("u", [P, P + 1, P + 9, 2**255, 2**255 + 9, 2**256 - 1])
def test_other_spellings_of_a_point_are_refused(u: int) -> None:
    """Else one auditor's key could be listed twice, or a small-order point hide."""
    assert "not canonically" in refused(to_base64url(u.to_bytes(32, "little")))


@pytest.mark.parametrize("text", ["", "A", to_base64url(ALICE) + "=", to_base64url(ALICE[:31]), "ä" * 43])
def test_what_is_no_key_is_refused_with_what_to_do(text: str) -> None:
    """The message names the command that prints the right text."""
    assert "egm keys show" in refused(text)


def test_one_key_under_two_names_is_refused() -> None:
    """An auditor that is listed twice looks like two."""
    text = to_base64url(ALICE)
    with pytest.raises(EvidenceError, match="audit-1 and audit-2 have the same key"):
        parse_auditors({"audit-2": text, "audit-1": text})


def test_more_auditors_than_a_record_holds_are_refused() -> None:
    """Each adds to every record."""
    many = {
        f"a{n}": to_base64url(X25519PrivateKey.generate().public_key().public_bytes_raw())
        for n in range(limits.MAX_AUDITORS + 1)
    }
    with pytest.raises(EvidenceError, match="at most 8"):
        parse_auditors(many)


@pytest.mark.parametrize("auditors", [{"audit-1": to_base64url(bytes(32))}, {"Audit": to_base64url(ALICE)}])
def test_a_mesh_json_with_an_unusable_auditor_is_refused_at_load(auditors: dict[str, str]) -> None:
    """A sidecar never seals to such a key, whoever signed it."""
    data = json.dumps({"trust_domain": "mesh.local", "auditors": auditors}).encode()
    with pytest.raises(EvidenceError) as caught:
        parse_mesh(data)
    assert caught.value.reason is Reason.BUNDLE_MALFORMED


def test_auditors_of_a_mesh_come_in_the_order_of_their_names() -> None:
    """So that records of one policy list them alike."""
    other = to_base64url(X25519PrivateKey.generate().public_key().public_bytes_raw())
    data = json.dumps({"trust_domain": "mesh.local", "auditors": {"b": other, "a": to_base64url(ALICE)}})
    assert [key.name for key in parse_mesh(data.encode()).auditor_keys()] == ["a", "b"]
