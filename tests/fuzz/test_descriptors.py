"""Any bytes are a table of methods, or are refused with a stable reason."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.engines import descriptors
from trust.errors import EvidenceError, Reason
from trust.policy.descriptors import MethodTable
from trust.policy.request_context import projection

SMALL = descriptors(
    'syntax = "proto3"; package shop; enum E { A = 0; } message M { M m = 1; optional E e = 2; map<int32, M> x = 3; '
    "oneof o { string s = 4; } } service S { rpc R (M) returns (stream M); }"
)


def read(data: bytes) -> None:
    """Parse and use the result, or be refused."""
    try:
        table = MethodTable.parse(data)
        for method in table.methods():
            info = table.get(method)
            if info is not None:
                projection(info.input_type, None)(info.decode(b""))
    except EvidenceError as error:
        assert error.reason in {Reason.BUNDLE_MALFORMED, Reason.REQUEST_UNREPRESENTABLE}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    """Whatever is in the archive, the reader answers."""
    read(data)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_descriptors(changes: list[tuple[int, int]]) -> None:
    """A valid set with some bytes changed is a table or is refused."""
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    read(bytes(data))


@pytest.mark.parametrize("length", range(0, len(SMALL), 7))
def test_truncated_descriptors(length: int) -> None:
    """A set cut anywhere is a table or is refused."""
    read(SMALL[:length])
