"""Which public keys may vouch for anything, and when two of them are the same key.

A key id is only a label: one key under two ids would count twice towards a
threshold. Identity is therefore the key material, in one canonical encoding.
"""

import functools
from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import Key

from trust.errors import EvidenceError, Reason

MIN_RSA_BITS: Final = 3072
NAME_FIELD: Final = "x-egm-name"  # signed with the key's record; for display only
_MAX_NAME_CHARS: Final = 64

# keytype, scheme: everything else is refused. The legacy key types equal to their scheme are refused too.
ALLOWED_SCHEMES: Final = frozenset(
    {
        ("ed25519", "ed25519"),
        ("ecdsa", "ecdsa-sha2-nistp256"),
        ("ecdsa", "ecdsa-sha2-nistp384"),
        ("rsa", "rsassa-pss-sha256"),
    }
)
_CURVES: Final = {"ecdsa-sha2-nistp256": "secp256r1", "ecdsa-sha2-nistp384": "secp384r1"}

# Ed25519 (RFC 8032 section 5.1)
_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, _P - 2, _P) % _P
# The y coordinates of the eight points of small order. Whoever "owns" one of them can make a signature
# that verifies for many messages, so such a key proves nothing about its holder.
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
        ),
    }
)


def key_material(key: Key) -> bytes:
    """Return what identifies a public key, the same for every key id and encoding of it.

    Returns:
        The algorithm, a colon, and 32 raw bytes (Ed25519), the modulus (RSA: who can sign under one public
        exponent can sign under each) or the DER SubjectPublicKeyInfo.

    Raises:
        EvidenceError: KEY_UNSAFE, if the key cannot be parsed.
    """
    public = key.keyval.get("public")
    if not isinstance(public, str):
        raise _unsafe(key, "has no public part")
    if key.keytype == "ed25519":
        return b"ed25519:" + _ed25519_bytes(key, public)
    try:
        parsed = load_pem_public_key(public.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _unsafe(key, "is not a PEM public key") from None
    if isinstance(parsed, rsa.RSAPublicKey):
        modulus = parsed.public_numbers().n
        return b"rsa:" + modulus.to_bytes((modulus.bit_length() + 7) // 8, "big")
    der = parsed.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return b"spki:" + der


def check_public_key(key: Key) -> None:
    """Refuse a key that must not count towards any threshold.

    Raises:
        EvidenceError: KEY_UNSAFE, for an unknown scheme, an RSA key under 3072 bits, the wrong
            curve, or an Ed25519 point that is off the curve, not canonical or of small order.
    """
    if (key.keytype, key.scheme) not in ALLOWED_SCHEMES:
        allowed = ", ".join(sorted(scheme for _, scheme in ALLOWED_SCHEMES))
        raise _unsafe(key, f"has the scheme {key.keytype[:40]}/{key.scheme[:40]}; use one of: {allowed}")
    material = key_material(key)
    if key.keytype == "ed25519":
        _check_ed25519_point(key, material.removeprefix(b"ed25519:"))
        return
    parsed = load_pem_public_key(key.keyval["public"].encode())
    if key.keytype == "rsa":
        if not isinstance(parsed, rsa.RSAPublicKey):
            raise _unsafe(key, "says RSA but is not an RSA key")
        if parsed.key_size < MIN_RSA_BITS:
            raise _unsafe(key, f"is RSA with {parsed.key_size} bits; at least {MIN_RSA_BITS} are needed")
    elif not isinstance(parsed, ec.EllipticCurvePublicKey) or parsed.curve.name != _CURVES[key.scheme]:
        raise _unsafe(key, f"is not on the curve that {key.scheme} names")


def check_distinct(keys: Iterable[Key]) -> None:
    """Refuse a set in which one key appears twice, whatever its ids and encodings.

    Raises:
        EvidenceError: KEY_UNSAFE, naming both.
    """
    seen: dict[bytes, Key] = {}
    for key in keys:
        other = seen.setdefault(key_material(key), key)
        if other is not key:
            raise EvidenceError(
                Reason.KEY_UNSAFE,
                f"{key_name(other)} and {key_name(key)} are the same key; every holder needs their own",
            )


def check_ids(keys: Iterable[Key]) -> None:
    """Refuse a set in which one key id stands for two keys: metadata would keep one, in every role of either.

    Raises:
        EvidenceError: KEY_UNSAFE, naming both.
    """
    seen: dict[str, Key] = {}
    for key in keys:
        other = seen.setdefault(key.keyid, key)
        if key_material(other) != key_material(key):
            raise EvidenceError(
                Reason.KEY_UNSAFE,
                f"{key_name(other)} and {key_name(key)} are different keys with one id, {key.keyid[:12]}; "
                "somebody has edited a public key file",
            )


def key_name(key: Key) -> str:
    """Return the signed display name of a key's holder, or the start of its key id."""
    name = key.unrecognized_fields.get(NAME_FIELD)
    if isinstance(name, str) and name.isprintable() and 0 < len(name) <= _MAX_NAME_CHARS:
        return name
    return key.keyid[:12]


def _ed25519_bytes(key: Key, public: str) -> bytes:
    try:
        raw = bytes.fromhex(public)
    except ValueError:
        raise _unsafe(key, "is not hexadecimal") from None
    if len(raw) != 32:
        raise _unsafe(key, f"has {len(raw)} bytes; an Ed25519 public key has 32")
    return raw


def _check_ed25519_point(key: Key, raw: bytes) -> None:
    flaw = _flaw_of_point(raw)
    if flaw:
        raise _unsafe(key, flaw)


# The same few keys are checked with every metadata file that names them, at 0.4 ms each.
@functools.lru_cache(maxsize=1_024)
def _flaw_of_point(raw: bytes) -> str:
    """Return why 32 bytes are no safe public key; empty when they are one (RFC 8032 section 5.1.3)."""
    encoded = int.from_bytes(raw, "little")
    y = encoded & (2**255 - 1)
    if y >= _P:
        return "is not canonically encoded"
    if y in _SMALL_ORDER_Y:
        return "is a point of small order: anyone can sign for it"
    # x^2 = (y^2 - 1) / (d y^2 + 1) must be a square; Euler's criterion
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    return "" if pow(square, (_P - 1) // 2, _P) == 1 else "is not a point of the curve"


def _unsafe(key: Key, what: str) -> EvidenceError:
    return EvidenceError(Reason.KEY_UNSAFE, f"key {key_name(key)} {what}")
