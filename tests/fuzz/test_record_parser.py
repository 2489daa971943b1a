"""Arbitrary and nearly right bytes at the reader of execution records: a record or a named refusal, nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from egm.v1 import record_pb2 as pb
from tests.support.records import child, intent, outcome
from trust.errors import EvidenceError, MeshError, Reason
from trust.execution import parse_id
from trust.record import build_record, parse_record
from trust.record_rules import plain, trace_of

_VALID = [build_record(r) for r in (intent(1), child(2, intent(1)), outcome(intent(1)))]


def read(data: bytes) -> None:
    """Read `data`; only the one documented refusal may come out."""
    try:
        record = parse_record(data)
    except EvidenceError as error:
        assert error.reason is Reason.RECORD_MALFORMED
    else:
        assert build_record(record) == data


@given(st.binary(max_size=400))
def test_arbitrary_bytes(data: bytes) -> None:
    """No crash, no other error."""
    read(data)
    read(b"\x08\x01" + data)
    read(b"\x08\x01\x12" + bytes([min(len(data), 127)]) + data)


@given(st.sampled_from(_VALID), st.data())
def test_valid_records_cut_doubled_and_spliced(valid: bytes, data: st.DataObject) -> None:
    """Whatever is accepted is exactly what would have been built."""
    start = data.draw(st.integers(0, len(valid)))
    end = data.draw(st.integers(start, len(valid)))
    other = data.draw(st.sampled_from(_VALID))
    for mutated in (valid[:start], valid[:start] + valid[end:], valid[:start] + other + valid[end:]):
        read(mutated)


@given(
    st.builds(
        pb.Intent,
        execution_id=st.binary(max_size=20),
        root_id=st.binary(max_size=20),
        parent_link=st.integers(-2, 5),
        direction=st.integers(-2, 5),
        method=st.text(max_size=20),
        reason=st.text(max_size=20),
        level=st.integers(-5, 10),
        wall_ms=st.integers(-(2**63), 2**63 - 1),
        policies=st.lists(st.text(max_size=5), max_size=70),
    )
)
def test_messages_with_arbitrary_values(message: pb.Intent) -> None:
    """The right shape with wrong values."""
    read(pb.ExecutionRecord(format=1, intent=message).SerializeToString(deterministic=True))


@given(st.text(max_size=80))
def test_texts_of_callers(text: str) -> None:
    """Every text becomes one that a record holds; ids and traceparents are read or not, without a crash."""
    fit = plain(text)
    assert plain(fit) == fit
    assert len(trace_of(text)[0]) in {0, 16}
    try:
        parse_id(text)
    except MeshError as error:
        assert error.reason is Reason.INPUT_INVALID
