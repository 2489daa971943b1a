"""A TPM in memory that quotes in the bytes of a real one (tests/vectors/tpm_quotes.json), and can be told to lie."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from trust.attestation.tpm import Quote, TpmReference, key_text


@dataclass
class FakeTpm:
    """A `Quoter` with a P-256 key; registers start at zero."""

    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    registers: dict[int, bytes] = field(default_factory=dict)

    def extend(self, index: int, digest: bytes) -> None:
        """Extend a PCR."""
        self.registers[index] = hashlib.sha256(self.registers.get(index, bytes(32)) + digest).digest()

    def quote(self, extra: bytes, pcrs: Sequence[int]) -> Quote:
        """Return a quote over the registers."""
        values = tuple((index, self.registers.get(index, bytes(32))) for index in sorted(pcrs))
        digest = hashlib.sha256(b"".join(value for _, value in values)).digest()
        return self.sign(attest_of(extra, [index for index, _ in values], digest), values)

    def sign(self, attest: bytes, values: tuple[tuple[int, bytes], ...]) -> Quote:
        """Return any bytes signed as a quote."""
        r, s = decode_dss_signature(self.private.sign(attest, ec.ECDSA(SHA256())))
        signature = b"\x00\x18\x00\x0b" + b"".join(b"\x00\x20" + one.to_bytes(32) for one in (r, s))
        return Quote(attest, signature, values)

    def reference(self, *pcrs: int) -> TpmReference:
        """Return what accepts this TPM as it is now."""
        values = dict(self.quote(bytes(32), pcrs).pcrs)
        return TpmReference(
            keys=(key_text(self.private.public_key()),),
            pcrs={str(index): (value.hex(),) for index, value in values.items()},
        )


def attest_of(extra: bytes, pcrs: Sequence[int], digest: bytes) -> bytes:
    """Return a TPMS_ATTEST: magic, quote, signer's name, extra data, clock and firmware, one bank, digest."""
    bits = sum(1 << index for index in pcrs).to_bytes(3, "little")
    return b"".join(
        (
            bytes.fromhex("ff5443478018"),
            bytes.fromhex("0022000b") + bytes(32),
            len(extra).to_bytes(2) + extra,
            bytes(17) + bytes(8),
            bytes.fromhex("00000001000b03") + bits,
            len(digest).to_bytes(2) + digest,
        )
    )
