"""Sealed payloads: who can open one, where, and what every change of it leads to."""

import base64
import hashlib
import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from joserfc.jwe import decrypt_json
from joserfc.jwk import OKPKey

from tests.support import records
from tests.support.auditing import BINDING, Auditor, audited_intent, sealed
from trust import limits
from trust.compact import from_base64url, to_base64url
from trust.errors import EvidenceError, Reason
from trust.payload import Part, digest_fits, open_sealed, parse_sealed, payloads_of, registry, write_sealed
from trust.record import Side, build_record, parse_record

ANN, BEN = Auditor("ann"), Auditor("ben")
PAYLOAD = b"\x0a\x05hello"


def reason_of(data: bytes, key: X25519PrivateKey = ANN.private, **changes: Any) -> tuple[Reason, str]:
    with pytest.raises(EvidenceError) as caught:
        open_sealed(data, replace(BINDING, **changes), key)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, bytes(limits.MAX_AUDITED_PAYLOAD_BYTES)], ids=len)
def test_every_auditor_opens_what_was_sealed(payload: bytes) -> None:
    """Also an empty message, which is one."""
    data = sealed(payload, ANN, BEN)
    for auditor in (ANN, BEN):
        assert open_sealed(data, BINDING, auditor.private) == payload
    assert parse_sealed(data).key_ids == (ANN.key.id, BEN.key.id)


def test_the_largest_payload_for_the_most_auditors_fits_into_a_record() -> None:
    """The limits agree with each other."""
    auditors = [Auditor(f"a{n}") for n in range(limits.MAX_AUDITORS)]
    data = sealed(bytes(limits.MAX_AUDITED_PAYLOAD_BYTES), *auditors)
    assert len(data) <= limits.MAX_SEALED_PAYLOAD_BYTES
    intent = records.intent(1, sealed_request=data)
    assert parse_record(build_record(intent)) == intent


def test_it_is_a_jwe_that_joserfc_reads_by_itself() -> None:
    """An auditor needs no code of ours (RFC 7516, RFC 8037)."""
    data = json.loads(sealed(PAYLOAD, ANN))
    opened = decrypt_json(data, OKPKey.import_key(ANN.private), registry=registry())
    assert opened.plaintext == PAYLOAD
    assert opened.protected == BINDING.header()


def test_nothing_of_the_payload_is_readable_and_no_two_are_alike() -> None:
    """Fresh keys for every record: equal requests do not look equal."""
    one, two = sealed(b"MARKER" * 20, ANN), sealed(b"MARKER" * 20, ANN)
    assert one != two
    for data in (one, two):
        assert b"MARKER" not in data and b"MARKER" not in from_base64url(json.loads(data)["ciphertext"])


def test_another_key_is_told_so_rather_than_a_contradiction() -> None:
    """A third party can say nothing of a payload that is not for them."""
    reason, detail = reason_of(sealed(PAYLOAD, ANN), BEN.private)
    assert reason is Reason.NOT_FOUND
    assert ANN.key.id in detail and BEN.key.id in detail


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"execution_id": records.execution_id(2)}, "eid"),
        ({"side": Side.INBOUND}, "side"),
        ({"part": Part.RESPONSE}, "part"),
        ({"node": "b"}, "node"),
    ],
)
def test_moved_to_another_record_it_is_refused_naming_the_difference(
    changes: dict[str, Any], named: str
) -> None:
    """A genuine payload of one call must not stand for that of another."""
    reason, detail = reason_of(sealed(PAYLOAD, ANN), **changes)
    assert reason is Reason.PAYLOAD_INVALID
    assert f"another record: {named} " in detail


def test_relabelled_for_another_record_it_does_not_decrypt() -> None:
    """The label is authenticated with the ciphertext."""
    document = json.loads(sealed(PAYLOAD, ANN))
    other = replace(BINDING, node="b")
    document["protected"] = to_base64url(json.dumps(other.header(), separators=(",", ":")).encode())
    reason, detail = reason_of(write_sealed(document), node="b")
    assert (reason, "does not decrypt" in detail) == (Reason.PAYLOAD_INVALID, True)


@pytest.mark.parametrize(
    "field", ["ciphertext", "iv", "tag", "encrypted_key", "epk"], ids=lambda field: f"bit-of-{field}"
)
def test_a_changed_bit_is_refused(field: str) -> None:
    """In whichever member."""
    document = json.loads(sealed(PAYLOAD, ANN))
    recipient = document["recipients"][0]
    holder, name = {
        "encrypted_key": (recipient, "encrypted_key"),
        "epk": (recipient["header"]["epk"], "x"),
    }.get(field, (document, field))
    raw = bytearray(from_base64url(holder[name]))
    raw[0] ^= 1
    holder[name] = to_base64url(bytes(raw))
    assert reason_of(write_sealed(document))[0] is Reason.PAYLOAD_INVALID


