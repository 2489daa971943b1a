"""Who signed a statement: DSSE envelopes (secure-systems-lab/dsse, protocol v1) in one encoding, no other read.

    {"payload":BASE64,"payloadType":TYPE,"signatures":[{"keyid":KEY,"sig":BASE64}]}     ASCII, in this order, no spaces

One Ed25519 signature, over PAE(TYPE, payload). `keyid` is only a label.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from trust.compact import parse_object, write_object
from trust.errors import EvidenceError, Reason

SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an envelope holds. Nothing of it is verified yet: see `verify`."""

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed (DSSE, pre-authentication encoding)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, *, key_id: str, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the envelope of `payload`, signed.

    Args:
        payload_type: ASCII media type.
        payload: what is said.
        key_id: names the key to whoever verifies; ASCII.
        sign: makes the Ed25519 signature, 64 bytes.
    """
    return encode(Envelope(payload_type, payload, key_id, sign(pae(payload_type, payload))))


def encode(envelope: Envelope) -> bytes:
    """Return the one encoding of an envelope."""
    return write_object(
        {
            "payload": base64.b64encode(envelope.payload).decode("ascii"),
            "payloadType": envelope.payload_type,
            "signatures": [
                {"keyid": envelope.key_id, "sig": base64.b64encode(envelope.signature).decode("ascii")}
            ],
        }
    )


def decode(data: bytes, *, max_bytes: int) -> Envelope:
    """Return what `data` holds, if it is exactly what `encode` writes.

    Raises:
        EvidenceError: EVIDENCE_INVALID.
    """
    if len(data) > max_bytes:
        raise _malformed(f"it has {len(data)} bytes, at most {max_bytes} are read")
    try:
        value = parse_object(data)
        (signature,) = value["signatures"]
        envelope = Envelope(
            _text(value["payloadType"]),
            base64.b64decode(value["payload"], validate=True),
            _text(signature["keyid"]),
            base64.b64decode(signature["sig"], validate=True),
        )
        canonical = len(envelope.signature) == SIGNATURE_BYTES and encode(envelope) == data
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        raise _malformed("it has another form") from None
    if not canonical:
        raise _malformed("it is not in its one encoding")
    return envelope


def verify(envelope: Envelope, public_key: bytes) -> None:
    """Accept the envelope if the holder of `public_key` (Ed25519, 32 bytes) signed it.

    Raises:
        EvidenceError: SIGNATURE_INVALID.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            envelope.signature, pae(envelope.payload_type, envelope.payload)
        )
    except (InvalidSignature, ValueError):
        raise EvidenceError(Reason.SIGNATURE_INVALID, "the envelope's signature does not verify") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _malformed(what: str) -> EvidenceError:
    return EvidenceError(Reason.EVIDENCE_INVALID, f"not an envelope (DSSE): {what}")
