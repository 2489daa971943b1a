"""UUIDv7: its layout, and that ids sort as they were drawn whatever the clock does."""

import itertools
import uuid

from tests.support.records import intent
from trust.edge.ids import ExecutionIds
from trust.execution import id_text, parse_id
from trust.record import build_record


def test_ids_are_uuid_version_7_with_the_time_in_front() -> None:
    """RFC 9562 section 5.7."""
    made = uuid.UUID(bytes=ExecutionIds(now_ms=lambda: 0x017F22E279B0).new())
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == 0x017F22E279B0
    build_record(intent(execution_id=made.bytes))


def test_the_vector_of_the_rfc() -> None:
    """RFC 9562 appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F."""
    random = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    entropy = (random << 7).to_bytes(11)[-10:]  # shifted: the generator keeps the top bit clear
    wanted = uuid.UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")
    made = uuid.UUID(bytes=ExecutionIds(now_ms=lambda: 0x017F22E279B0, entropy=lambda _: entropy).new())
    assert made.int & ~(1 << 75) == wanted.int & ~(1 << 75)


def test_ids_follow_a_clock_that_is_set_back() -> None:
    """The callee's sidecar refuses permits of executions that began after them: an hour of refusals otherwise."""
    clock = iter([3_600_000, 3_599_000, 3_598_999, 5])
    ids = ExecutionIds(now_ms=lambda: next(clock))
    assert [int.from_bytes(ids.new()) >> 80 for _ in range(4)] == [3_600_000, 3_600_000, 3_598_999, 5]


def test_ids_grow_within_a_millisecond_and_when_the_clock_goes_back_a_little() -> None:
    """Sorting by id is sorting by when it was drawn, in one process."""
    clock = itertools.chain([5] * 2_000, [4, 3, 0, -7], [6] * 2_000, itertools.repeat(2**50))
    ids = ExecutionIds(now_ms=lambda: next(clock))
    drawn = [ids.new() for _ in range(5_000)]
    assert drawn == sorted(set(drawn))
    assert int.from_bytes(drawn[2_003]) >> 80 == 5


def test_a_millisecond_that_is_used_up_borrows_the_next() -> None:
    """Even with a broken source of randomness ids stay unique and in order."""
    ids = ExecutionIds(now_ms=lambda: 5, entropy=lambda size: b"\xff" * size)
    ids._random = (1 << 74) - 1
    ids._ms = 5
    first, second = ids.new(), ids.new()
    assert first < second
    assert int.from_bytes(first) >> 80 == 6


def test_ids_are_written_and_read_in_one_form() -> None:
    """What is printed can be pasted back."""
    made = ExecutionIds().new()
    assert parse_id(id_text(made)) == made