def test_an_ephemeral_key_of_small_order_is_refused() -> None:
    """Its shared secret would be known to everybody."""
    document = json.loads(sealed(PAYLOAD, ANN))
    document["recipients"][0]["header"]["epk"]["x"] = to_base64url(bytes(32))
    assert reason_of(write_sealed(document))[0] is Reason.PAYLOAD_INVALID


def test_a_recipient_under_the_key_id_of_another_does_not_open() -> None:
    """The key id is a label; the wrapped key decides."""
    document = json.loads(sealed(PAYLOAD, ANN))
    document["recipients"][0]["header"]["kid"] = BEN.key.id
    assert reason_of(write_sealed(document), BEN.private)[0] is Reason.PAYLOAD_INVALID


def spoiled(**changes: Any) -> bytes:
    document = json.loads(sealed(PAYLOAD, ANN))
    return write_sealed({**document, **changes})


def protected(**changes: Any) -> str:
    return to_base64url(json.dumps({**BINDING.header(), **changes}, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not one ASCII JSON object"),
        (b"[]", "not one ASCII JSON object"),
        (b"[" * 50_000, "not one ASCII JSON object"),
        (sealed(PAYLOAD, ANN) + b"\n", "another encoding"),
        (spoiled(extra=1), "members"),
        (spoiled(iv="AAAA"), "iv"),
        (spoiled(tag=7), "tag"),
        (spoiled(ciphertext="A="), "ciphertext"),
        (spoiled(recipients=[]), "1 to 8"),
        (spoiled(recipients=json.loads(sealed(b"", ANN))["recipients"] * 2), "twice"),
        (spoiled(recipients=[7]), "recipient"),
        (spoiled(protected=protected(alg="ECDH-ES")), "algorithms"),
        (spoiled(protected=protected(enc="A128CBC-HS256")), "algorithms"),
        (spoiled(protected=protected(typ="JWE")), "algorithms"),
        (spoiled(protected=protected(zip="DEF")), "members"),
        (spoiled(protected=protected(crit=["x"])), "members"),
        (spoiled(protected=protected(node=7)), "no text"),
        (spoiled(protected=to_base64url(json.dumps(BINDING.header()).encode())), "another encoding"),
        (b"x" * (limits.MAX_SEALED_PAYLOAD_BYTES + 1), "the limit is"),
    ],
    ids=range(19),  # what is sealed differs each time, and with it the names that pytest would make up
)
def test_every_other_shape_is_refused_by_name(data: bytes, what: str) -> None:
    """One spelling, two algorithms, nothing optional."""
    with pytest.raises(EvidenceError) as caught:
        parse_sealed(data)
    assert caught.value.reason is Reason.PAYLOAD_INVALID
    assert what in caught.value.detail


def test_a_record_names_what_was_sealed_and_its_digest_decides() -> None:
    """Anybody can seal to an auditor; what the node says it forwarded is the digest."""
    intent = audited_intent(PAYLOAD, ANN, request_sha256=hashlib.sha256(PAYLOAD).digest())
    recorded = payloads_of(intent)
    assert recorded.binding == BINDING
    assert digest_fits(open_sealed(recorded.sealed, recorded.binding, ANN.private), recorded)
    assert not digest_fits(b"something else", recorded)


def other_reader(data: bytes, private: X25519PrivateKey, key_id: str) -> bytes:
    """Open a sealed payload by docs/protocol.md alone, with nothing but primitives."""
    jwe = json.loads(data)
    raw = {name: base64.urlsafe_b64decode(jwe[name] + "==") for name in ("ciphertext", "iv", "tag")}
    mine = next(r for r in jwe["recipients"] if r["header"]["kid"] == key_id)
    ephemeral = base64.urlsafe_b64decode(mine["header"]["epk"]["x"] + "==")
    secret = private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    algorithm = b"ECDH-ES+A256KW"
    parties = struct.pack(">I", 0) * 2  # no apu, no apv
    info = struct.pack(">I", len(algorithm)) + algorithm + parties + struct.pack(">I", 256)
    wrapping = ConcatKDFHash(hashes.SHA256(), 32, info).derive(secret)
    content = aes_key_unwrap(wrapping, base64.urlsafe_b64decode(mine["encrypted_key"] + "=="))
    return AESGCM(content).decrypt(raw["iv"], raw["ciphertext"] + raw["tag"], jwe["protected"].encode())


def test_a_reader_written_from_the_documentation_opens_it() -> None:
    """RFC 7516, 7518 (4.6) and 8037, step by step, without a JOSE library."""
    data = sealed(PAYLOAD, ANN, BEN)
    for auditor in (ANN, BEN):
        assert other_reader(data, auditor.private, auditor.key.id) == PAYLOAD
