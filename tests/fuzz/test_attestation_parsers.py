"""Whatever bytes arrive as evidence, credential, memory or reference values: an answer or a refusal, never a crash."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.attestation import AttestedNode, credential_of, holders, roster_of
from trust.attestation.credential import open_credential
from trust.attestation.measurement import parse_reference_values
from trust.attestation.memory import Memory, read_memory, write_memory
from trust.attestation.statement import open_evidence, parse_statement, write_statement
from trust.errors import EvidenceError

NODE = AttestedNode("n")
WITNESSES = holders("a", "b", "c")
ROSTER = roster_of(WITNESSES)
STATEMENT = write_statement(NODE.statement())
ENVELOPE = NODE.evidence().envelope
CREDENTIAL = credential_of(NODE.evidence(), WITNESSES)
MEMORY = write_memory(Memory(revision=1, boot=b"12345678", versions={"targets": 3}))
READERS = {
    STATEMENT: parse_statement,
    ENVELOPE: open_evidence,
    CREDENTIAL: lambda data: open_credential(data, ROSTER),
    MEMORY: read_memory,
    b'{"distributions":[{"version":"1","sha256":"' + b"00" * 32 + b'"}]}': parse_reference_values,
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def read(data: bytes) -> int:
    """Give the bytes to every reader; return how many took them."""
    taken = 0
    for reader in READERS.values():
        try:
            reader(data)
            taken += 1
        except EvidenceError:
            continue
    return taken


@given(st.binary(max_size=300) | anything.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    """Total over bytes, and over JSON of any shape."""
    assert read(data) == 0


@given(st.sampled_from(list(READERS)), st.data())
@settings(max_examples=150, deadline=None)
def test_a_member_replaced_by_anything_is_refused_or_means_the_same(
    right: bytes, data: st.DataObject
) -> None:
    """At any depth."""
    value = json.loads(right)
    place: Any = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(anything)
        break
    read(json.dumps(value, separators=(",", ":")).encode())


@given(st.sampled_from([ENVELOPE, CREDENTIAL]), st.integers(0, 2**31), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_refused(right: bytes, place: int, change: int) -> None:
    """Signatures and the one encoding leave no byte out, but the label of the key."""
    at = place % len(right)
    label = right.index(b'"keyid":"') + 9
    if label <= at < label + 43:
        return
    broken = right[:at] + bytes([right[at] ^ change]) + right[at + 1 :]
    reader = READERS[right]
    try:
        reader(broken)
    except EvidenceError:
        return
    # a witness's line whose key is not known any more counts for nobody
    assert right is CREDENTIAL
    assert len(open_credential(broken, ROSTER).attested_s) < len(WITNESSES) or at > right.index(b'"logged"')
