"""Evidence files come from strangers: whatever the bytes, the parser answers or refuses with its own error."""

import hashlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.evidence_world import EvidenceWorld
from trust.errors import EvidenceError, Reason
from trust.evidence import FIRST_FORMAT, FORMAT, build_evidence, parse_evidence
from trust.evidence_verify import Verdict, verify_evidence

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
_FIRST = ["contents", "nodes", "records", "policies", "anchors"]  # members of the first format
_NAMES = [*_FIRST, "endorsements", "credentials"]
_WORLD = EvidenceWorld()
_TOKEN = _WORLD.permit()


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


@given(st.fixed_dictionaries({"format": st.just(FIRST_FORMAT), **dict.fromkeys(_FIRST, _JSON)}))
def test_arbitrary_members_of_the_first_format_never_crash_the_parser(document: dict[str, Any]) -> None:
    """It is still read."""
    read(json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n")


@settings(max_examples=60)
@given(
    st.binary(min_size=1, max_size=300)
    | st.text(st.sampled_from("ey.aA0-_="), min_size=1, max_size=300).map(str.encode)
    | st.builds(
        lambda at, byte: _TOKEN.encode()[:at] + bytes([byte]) + _TOKEN.encode()[at + 1 :],
        st.integers(0, len(_TOKEN) - 1),
        st.integers(0, 255),
    )
)
def test_whatever_a_node_records_as_a_permit_never_crashes_the_verifier(permit: bytes) -> None:
    """It is genuine, or the file is contradicted or open; nothing else is raised."""
    sides = _WORLD.sides(permit=permit, permit_sha256=hashlib.sha256(permit).digest())
    data = _WORLD.file(sides)
    report = verify_evidence(data, _WORLD.tuf.root, _WORLD.ca.pem)
    assert (report.verdict() is Verdict.ESTABLISHED) is (permit == _TOKEN.encode())


def test_deep_nesting_and_long_numbers_are_refused() -> None:
    """What exhausts a parser's stack or its patience is refused, not raised."""
    for value in ("[" * 100_000, "9" * 10_000):
        read(f'{{"anchors":{value}'.encode())
    read(('{"anchors":' + "9" * 10_000 + "}\n").encode())
