"""Where libsodium and OpenSSL judge Ed25519 signatures differently: made here, from RFC 8032's equations."""

import hashlib
from typing import Any

import nacl.bindings
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.vectors.test_ed25519_public_keys import VECTORS, D, L, P, Point, decoded, refusal, times
from trust.ed25519 import check_library, is_signature

BASE = decoded("58" + "66" * 31)
SEED, MESSAGE = bytes(range(32)), b"egm"
ORDER_8 = decoded("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")


def added(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + k, P - 2, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - k, P - 2, P) % P


def encoded(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def challenge(r: bytes, public: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + public + message).digest(), "little") % L


SECRET = int.from_bytes(hashlib.sha512(SEED).digest()[:32], "little") & (1 << 254) - 8 | 1 << 254


def signed(extra: Point, *, public: Point | None = None, nonce: int = 7) -> tuple[bytes, bytes]:
    """Return (public key, signature); its R is `nonce` times the base point plus `extra`."""
    key = encoded(times(SECRET, BASE) if public is None else public)
    r = encoded(added(times(nonce, BASE), extra))
    s = (nonce + challenge(r, key, MESSAGE) * SECRET) % L
    return key, r + s.to_bytes(32, "little")


def by_openssl(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def by_libsodium(public: bytes, signature: bytes, message: bytes) -> bool:
    return is_signature(signature, message, Ed25519PublicKey.from_public_bytes(public))


def test_the_equations_here_make_good_signatures() -> None:
    """Otherwise the refusals below would prove nothing."""
    public, signature = signed((0, 1))
    assert by_openssl(public, signature, MESSAGE)
    assert by_libsodium(public, signature, MESSAGE)


@pytest.mark.parametrize("multiple", range(1, 8))
def test_a_point_of_small_order_added_to_r_is_refused_by_both(multiple: int) -> None:
    """A verifier with cofactor accepts it, and then a permit would be honoured here that no auditor can verify."""
    extra = times(multiple, ORDER_8)
    public, signature = signed(extra)
    k = challenge(signature[:32], public, MESSAGE)
    s = int.from_bytes(signature[32:], "little")
    right = added(times(8, decoded(signature[:32].hex())), times(8 * k % (8 * L), decoded(public.hex())))
    assert times(8 * s, BASE) == right  # with cofactor
    assert not by_openssl(public, signature, MESSAGE)
    assert not by_libsodium(public, signature, MESSAGE)


@pytest.mark.parametrize("times_l", [1, 2, 14])
def test_an_s_beyond_the_group_order_is_refused_by_both(times_l: int) -> None:
    """Else every permit would have a second spelling."""
    public, signature = signed((0, 1))
    s = int.from_bytes(signature[32:], "little") + times_l * L
    other = signature[:32] + s.to_bytes(32, "little")
    assert not by_openssl(public, other, MESSAGE)
    assert not by_libsodium(public, other, MESSAGE)


def test_a_key_of_mixed_order_is_judged_alike() -> None:
    """Such a key may sign permits: what it signs is good for both or for neither."""
    mixed = added(times(SECRET, BASE), ORDER_8)
    verdicts = set()
    for nonce in range(1, 41):
        public, signature = signed((0, 1), public=mixed, nonce=nonce)
        verdicts.add(by_openssl(public, signature, MESSAGE))
        assert by_libsodium(public, signature, MESSAGE) is by_openssl(public, signature, MESSAGE)
    assert verdicts == {True, False}  # good where the challenge is a multiple of 8


def test_libsodium_alone_refuses_an_r_of_small_order() -> None:
    """Difference 1 of 2: its holder alone can make one; a permit signed so is refused where it was accepted before."""
    public, signature = signed((0, 1), nonce=0)
    assert signature[:32] == encoded((0, 1))
    assert by_openssl(public, signature, MESSAGE)
    assert not by_libsodium(public, signature, MESSAGE)


@pytest.mark.parametrize("vector", VECTORS["speccheck"], ids=lambda vector: f"case {vector['case']}")
def test_libsodium_alone_refuses_keys_of_small_order(vector: dict[str, str]) -> None:
    """Difference 2 of 2: no such key gets as far (`check_public_key`)."""
    public, signature, message = (bytes.fromhex(vector[name]) for name in ("key", "signature", "message"))
    assert by_openssl(public, signature, message)
    assert not by_libsodium(public, signature, message)
    assert refusal(vector["key"])


def test_a_library_that_judges_otherwise_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade to a verifier with cofactor must not pass unseen: the process does not start."""
    check_library()

    def accepts_everything(signed: bytes, key: Any) -> bytes:
        return signed

    monkeypatch.setattr(nacl.bindings, "crypto_sign_open", accepts_everything)
    with pytest.raises(ImportError, match="install PyNaCl"):
        check_library()
