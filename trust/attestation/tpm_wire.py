"""What a TPM 2.0 signed, read from its bytes: a quote, its signature, and what kind of key made it.

TPM 2.0 Library Specification (Trusted Computing Group), part 2 "Structures": TPMS_ATTEST (10.12.12), TPMT_SIGNATURE
(11.3.4), TPM2B_PUBLIC (12.2.5). All numbers are big-endian. What is longer or shorter than its structure is refused.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

PCRS: Final = 24  # of a PC client platform: 0 to 23
# TPM_GENERATED_VALUE: a restricted key signs nothing from outside that begins so
_GENERATED: Final = 0xFF544347
_ATTEST_QUOTE: Final = 0x8018
_SHA256: Final = 0x000B
_NULL: Final = 0x0010
_RSA, _ECC = 0x0001, 0x0023
_RSASSA, _ECDSA = 0x0014, 0x0018
_NIST_P256: Final = 0x0003
_CLOCK_INFO_BYTES: Final = 8 + 4 + 4 + 1  # clock, resetCount, restartCount, safe
_FIRMWARE_BYTES: Final = 8
_MAX_SELECT_BYTES: Final = 4
_NUMBER_BYTES: Final = 32  # of r and s
_DEFAULT_EXPONENT: Final = 65537
# TPMA_OBJECT: what makes a signature of the key the word of one TPM about itself
_NEEDED: Final = {
    1: "fixedTPM",
    4: "fixedParent",
    5: "sensitiveDataOrigin",
    16: "restricted",
    18: "sign",
}
_DECRYPT_BIT: Final = 17


@dataclass(frozen=True, slots=True)
class Quoted:
    """What one quote says. Nothing of it is verified."""

    extra: bytes  # what the caller gave the TPM to sign with it
    selected: frozenset[int]  # PCRs of the SHA-256 bank
    pcr_digest: bytes  # SHA-256 over their values, ascending


class _Reader:
    """Takes fields off the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise ValueError("it ends too early")
        self._at += size
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self) -> bytes:
        """Return the content of a TPM2B."""
        return self.take(self.number(2))

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("it has bytes behind its end")


def read_quote(data: bytes) -> Quoted:
    """Return what a TPMS_ATTEST says, if it is a quote over the SHA-256 bank alone.

    Raises:
        ValueError: what it is instead.
    """
    reader = _Reader(data)
    if reader.number(4) != _GENERATED:
        raise ValueError("no TPM made it")
    if reader.number(2) != _ATTEST_QUOTE:
        raise ValueError("it is no quote")
    reader.sized()  # qualifiedSigner: the key's name among its parents, which the pinned key makes needless
    extra = reader.sized()
    reader.take(_CLOCK_INFO_BYTES + _FIRMWARE_BYTES)
    if reader.number(4) != 1 or reader.number(2) != _SHA256:
        raise ValueError("it is not over PCRs of the SHA-256 bank alone")
    size = reader.number(1)
    if size > _MAX_SELECT_BYTES:
        raise ValueError("it selects PCRs that no platform has")
    bits = int.from_bytes(reader.take(size), "little")
    digest = reader.sized()
    reader.end()
    return Quoted(extra, frozenset(i for i in range(8 * size) if bits >> i & 1), digest)


def read_signature(data: bytes) -> tuple[type[PublicKey], bytes]:
    """Return which kind of key verifies a TPMT_SIGNATURE, and the signature as `cryptography` takes it.

    Raises:
        ValueError: it is neither ECDSA nor RSASSA (PKCS #1 v1.5), or not with SHA-256.
    """
    reader = _Reader(data)
    scheme = reader.number(2)
    if scheme not in {_RSASSA, _ECDSA} or reader.number(2) != _SHA256:
        raise ValueError("its signature is neither ECDSA nor RSASSA with SHA-256")
    if scheme == _RSASSA:
        signature = reader.sized()
        reader.end()
        return rsa.RSAPublicKey, signature
    r, s = reader.sized(), reader.sized()
    reader.end()
    if not (0 < len(r) <= _NUMBER_BYTES and 0 < len(s) <= _NUMBER_BYTES):
        raise ValueError("its signature is not one of P-256")
    return ec.EllipticCurvePublicKey, encode_dss_signature(int.from_bytes(r), int.from_bytes(s))


def read_attestation_key(data: bytes) -> PublicKey:
    """Return the key in a TPM2B_PUBLIC, if what it signs can only be said by the TPM that made it.

    A key that is not *restricted* signs whatever it is given, a made-up quote as well. That the area is of a real TPM,
    nothing here proves: whoever enrols the key must have read it from the machine.

    Raises:
        ValueError: what is wrong with the key.
    """
    reader = _Reader(data)
    area = _Reader(reader.sized())
    reader.end()
    kind = area.number(2)
    area.number(2)  # nameAlg
    attributes = area.number(4)
    missing = [name for bit, name in _NEEDED.items() if not attributes >> bit & 1]
    if missing or attributes >> _DECRYPT_BIT & 1:
        lacks = f" (it lacks {', '.join(missing)})" if missing else " (it decrypts, too)"
        raise ValueError(f"it is no attestation key{lacks}; make one with tpm2_createak")
    area.sized()  # authPolicy
    if kind not in {_RSA, _ECC} or area.number(2) != _NULL:
        raise ValueError("it is neither an ECC nor an RSA signing key")
    scheme = area.number(2)
    if scheme != (_ECDSA if kind == _ECC else _RSASSA) or area.number(2) != _SHA256:
        raise ValueError("it signs neither with ECDSA nor with RSASSA, each with SHA-256")
    return _ecc_key(area) if kind == _ECC else _rsa_key(area)


def _ecc_key(area: _Reader) -> PublicKey:
    if area.number(2) != _NIST_P256 or area.number(2) != _NULL:
        raise ValueError("its curve is not NIST P-256")
    x, y = area.sized(), area.sized()
    area.end()
    return ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1()).public_key()


def _rsa_key(area: _Reader) -> PublicKey:
    area.number(2)  # keyBits: the modulus tells
    exponent = area.number(4) or _DEFAULT_EXPONENT
    modulus = area.sized()
    area.end()
    return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus)).public_key()
