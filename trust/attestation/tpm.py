"""Whether a TPM vouches for a statement: a quote by the key that the approvers pinned, over PCR values they accept.

The quote's extra data is a digest of the whole statement, so it holds the nonces of the witnesses, the node key, the
measurement and everything else that the node says: it can be neither replayed nor put under another statement. What a
quote proves, and what it does not, docs/trust.md says.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from trust import limits
from trust.attestation.tpm_wire import PCRS, PublicKey, read_quote, read_signature
from trust.compact import from_base64url, to_base64url
from trust.errors import EvidenceError, Reason

_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_INDEX: Final = re.compile(r"(0|[1-9][0-9]?)\Z")
_RSA_BITS: Final = range(2048, 4097)
_RSA_EXPONENT: Final = 65537
_MEMBERS: Final = ["quote", "signature", "pcrs"]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a TPM gave out. Nothing of it is verified."""

    attest: bytes  # TPMS_ATTEST, as signed
    signature: bytes  # TPMT_SIGNATURE
    pcrs: tuple[tuple[int, bytes], ...]  # of the SHA-256 bank, ascending; 32 bytes each

    def to_json(self) -> dict[str, Any]:
        """Return the quote as JSON members, in their order."""
        return {
            "quote": to_base64url(self.attest),
            "signature": to_base64url(self.signature),
            "pcrs": {str(index): value.hex() for index, value in self.pcrs},
        }

    @classmethod
    def from_json(cls, value: Any) -> "Quote":
        """Return the quote that `to_json` wrote, or raise ValueError."""
        if not isinstance(value, dict) or list(value) != _MEMBERS or not isinstance(value["pcrs"], dict):
            raise ValueError("its tpm has not exactly quote, signature and pcrs")
        attest, signature = (_bytes(value[name], name) for name in _MEMBERS[:2])
        if len(attest) > limits.MAX_TPM_QUOTE_BYTES or len(signature) > limits.MAX_TPM_SIGNATURE_BYTES:
            raise ValueError("its TPM quote is larger than any that a TPM makes")
        if not all(isinstance(digest, str) and _SHA256.match(digest) for digest in value["pcrs"].values()):
            raise ValueError("its tpm has a PCR that is not SHA-256 in lower-case hex")
        pcrs = tuple((_index(name), bytes.fromhex(digest)) for name, digest in value["pcrs"].items())
        if not pcrs or [index for index, _ in pcrs] != sorted(dict(pcrs)):
            raise ValueError("its PCRs are not ascending, each once")
        return cls(attest, signature, pcrs)


class Quoter(Protocol):
    """The TPM of this node."""

    def quote(self, extra: bytes, pcrs: Sequence[int]) -> Quote:
        """Return a fresh quote. Blocks for as long as the TPM takes: call it in a thread.

        Args:
            extra: what it is to sign besides, 32 bytes.
            pcrs: which registers of the SHA-256 bank.

        Raises:
            StateError: MEASUREMENT_REFUSED, if there is none to be had; says why.
        """
        ...


def read_key(text: str) -> PublicKey:
    """Return the attestation key that `key_text` wrote.

    Raises:
        ValueError: it is not the one spelling of a key with ECDSA P-256, or RSA of 2048 to 4096 bits.
    """
    try:
        data = base64.b64decode(text, validate=True)
        key = load_der_public_key(data)
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        raise ValueError("not the base64 of a public key (DER SubjectPublicKeyInfo)") from None
    if isinstance(key, ec.EllipticCurvePublicKey):
        good = isinstance(key.curve, ec.SECP256R1)
    else:
        good = (
            isinstance(key, rsa.RSAPublicKey)
            and key.key_size in _RSA_BITS
            and key.public_numbers().e == _RSA_EXPONENT
        )
    if not good or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise ValueError("an attestation key is ECDSA P-256, or RSA of 2048 to 4096 bits")
    if key_text(key) != text:
        raise ValueError("not the one encoding of its public key")
    return key


