"""Whether an Ed25519 signature of a permit or a hand-over is good; and the making of such: libsodium, for its speed.

One signature is made and one verified with every call at level 5; libsodium takes half the time of OpenSSL, which
verifies everything else here (docs/adr/0012-ed25519-by-libsodium.md). Both sign alike, byte for byte (RFC 8032 section
5.1.6 leaves no choice). Both verify without cofactor, and what libsodium accepts OpenSSL accepts, so that a permit that
was honoured here verifies for anybody. libsodium further refuses, as no honest signer makes them: public keys of small
order and those not canonically encoded (`trust.keys` refuses both before), and an R of small order.
"""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from nacl import bindings
from nacl.exceptions import BadSignatureError

SIGNATURE_BYTES: Final = 64


class Signer:
    """Signs with one private key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        """Take the key; its public half is derived from it, never given (signing under another one reveals the key)."""
        _, self._secret = bindings.crypto_sign_seed_keypair(private.private_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`, 64 bytes: the one that `Ed25519PrivateKey.sign` makes."""
        return bindings.crypto_sign(data, self._secret)[:SIGNATURE_BYTES]


def is_signature(signature: bytes, data: bytes, key: Ed25519PublicKey) -> bool:
    """Return whether the holder of `key` signed `data`. False for a signature of any other length than 64 bytes."""
    return _is_signature(signature, data, key.public_bytes_raw())


def _is_signature(signature: bytes, data: bytes, public: bytes) -> bool:
    if len(signature) != SIGNATURE_BYTES or len(public) != bindings.crypto_sign_PUBLICKEYBYTES:
        return False  # libsodium itself reads as many bytes as it needs
    try:
        bindings.crypto_sign_open(signature + data, public)
    except BadSignatureError:
        return False
    return True


# The seed 00 01 .. 1f and the message "egm". A verifier with cofactor would accept the second signature, whose R has a
# point of order 8 added; one that does not reduce would accept the third, whose S is larger by the group's order.
_PUBLIC: Final = bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")
_KNOWN: Final = (
    (
        True,
        "37a55e1577a61e44155ada3546f781ed35de144b9e940734a904478bc2872e1d"
        "1a3b138eeee224db45a263f55280f61aad1a3aa99b1bb151b8a9f1e61ed61405",
    ),
    (
        False,
        "136ec1a13fb4b1c34457b1be28a48da59005428e20b117a1bf7a16f3e516bd3e"
        "dc72e47789d43801126aa557333560bbd542c565170c31aa07f7ae33a7f5f20c",
    ),
    (
        False,
        "37a55e1577a61e44155ada3546f781ed35de144b9e940734a904478bc2872e1d"
        "070f09eb084637331c3f5b98317ad52fad1a3aa99b1bb151b8a9f1e61ed61415",
    ),
)


def check_library() -> None:
    """Refuse a libsodium whose verdicts are not those that this page describes; about 0.2 ms, at import.

    Raises:
        ImportError: another release of PyNaCl must be installed.
    """
    if any(_is_signature(bytes.fromhex(text), b"egm", _PUBLIC) is not expected for expected, text in _KNOWN):
        raise ImportError(
            "the installed PyNaCl judges Ed25519 signatures otherwise than this version of egm was tested with: "
            "permits would not mean the same to everybody; install PyNaCl 1.6.2"
        )


check_library()
