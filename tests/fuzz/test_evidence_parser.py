"""Evidence files come from strangers: whatever the bytes, the parser answers or refuses with its own error."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trust.errors import EvidenceError, Reason
from trust.evidence import FORMAT, build_evidence, parse_evidence

_LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(["AA==", "a", "outbound"])
)
_JSON = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)
_NAMES = ["contents", "nodes", "records", "policies", "anchors"]


def read(data: bytes) -> None:
    """Parse; only a well-formed file may pass, and that one is written back as it was."""
    try:
        evidence = parse_evidence(data)
    except EvidenceError as error:
        assert error.reason is Reason.PROOF_INVALID
    else:
        assert build_evidence(evidence) == data


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_crash_the_parser(data: bytes) -> None:
    """Total over bytes."""
    read(data)


@given(st.fixed_dictionaries({"format": st.just(FORMAT), **dict.fromkeys(_NAMES, _JSON)}))
def test_arbitrary_members_never_crash_the_parser(document: dict[str, Any]) -> None:
    """The shape is right at the top, and anything below."""
    read(json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n")


def test_deep_nesting_and_long_numbers_are_refused() -> None:
    """What exhausts a parser's stack or its patience is refused, not raised."""
    for value in ("[" * 100_000, "9" * 10_000):
        read(f'{{"anchors":{value}'.encode())
    read(('{"anchors":' + "9" * 10_000 + "}\n").encode())
