"""A quote counts for the statement that it was made for, by the pinned key, over the accepted registers."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.attestation import (
    EMPTY,
    MEASUREMENT,
    NONCE,
    NOW_MS,
    AttestedNode,
    credential_of,
    holders,
    roster_of,
    settings_of,
    view_of,
)
from tests.support.fake_tpm import FakeTpm, attest_of
from trust import limits
from trust.attestation.accepted import check_accepted
from trust.attestation.advice import doubts
from trust.attestation.credential import open_credential
from trust.attestation.measurement import ReferenceValues, parse_reference_values
from trust.attestation.statement import Statement, parse_statement, quoted_digest, write_statement
from trust.attestation.tpm import Quote
from trust.attestation.witness import authenticate, judge
from trust.errors import EvidenceError, MeshError, Reason

BUILD = {"version": MEASUREMENT.version, "sha256": MEASUREMENT.distribution.hex()}


def quoted(said: Statement, tpm: FakeTpm, *pcrs: int) -> Statement:
    return replace(said, quote=tpm.quote(quoted_digest(said), pcrs))


def values_of(tpm: dict[str, Any]) -> ReferenceValues:
    return parse_reference_values(json.dumps({"distributions": [BUILD], "tpm": tpm}).encode())


def accepts(*nodes: tuple[str, FakeTpm], pcrs: tuple[int, ...] = (0, 7)) -> ReferenceValues:
    return values_of({name: tpm.reference(*pcrs).model_dump(mode="json") for name, tpm in nodes})


def refusal(references: ReferenceValues, said: Statement) -> str:
    with pytest.raises(EvidenceError) as error:
        check_accepted(references, said)
    assert error.value.reason is Reason.MEASUREMENT_REFUSED
    return error.value.detail


@pytest.fixture
def tpm() -> FakeTpm:
    """A TPM after a boot."""
    made = FakeTpm()
    made.extend(0, b"\x01" * 32)
    return made


@pytest.fixture
def node() -> AttestedNode:
    """Node a."""
    return AttestedNode()


def test_witness_vouches_with_a_good_quote_and_refuses_without(node: AttestedNode, tpm: FakeTpm) -> None:
    """Where the approvers pinned a TPM; the reason and what to do are told."""
    view = view_of(node, roster_of(holders("x")), references=accepts(("a", tpm)))

    def asked(**changes: Any) -> object:
        submission = node.submission(node.evidence(**changes))
        evidence, _ = authenticate(submission, view, now_ms=NOW_MS)
        return judge(EMPTY, submission, evidence, view, now_ms=NOW_MS, monotonic_ms=0)

    plain = node.statement()
    assert asked(quote=quoted(plain, tpm, 0, 7).quote)
    with pytest.raises(MeshError) as error:
        asked()
    assert error.value.reason is Reason.MEASUREMENT_REFUSED
    assert "sent no TPM quote" in error.value.detail
    assert "set tpm:" in error.value.detail


def test_quote_of_an_earlier_statement_is_refused(node: AttestedNode, tpm: FakeTpm) -> None:
    """Another nonce, counter, measurement, key, boot, policy, checkpoint: each is another statement."""
    references, said = accepts(("a", tpm)), node.statement()
    old = quoted(said, tpm, 0, 7).quote
    check_accepted(references, replace(said, quote=old))
    node.grow(b"four")
    for changes in (
        {"nonces": (bytes(32),)},
        {"nonces": tuple(sorted((NONCE, bytes(32))))},
        {"counter": said.counter + 1},
        {"measurement": replace(MEASUREMENT, configuration=bytes(32))},
        {"public_key": bytes(32)},
        {"boot": b"\x01" * 8},
        {"level": 4},
        {"issued_s": said.issued_s + 1},
        {"checkpoint": node.statement().checkpoint},
    ):
        assert "another statement" in refusal(references, replace(said, quote=old, **changes))


def test_quote_of_another_tpm_or_of_changed_registers_is_refused(node: AttestedNode, tpm: FakeTpm) -> None:
    """Another machine with the same content, another node's TPM, and a boot of something else."""
    references, said = accepts(("a", tpm), ("b", FakeTpm())), node.statement()
    twin = FakeTpm(registers=dict(tpm.registers))
    assert "attestation key that the policy pins" in refusal(references, quoted(said, twin, 0, 7))
    tpm.extend(7, b"\x02" * 32)
    assert "PCR 7 of node a is" in refusal(references, quoted(said, tpm, 0, 7))
    assert "not over PCR 7" in refusal(references, quoted(said, tpm, 0))