def key_text(key: PublicKey) -> str:
    """Return a key as reference values name it: base64 of its DER SubjectPublicKeyInfo."""
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def _checked_key(text: str) -> str:
    read_key(text)
    return text


class TpmReference(BaseModel):
    """What the approvers accept of one node's TPM: `tpm: {NODE: ...}` of reference_values.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: tuple[Annotated[str, AfterValidator(_checked_key)], ...] = Field(
        min_length=1, max_length=limits.MAX_TPM_KEYS, strict=False
    )
    # PCR of the SHA-256 bank, "0" to "23" -> accepted values
    pcrs: dict[str, tuple[str, ...]] = Field(min_length=1, strict=False)

    @field_validator("pcrs")
    @classmethod
    def _are_pcrs(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, accepted in value.items():
            _index(name)
            if not accepted or not all(_SHA256.match(digest) for digest in accepted):
                raise ValueError(f"PCR {name}: give its accepted values, SHA-256 in lower-case hex")
        return value

    @property
    def selected(self) -> tuple[int, ...]:
        """Which PCRs a quote must be over, ascending."""
        return tuple(sorted(int(name) for name in self.pcrs))

    def check(self, node: str, quote: Quote | None, extra: bytes) -> None:
        """Accept the quote of `node` over `extra`.

        Args:
            node: whose it is, for the refusal.
            quote: what came with its statement.
            extra: what the TPM must have signed: `trust.attestation.statement.quoted_digest`.

        Raises:
            EvidenceError: MEASUREMENT_REFUSED, naming the part.
        """
        if quote is None:
            raise _refused(
                f"node {node} sent no TPM quote, and the signed policy pins its TPM (tpm in reference_values.json); "
                "set tpm: in its configuration"
            )
        try:
            verify_quote(quote, [read_key(text) for text in self.keys], extra)
        except ValueError as error:
            raise _refused(f"the TPM quote of node {node}: {error}") from None
        values = dict(quote.pcrs)
        for index in self.selected:
            found = values.get(index)
            if found is None:
                raise _refused(
                    f"the TPM quote of node {node} is not over PCR {index}, which the policy asks for"
                )
            if found.hex() not in self.pcrs[str(index)]:
                raise _refused(
                    f"PCR {index} of node {node} is {found.hex()[:16]}…, which is not among the reference values of "
                    "the policy: it booted or loaded something else"
                )


def verify_quote(quote: Quote, keys: Sequence[PublicKey], extra: bytes) -> None:
    """Accept a quote that one of `keys` signed over `extra`, and over exactly the PCR values that came with it.

    Raises:
        ValueError: what does not hold.
    """
    if not any(_signed_by(quote, key) for key in keys):
        raise ValueError("it is not signed by an attestation key that the policy pins")
    said = read_quote(quote.attest)
    if said.extra != extra:
        raise ValueError("it was made for another statement or another challenge")
    if said.selected != {index for index, _ in quote.pcrs}:
        raise ValueError("it is over other PCRs than came with it")
    if hashlib.sha256(b"".join(value for _, value in quote.pcrs)).digest() != said.pcr_digest:
        raise ValueError("the PCR values that came with it are not those that it is over")


def _signed_by(quote: Quote, key: PublicKey) -> bool:
    kind, signature = read_signature(quote.signature)
    if not isinstance(key, kind):
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, quote.attest, ec.ECDSA(SHA256()))
        else:
            key.verify(signature, quote.attest, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


def _index(name: str) -> int:
    if _INDEX.match(name) is None or int(name) >= PCRS:
        raise ValueError(f"{name[:20]!r} is no PCR; they are 0 to {PCRS - 1}")
    return int(name)


def _bytes(value: object, name: str) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"its tpm has a {name} that is no text")
    return from_base64url(value)


def _refused(what: str) -> EvidenceError:
    return EvidenceError(Reason.MEASUREMENT_REFUSED, what)
