"""Ed25519 public keys that must never count, and some that must (provenance: SOURCES.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import Key, Signature, SSlibKey

from trust.errors import EvidenceError, Reason
from trust.keys import check_public_key, key_material

VECTORS: dict[str, list[Any]] = json.loads(
    Path(__file__).with_name("ed25519_public_keys.json").read_text(encoding="utf-8")
)
P = 2**255 - 19
D = -121665 * pow(121666, P - 2, P) % P
L = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
Point = tuple[int, int]


def key(public: str) -> Key:
    return SSlibKey("00" * 32, "ed25519", "ed25519", {"public": public})


def refusal(public: str) -> str:
    with pytest.raises(EvidenceError) as caught:
        check_public_key(key(public))
    assert caught.value.reason is Reason.KEY_UNSAFE
    return caught.value.detail


def decoded(public: str) -> Point:
    """Decode as lenient libraries do: y modulo p, and minus zero is zero (RFC 8032 section 5.1.3 forbids both)."""
    encoded = int.from_bytes(bytes.fromhex(public), "little")
    y = (encoded & (2**255 - 1)) % P
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return (x if x & 1 == encoded >> 255 else -x % P), y


def times(factor: int, point: Point) -> Point:
    """Multiply a point of edwards25519 (RFC 8032 section 5.1.4, affine)."""
    result: Point = (0, 1)
    while factor:
        if factor & 1:
            result = _add(result, point)
        point, factor = _add(point, point), factor >> 1
    return result


def _add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + k, P - 2, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - k, P - 2, P) % P


@pytest.mark.parametrize(("public", "about"), VECTORS["small_order"] + VECTORS["small_order_alternative"])
def test_every_encoding_of_a_small_order_point_is_refused(public: str, about: str) -> None:
    """All eight points and the six further encodings that some libraries decode."""
    assert times(8, decoded(public)) == (0, 1)
    detail = refusal(public)
    assert "canonically" in detail if about.startswith("y = p") else "small order" in detail


@pytest.mark.parametrize("vector", VECTORS["speccheck"], ids=lambda vector: f"case {vector['case']}")
def test_key_that_verifies_a_signature_nobody_made_is_refused(vector: dict[str, str]) -> None:
    """The installed library accepts these signatures: only the check of the key stands in the way."""
    public = key(vector["key"])
    public.verify_signature(Signature(public.keyid, vector["signature"]), bytes.fromhex(vector["message"]))
    assert "small order" in refusal(vector["key"])


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("excess", range(19))
def test_every_noncanonical_y_is_refused(excess: int, sign: int) -> None:
    """RFC 8032 section 5.1.3 step 1: p to 2^255-1 are second names of 0 to 18."""
    encoded = (P + excess) | sign << 255
    assert "canonically" in refusal(encoded.to_bytes(32, "little").hex())


@pytest.mark.parametrize(("secret", "public"), VECTORS["honest"])
def test_keys_of_rfc_8032_are_accepted_in_any_spelling(secret: str, public: str) -> None:
    """Section 7.1: honest keys pass, and hexadecimal digits of either case are one key."""
    derived = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)).public_key().public_bytes_raw()
    assert derived.hex() == public
    assert times(L, decoded(public)) == (0, 1)
    check_public_key(key(public))
    assert key_material(key(public)) == key_material(key(public.upper()))


@pytest.mark.parametrize(("public", "about"), VECTORS["mixed_order"])
def test_mixed_order_key_is_accepted(public: str, about: str) -> None:
    """A large point plus a small one still needs the secret; libraries only differ in when they accept it."""
    assert times(8, decoded(public)) != (0, 1) != times(L, decoded(public))
    check_public_key(key(public))
