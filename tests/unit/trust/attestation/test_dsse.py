"""Envelopes: the published encoding, one spelling, one signature."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.attestation import dsse
from trust.errors import EvidenceError, Reason

KEY = Ed25519PrivateKey.generate()
TYPE = "application/vnd.in-toto+json"


def made(payload: bytes = b"{}") -> bytes:
    return dsse.seal(TYPE, payload, key_id="k1", sign=KEY.sign)


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    """secure-systems-lab/dsse, protocol.md: the example of PAE."""
    assert (
        dsse.pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_gives_back_what_was_sealed() -> None:
    """And its signature verifies under the key that made it, under no other."""
    envelope = dsse.decode(made(b"payload"), max_bytes=1000)
    assert (envelope.payload_type, envelope.payload, envelope.key_id) == (TYPE, b"payload", "k1")
    dsse.verify(envelope, KEY.public_key().public_bytes_raw())
    with pytest.raises(EvidenceError) as error:
        dsse.verify(envelope, Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    assert error.value.reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        made() + b"\n",
        made().replace(b":", b": ", 1),
        made().replace(b'"keyid":"k1"', b'"keyid":1'),
        made().replace(b'"sig":"', b'"sig":"AA'),
        json.dumps(dict(reversed(list(json.loads(made()).items()))), separators=(",", ":")).encode(),
        json.dumps({**json.loads(made()), "x": 1}, separators=(",", ":")).encode(),
        json.dumps({**json.loads(made()), "signatures": []}, separators=(",", ":")).encode(),
        json.dumps(
            {**json.loads(made()), "signatures": json.loads(made())["signatures"] * 2}, separators=(",", ":")
        ).encode(),
        made().replace(base64.b64encode(b"{}"), b"e31="),  # spare bits that are not zero
    ],
)
def test_every_other_spelling_is_refused(data: bytes) -> None:
    """Two readers of one envelope see the same thing, or nothing."""
    with pytest.raises(EvidenceError) as error:
        dsse.decode(data, max_bytes=10_000)
    assert error.value.reason is Reason.EVIDENCE_INVALID


def test_an_envelope_over_the_bound_is_not_parsed() -> None:
    """Size is looked at first."""
    with pytest.raises(EvidenceError, match="at most 10"):
        dsse.decode(made(), max_bytes=10)
