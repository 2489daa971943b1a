"""Quotes, keys and other attestations of a TPM 2.0, as swtpm made them."""

import json
from pathlib import Path
from typing import Any

import pytest

from trust.attestation.tpm import Quote, key_text, read_key, verify_quote
from trust.attestation.tpm_wire import read_attestation_key, read_quote, read_signature

VECTORS = json.loads((Path(__file__).parent / "tpm_quotes.json").read_text())
EXTRA = bytes.fromhex(VECTORS["extra"])
KINDS = ["ecdsa", "rsassa"]


def quote_of(vector: dict[str, Any], pcrs: dict[str, str]) -> Quote:
    values = tuple((int(index), bytes.fromhex(value)) for index, value in pcrs.items())
    return Quote(bytes.fromhex(vector["attest"]), bytes.fromhex(vector["signature"]), values)


@pytest.mark.parametrize("kind", KINDS)
def test_real_quote_verifies_under_the_key_that_its_public_area_holds(kind: str) -> None:
    """The key as the TPM's own structure says it is the one that tpm2_readpublic exports, and signed the quote."""
    vector = VECTORS["quotes"][kind]
    key = read_attestation_key(bytes.fromhex(vector["public"]))
    assert key_text(key) == vector["spki"]
    verify_quote(quote_of(vector, vector["pcrs"]), [read_key(vector["spki"])], EXTRA)


@pytest.mark.parametrize("kind", KINDS)
def test_quote_of_another_key_challenge_or_registers_is_refused(kind: str) -> None:
    """Each of what is verified: signature, extra data, selection, values."""
    vector = VECTORS["quotes"][kind]
    key = read_key(vector["spki"])
    (stranger,) = (read_key(VECTORS["quotes"][other]["spki"]) for other in KINDS if other != kind)
    good = quote_of(vector, vector["pcrs"])
    for quote, keys, extra, told in (
        (good, [stranger], EXTRA, "not signed by an attestation key"),
        (good, [], EXTRA, "not signed by an attestation key"),
        (good, [key], bytes(32), "another challenge"),
        (quote_of(vector, vector["pcrs"] | {"7": "00" * 32}), [key], EXTRA, "not those that it is over"),
        (quote_of(vector, {"0": "00" * 32}), [key], EXTRA, "over other PCRs"),
    ):
        with pytest.raises(ValueError, match=told):
            verify_quote(quote, keys, extra)


@pytest.mark.parametrize("kind", KINDS)
def test_every_changed_byte_is_refused(kind: str) -> None:
    """Of what the TPM signed, and of its signature."""
    vector = VECTORS["quotes"][kind]
    good = quote_of(vector, vector["pcrs"])
    key = read_key(vector["spki"])
    for index in range(len(good.attest)):
        changed = good.attest[:index] + bytes([good.attest[index] ^ 1]) + good.attest[index + 1 :]
        with pytest.raises(ValueError):
            verify_quote(Quote(changed, good.signature, good.pcrs), [key], EXTRA)
    for index in range(len(good.signature)):
        changed = good.signature[:index] + bytes([good.signature[index] ^ 1]) + good.signature[index + 1 :]
        with pytest.raises(ValueError):
            verify_quote(Quote(good.attest, changed, good.pcrs), [key], EXTRA)


@pytest.mark.parametrize("name", sorted(VECTORS["other"]))
def test_other_attestations_of_the_same_key_are_no_quotes(name: str) -> None:
    """The same key certifies keys and times, and quotes other banks: genuine signatures that do not count here."""
    vector = VECTORS["other"][name]
    key = read_key(VECTORS["quotes"]["ecdsa"]["spki"])
    with pytest.raises(ValueError, match=r"it is no quote|not over PCRs of the SHA-256 bank alone"):
        verify_quote(quote_of(vector, VECTORS["quotes"]["ecdsa"]["pcrs"]), [key], EXTRA)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unrestricted", "it lacks restricted"),
        ("endorsement", "it lacks sign"),
        ("p384", "each with SHA-256"),
        ("rsapss", "neither with ECDSA nor with RSASSA"),
        ("sha384", "each with SHA-256"),
    ],
)
def test_key_that_could_sign_a_made_up_quote_or_is_of_another_kind_is_not_enrolled(
    name: str, told: str
) -> None:
    """A key that is not restricted signs whatever it is given: swtpm signed a copied quote with this one."""
    with pytest.raises(ValueError, match=told):
        read_attestation_key(bytes.fromhex(VECTORS["no_attestation_keys"][name]))


def test_shorter_or_longer_than_its_structure_is_refused() -> None:
    """Every prefix, and one byte more, of everything that is read."""
    vector = VECTORS["quotes"]["ecdsa"]
    for read, text in (
        (read_quote, vector["attest"]),
        (read_signature, vector["signature"]),
        (read_attestation_key, vector["public"]),
        (read_attestation_key, VECTORS["quotes"]["rsassa"]["public"]),
    ):
        data = bytes.fromhex(text)
        for wrong in (*(data[:end] for end in range(len(data))), data + b"\0"):
            with pytest.raises(ValueError):
                read(wrong)