def test_values_that_the_quote_is_not_over_are_refused(node: AttestedNode, tpm: FakeTpm) -> None:
    """Accepted values beside a genuine quote over others; and a quote by another selection."""
    references, said = accepts(("a", tpm)), node.statement()
    extra, good = quoted_digest(said), tpm.quote(quoted_digest(said), (0, 7))
    tpm.extend(7, b"\x02" * 32)
    bad = tpm.quote(extra, (0, 7))
    assert "not those that it is over" in refusal(
        references, replace(said, quote=replace(bad, pcrs=good.pcrs))
    )
    other = tpm.sign(attest_of(extra, (0, 8), bytes(32)), good.pcrs)
    assert "over other PCRs" in refusal(references, replace(said, quote=other))


def test_one_of_several_accepted_values_and_keys_is_enough(node: AttestedNode, tpm: FakeTpm) -> None:
    """What an upgrade of firmware, or a new key, needs: both are signed for a while."""
    old, said = tpm.reference(0, 7), node.statement()
    tpm.extend(7, b"\x02" * 32)
    new, second = tpm.reference(0, 7), FakeTpm(registers=tpm.registers)
    keys = [*old.keys, *second.reference(0).keys]
    both = {"keys": keys, "pcrs": {"0": old.pcrs["0"], "7": [*old.pcrs["7"], *new.pcrs["7"]]}}
    for one in (tpm, second):
        check_accepted(values_of({"a": both}), quoted(said, one, 0, 7))
    check_accepted(values_of({"a": both}), quoted(said, tpm, 0, 4, 7))


def test_nodes_that_the_policy_does_not_name_need_no_quote(node: AttestedNode, tpm: FakeTpm) -> None:
    """Machines without a TPM stay what they were; and what is not asked for does no harm."""
    said = node.statement()
    check_accepted(accepts(("b", tpm)), said)
    check_accepted(accepts(("b", tpm)), quoted(said, FakeTpm(), 3))
    check_accepted(None, said)


def test_software_is_still_compared_under_a_good_quote(node: AttestedNode, tpm: FakeTpm) -> None:
    """A quote adds to the measurement, and replaces nothing of it."""
    references = accepts(("a", tpm))
    wrong = node.statement(measurement=replace(MEASUREMENT, version="0"))
    assert "runs version 0" in refusal(references, quoted(wrong, tpm, 0, 7))


def test_statement_without_a_quote_is_written_as_before_quotes_were_known(node: AttestedNode) -> None:
    """Releases that know no quotes read it; one with a quote they refuse as they do anything unknown."""
    data = write_statement(node.statement())
    assert b'"tpm"' not in data
    assert data.endswith(b'"}}')
    assert list(json.loads(data)["predicate"])[-1] == "checkpoint"


def test_statement_carries_its_quote_into_the_credential(node: AttestedNode, tpm: FakeTpm) -> None:
    """So that relying parties and strangers verify it again, long after the nonce."""
    witnesses = holders("x", "y", "z")
    said = quoted(node.statement(), tpm, 0, 7)
    assert parse_statement(write_statement(said)) == said
    evidence = node.evidence(quote=said.quote)
    opened = open_credential(credential_of(evidence, witnesses), roster_of(witnesses))
    check_accepted(accepts(("a", tpm)), opened.evidence.statement)


def test_largest_quote_fits_into_a_statement(node: AttestedNode) -> None:
    """RSA of 4096 bits, all registers, all witnesses' nonces."""
    quote = Quote(
        b"\xff" * limits.MAX_TPM_QUOTE_BYTES,
        b"\xff" * limits.MAX_TPM_SIGNATURE_BYTES,
        tuple((index, b"\xff" * 32) for index in range(24)),
    )
    nonces = tuple(bytes([index]) * 32 for index in range(limits.MAX_WITNESSES))
    evidence = node.evidence(quote=quote, nonces=nonces)
    assert len(evidence.envelope) <= limits.MAX_EVIDENCE_STATEMENT_BYTES


def test_lint_doubts_pinned_tpms_that_prove_less_than_they_seem_to(tpm: FakeTpm) -> None:
    """One key for two nodes, registers that anybody resets, and quotes that nobody asks for."""
    roster = settings_of(holders("x", "y", "z"))
    assert doubts(roster, {5}, references=accepts(("a", tpm), ("b", FakeTpm()))) == []
    (shared,) = doubts(roster, {5}, references=accepts(("b", tpm), ("a", tpm), ("c", FakeTpm())))
    assert "nodes a, b share an attestation key" in shared[0]
    (weak,) = doubts(roster, {5}, references=accepts(("a", tpm), pcrs=(16, 23)))
    assert "any program can reset" in weak[0]
    file = accepts(("a", tpm)).model_dump_json().encode()
    assert any("no witnesses" in what for what, _ in doubts(None, {4}, references=file))
    assert doubts(roster, {5}, references=b"{") == []


