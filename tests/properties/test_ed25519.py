"""libsodium, which judges the signatures of calls, and OpenSSL, which judges all others, agree."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from trust.ed25519 import Signer, is_signature

SEEDS = st.binary(min_size=32, max_size=32)
MESSAGES = st.binary(max_size=300)


def by_openssl(signature: bytes, data: bytes, key: Ed25519PublicKey) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


@given(SEEDS, MESSAGES)
def test_both_make_the_same_signature_and_accept_it(seed: bytes, data: bytes) -> None:
    """RFC 8032 leaves a signer no choice: whoever verifies permits elsewhere sees no difference."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    signature = Signer(private).sign(data)
    assert signature == private.sign(data)
    assert is_signature(signature, data, private.public_key())


@given(SEEDS, MESSAGES, st.data())
def test_both_refuse_whatever_was_changed(seed: bytes, data: bytes, draw: st.DataObject) -> None:
    """One bit of the signature, of the message or of the key."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    parts = [private.sign(data), data, private.public_key().public_bytes_raw()]
    which = draw.draw(st.sampled_from([0, 1, 2] if data else [0, 2]))
    bit = draw.draw(st.integers(0, 8 * len(parts[which]) - 1))
    changed = bytearray(parts[which])
    changed[bit // 8] ^= 1 << bit % 8
    parts[which] = bytes(changed)
    key = Ed25519PublicKey.from_public_bytes(parts[2])
    assert not is_signature(parts[0], parts[1], key)
    assert not by_openssl(parts[0], parts[1], key)


@given(SEEDS, MESSAGES, st.binary(min_size=64, max_size=64))
def test_both_refuse_what_nobody_signed(seed: bytes, data: bytes, signature: bytes) -> None:
    """Any 64 bytes under any key."""
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    assert not is_signature(signature, data, key)
    assert not by_openssl(signature, data, key)


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
def test_a_signature_of_another_length_is_none(size: int) -> None:
    """libsodium takes its 64 bytes from what it is given: a short one must not borrow from the message."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    signature = (private.sign(b"egm") + b"egm" * 32)[:size]
    assert not is_signature(signature, b"egm", private.public_key())
