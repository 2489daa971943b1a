"""The announcement parser is total: bytes from an untrusted broker give a hint or an EvidenceError."""

import json

from hypothesis import given
from hypothesis import strategies as st

from trust import announce
from trust.errors import EvidenceError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _total(raw: bytes) -> None:
    try:
        announced = announce.parse_announcement(raw)
    except EvidenceError:
        return
    assert announced.raw == raw
    assert 1 <= announced.version <= announce.MAX_ANNOUNCED_VERSION


@given(st.binary(max_size=2000))
def test_arbitrary_bytes(raw: bytes) -> None:
    """Noise never escapes as another exception."""
    _total(raw)


@given(JSON, JSON, JSON)
def test_arbitrary_json_of_the_right_shape(kind: object, version: object, rest: object) -> None:
    """Nor does JSON that looks almost right."""
    for signed in (
        {"_type": "timestamp", "version": version, "meta": rest},
        {"_type": kind, "version": version},
    ):
        _total(json.dumps({"signed": signed}).encode())
