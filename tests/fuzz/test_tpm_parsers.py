"""What claims to come from a TPM is read, or refused with ValueError: nothing else."""

import contextlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trust.attestation.tpm import Quote, read_key
from trust.attestation.tpm_wire import read_attestation_key, read_quote, read_signature

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "tpm_quotes.json").read_text())
GOOD = [
    bytes.fromhex(one[name])
    for one in VECTORS["quotes"].values()
    for name in ("attest", "signature", "public")
]
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(GOOD), st.data())
def test_changed_structures_are_read_or_refused(good: bytes, data: st.DataObject) -> None:
    """A few bytes replaced anywhere, or anything at all."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    for sample in (bytes(changed), data.draw(st.binary(max_size=300))):
        for read in (read_quote, read_signature, read_attestation_key):
            with contextlib.suppress(ValueError):
                read(sample)


@given(JSON, st.text(max_size=200))
def test_nonsense_is_no_quote_and_no_key(value: object, text: str) -> None:
    """As a member of a statement, and as a reference value."""
    candidates = [
        value,
        {"quote": value, "signature": "", "pcrs": {}},
        {"quote": "", "signature": "", "pcrs": value},
    ]
    for candidate in candidates:
        with contextlib.suppress(ValueError):
            Quote.from_json(candidate)
    with contextlib.suppress(ValueError):
        read_key(text)