def _tpm(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda value: change(value["predicate"]["tpm"])


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["predicate"].update(tpm=None),
        lambda value: value["predicate"].update(tpm={}),
        lambda value: value["predicate"].update(checkpoint=value["predicate"].pop("checkpoint")),
        _tpm(lambda tpm: tpm.update(more=1)),
        _tpm(lambda tpm: tpm.update(quote=tpm["quote"] + "=")),
        _tpm(lambda tpm: tpm.update(quote=7)),
        _tpm(lambda tpm: tpm.update(quote="A" * 800)),
        _tpm(lambda tpm: tpm.update(signature="A" * 800)),
        _tpm(lambda tpm: tpm.update(pcrs={})),
        _tpm(lambda tpm: tpm.update(pcrs=[])),
        _tpm(lambda tpm: tpm["pcrs"].update({"07": "00" * 32})),
        _tpm(lambda tpm: tpm["pcrs"].update({"24": "00" * 32})),
        _tpm(lambda tpm: tpm["pcrs"].update({"3": "00" * 32})),
        _tpm(lambda tpm: tpm["pcrs"].update({"8": "AB" * 32})),
        _tpm(lambda tpm: tpm["pcrs"].update({"8": 1})),
    ],
    ids=range(15),
)
def test_quote_in_any_other_spelling_is_refused(
    node: AttestedNode, tpm: FakeTpm, change: Callable[[dict[str, Any]], Any]
) -> None:
    """One encoding, so that two readers see one thing."""
    value = json.loads(write_statement(quoted(node.statement(), tpm, 0, 7)))
    change(value)
    with pytest.raises(EvidenceError) as error:
        parse_statement(json.dumps(value, separators=(",", ":")).encode())
    assert error.value.reason is Reason.EVIDENCE_INVALID


def der(key: Any) -> str:
    return base64.b64encode(
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).decode()


GOOD_KEY = FakeTpm().reference(0).keys[0]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"keys": [], "pcrs": {"0": ["00" * 32]}}, "keys"),
        ({"keys": [GOOD_KEY] * (limits.MAX_TPM_KEYS + 1), "pcrs": {"0": ["00" * 32]}}, "keys"),
        ({"keys": ["AAAA"], "pcrs": {"0": ["00" * 32]}}, "SubjectPublicKeyInfo"),
        ({"keys": [GOOD_KEY + "\n"], "pcrs": {"0": ["00" * 32]}}, "SubjectPublicKeyInfo"),
        ({"keys": [der(ed25519.Ed25519PrivateKey.generate())], "pcrs": {"0": ["00" * 32]}}, "ECDSA P-256"),
        ({"keys": [der(ec.generate_private_key(ec.SECP384R1()))], "pcrs": {"0": ["00" * 32]}}, "ECDSA P-256"),
        ({"keys": [der(rsa.generate_private_key(65537, 1024))], "pcrs": {"0": ["00" * 32]}}, "ECDSA P-256"),
        ({"keys": [GOOD_KEY], "pcrs": {}}, "pcrs"),
        ({"keys": [GOOD_KEY], "pcrs": {"0": []}}, "PCR 0"),
        ({"keys": [GOOD_KEY], "pcrs": {"0": ["00" * 20]}}, "PCR 0"),
        ({"keys": [GOOD_KEY], "pcrs": {"24": ["00" * 32]}}, "0 to 23"),
        ({"keys": [GOOD_KEY], "pcrs": {"07": ["00" * 32]}}, "0 to 23"),
        ({"keys": [GOOD_KEY], "pcrs": {"0": ["00" * 32]}, "more": 1}, "more"),
        (
            {"keys": [GOOD_KEY], "pcrs": {"0": ["00" * 32] * (limits.MAX_REFERENCE_VALUES + 1)}},
            "more than 1024",
        ),
    ],
    ids=range(14),
)
def test_malformed_references_are_no_bundle_and_say_where(entry: dict[str, Any], told: str) -> None:
    """A policy that nobody could meet, or that pins a weak key, is refused at authoring and at load."""
    with pytest.raises(EvidenceError) as error:
        values_of({"a": entry})
    assert error.value.reason is Reason.BUNDLE_MALFORMED
    assert told in error.value.detail
