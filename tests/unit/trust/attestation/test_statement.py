"""Evidence statements: every claim comes back, every other spelling is refused."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.attestation import NONCE, AttestedNode
from trust.attestation import dsse
from trust.attestation.statement import (
    Enforced,
    open_evidence,
    parse_statement,
    sign_evidence,
    write_statement,
)
from trust.errors import EvidenceError, Reason
from trust.spiffe import SpiffeId

NODE = AttestedNode("n")


def payload(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(write_statement(NODE.statement(**changes)))
    return value


def text(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def test_a_statement_is_an_in_toto_statement_with_eat_claims() -> None:
    """A stranger's tools find what they know by name."""
    value = payload()
    assert list(value) == ["_type", "subject", "predicateType", "predicate"]
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["subject"][0]["name"] == str(NODE.id)
    assert value["subject"][0]["digest"] == {"sha256": NODE.statement().measurement.sha256.hex()}
    claims = value["predicate"]
    assert {"eat_profile", "eat_nonce", "bootseed", "swname", "swversion", "measurements"} <= claims.keys()
    assert claims["cnf"]["jwk"]["crv"] == "Ed25519"


def test_every_claim_comes_back() -> None:
    """Namespaces and several nonces, too."""
    said = NODE.statement(
        nonces=(b"\x01" * 32, NONCE),
        namespaces=(("a", Enforced(1, b"\x01" * 32)), ("b", Enforced(2, b"\x02" * 32))),
    )
    assert parse_statement(write_statement(said)) == said


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda v: v.update(_type="https://in-toto.io/Statement/v0.1"),
    lambda v: v.update(predicateType="urn:other"),
    lambda v: v["subject"].append(v["subject"][0]),
    lambda v: v["subject"][0].update(name="spiffe://mesh.local/node/m"),
    lambda v: v["subject"][0]["digest"].update(sha256="00" * 32),
    lambda v: v["predicate"].update(eat_profile="x"),
    lambda v: v["predicate"].update(sub="spiffe://mesh.local/workload/a"),
    lambda v: v["predicate"].update(sub=1),
    lambda v: v["predicate"].update(iat="1"),
    lambda v: v["predicate"].update(iat=-1),
    lambda v: v["predicate"].update(iat=True),
    lambda v: v["predicate"].update(eat_nonce=[]),
    lambda v: v["predicate"].update(eat_nonce=v["predicate"]["eat_nonce"] * 2),
    lambda v: v["predicate"].update(eat_nonce=["AA"]),
    lambda v: v["predicate"].update(eat_nonce=v["predicate"]["eat_nonce"][0]),
    lambda v: v["predicate"]["cnf"]["jwk"].update(crv="X25519"),
    lambda v: v["predicate"]["cnf"]["jwk"].update(x="AA"),
    lambda v: v["predicate"].update(bootseed="AA"),
    lambda v: v["predicate"].update(counter=0),
    lambda v: v["predicate"].update(counter=2**41),
    lambda v: v["predicate"].update(swname="x"),
    lambda v: v["predicate"].update(swversion=[]),
    lambda v: v["predicate"].update(measurements=[]),
    lambda v: v["predicate"]["measurements"][0].update(kind="tpm"),
    lambda v: v["predicate"]["measurements"][0].update(distribution="AB" * 32),
    lambda v: v["predicate"]["measurements"][0].pop("configuration"),
    lambda v: v["predicate"]["policy"].update(v=1.5),
    lambda v: v["predicate"]["policy"].update(d="00"),
    lambda v: v["predicate"]["policy"].update(
        ns={"b": {"v": 1, "d": "00" * 32}, "a": {"v": 1, "d": "00" * 32}}
    ),
    lambda v: v["predicate"]["policy"].update(ns=[]),
    lambda v: v["predicate"].update(level=6),
    lambda v: v["predicate"].update(checkpoint=None),
    lambda v: v["predicate"].update(admin=True),
    lambda v: v["predicate"].pop("level"),
    lambda v: v.update(extra=1),
    lambda v: v.pop("predicate"),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_any_other_claim_or_spelling_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    """Nothing unknown, missing, repeated or mistyped; never another error than EVIDENCE_INVALID."""
    value = payload()
    change(value)
    with pytest.raises(EvidenceError) as error:
        parse_statement(text(value))
    assert error.value.reason is Reason.EVIDENCE_INVALID


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b" " + text(payload()), b"[" * 100_000])
def test_what_is_no_statement_is_refused(data: bytes) -> None:
    """Total over bytes."""
    with pytest.raises(EvidenceError):
        parse_statement(data)


def test_evidence_is_signed_by_the_key_that_it_names() -> None:
    """A statement under somebody else's signature is refused; so is another payload type."""
    evidence = NODE.evidence()
    assert open_evidence(evidence.envelope) == evidence
    other = AttestedNode("m")
    with pytest.raises(EvidenceError) as error:
        sign_evidence(NODE.statement(), other.private.sign, key_id="k")
    assert error.value.reason is Reason.EVIDENCE_INVALID
    data = dsse.decode(evidence.envelope, max_bytes=100_000).payload
    with pytest.raises(EvidenceError, match="its payload is not"):
        open_evidence(dsse.seal("application/json", data, key_id="k", sign=NODE.private.sign))


def test_every_flipped_bit_of_an_envelope_is_noticed() -> None:
    """There is no byte that the signature or the one encoding does not cover, but the label of the key."""
    envelope = NODE.evidence().envelope
    label = envelope.index(b'"keyid":"') + 9
    changed = 0
    for place in range(0, len(envelope), 7):
        data = bytearray(envelope)
        data[place] ^= 0x02
        if label <= place < label + 43:
            continue
        with pytest.raises(EvidenceError):
            open_evidence(bytes(data))
        changed += 1
    assert changed > 100


def test_the_digest_that_witnesses_sign_covers_the_statement() -> None:
    """Level, bundle, measurement, counter: a change of any changes what is signed."""
    first = NODE.evidence(counter=1).sha256
    changes: list[dict[str, Any]] = [
        {"counter": 2},
        {"level": 4},
        {"policy": Enforced(8, b"\x07" * 32)},
        {"measurement": NODE.statement().measurement.__class__("1.2.4", b"\x01" * 32, b"\x02" * 32)},
        {"nonces": (b"\x0b" * 32,)},
        {"boot": b"12345678"},
    ]
    found = {NODE.evidence(**{"counter": 1, **change}).sha256 for change in changes}
    assert first not in found
    assert len(found) == len(changes)
    assert base64.b64encode(first)


def test_a_node_of_two_segments_is_no_node() -> None:
    """A name that the mesh cannot give is refused before it is believed."""
    with pytest.raises(EvidenceError):
        write_statement(NODE.statement(node=SpiffeId("mesh.local", "node/a/b")))
