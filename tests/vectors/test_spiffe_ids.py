"""SPIFFE IDs by the sections of the SPIFFE-ID specification (provenance: SOURCES.md)."""

import json
from pathlib import Path

import pytest

from trust.errors import EvidenceError, Reason
from trust.spiffe import SpiffeId

VECTORS: dict[str, list[tuple[str, str]]] = json.loads(
    Path(__file__).with_name("spiffe_ids.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("rule", "text"), VECTORS["valid"])
def test_valid_id_is_read_and_written_back_alike(rule: str, text: str) -> None:
    """What the specification allows parses, and there is one form of it."""
    parsed = SpiffeId.parse(text)
    assert str(parsed) == text
    assert text == f"spiffe://{parsed.trust_domain}/{parsed.path}"


@pytest.mark.parametrize(("rule", "text"), VECTORS["invalid"] + VECTORS["valid_but_refused"])
def test_invalid_id_is_refused_with_its_reason(rule: str, text: str) -> None:
    """What it forbids is refused with IDENTITY_INVALID and nothing else, and so is a second form of a valid ID."""
    with pytest.raises(EvidenceError) as caught:
        SpiffeId.parse(text)
    assert caught.value.reason is Reason.IDENTITY_INVALID


def test_lengths_at_their_bounds() -> None:
    """Section 2.3: 2048 bytes in all, 255 of them for the trust domain."""
    start = "spiffe://td/"
    SpiffeId.parse(start + "a" * (2048 - len(start)))
    SpiffeId.parse(f"spiffe://{'a' * 255}/w")
    for text in (start + "a" * (2049 - len(start)), f"spiffe://{'a' * 256}/w"):
        with pytest.raises(EvidenceError):
            SpiffeId.parse(text)
