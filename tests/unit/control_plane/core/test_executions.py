"""Which records the index takes, and which questions it answers."""

import pytest

from control_plane.core.executions import (
    MAX_INDEX,
    Batch,
    Decided,
    Query,
    check_batch,
    check_ledger,
    new_records,
    parse_decision,
)
from tests.support.records import intent, outcome
from trust import limits
from trust.errors import InputError, MeshError, Reason
from trust.record import build_record
from trust.spiffe import SpiffeId

NODE = SpiffeId.of("mesh.test", "node", "a")
RECORDS = [build_record(intent(1)), build_record(outcome(intent(1)))]


def check(*, caller: SpiffeId = NODE, **changes: object) -> Batch:
    """Check a batch that is good but for `changes`."""
    fields = {"node": "a", "ledger": "l1", "first_index": 0, "records": RECORDS, "after_gap": False}
    return check_batch(caller, **(fields | changes))  # type: ignore[arg-type]


def test_a_good_batch_is_read() -> None:
    """Bytes and meaning stay together."""
    batch = check(first_index=7)
    assert batch.raw == tuple(RECORDS)
    assert batch.parsed == (intent(1), outcome(intent(1)))
    assert batch.end == 9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"caller": SpiffeId.of("mesh.test", "node", "b")}, Reason.NOT_AUTHORIZED),
        ({"caller": SpiffeId.of("mesh.test", "operator", "a")}, Reason.NOT_AUTHORIZED),
        ({"node": "b"}, Reason.NOT_AUTHORIZED),
        ({"records": [build_record(intent(1, node="b"))]}, Reason.NOT_AUTHORIZED),
        ({"records": [build_record(outcome(intent(1, node="b")))]}, Reason.NOT_AUTHORIZED),
        ({"records": []}, Reason.INPUT_INVALID),
        ({"first_index": -1}, Reason.INPUT_INVALID),
        ({"first_index": MAX_INDEX}, Reason.INPUT_INVALID),
        ({"ledger": ""}, Reason.INPUT_INVALID),
        ({"ledger": "a b"}, Reason.INPUT_INVALID),
        ({"ledger": "x" * 256}, Reason.INPUT_INVALID),
        ({"records": [*RECORDS, b"junk"]}, Reason.RECORD_MALFORMED),
        ({"records": [b"x" * limits.MAX_SHIP_BATCH_BYTES, b"x"]}, Reason.LIMIT_EXCEEDED),
        ({"records": RECORDS * limits.MAX_SHIP_BATCH_RECORDS}, Reason.LIMIT_EXCEEDED),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_batch_that_is_not_the_callers_or_not_well_formed_is_refused(
    changes: dict[str, object], reason: Reason
) -> None:
    """Before anything reaches the store."""
    with pytest.raises(MeshError) as caught:
        check(**changes)  # type: ignore[arg-type]
    assert caught.value.reason is reason


def test_a_malformed_record_is_named_by_its_index() -> None:
    """So that it can be looked up in the node's ledger."""
    with pytest.raises(MeshError) as caught:
        check(records=[*RECORDS, b"junk"], first_index=40)
    assert "record 42 of a" in caught.value.detail


@pytest.mark.parametrize(
    ("first", "held", "expected"), [(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 9, 2), (5, 5, 0), (5, 6, 1)]
)
def test_what_is_here_already_is_counted_and_the_rest_continues(first: int, held: int, expected: int) -> None:
    """Batches may overlap what was taken, in part or wholly."""
    assert new_records(check(first_index=first), held) == expected


def test_a_gap_must_be_declared() -> None:
    """A lost message is not the same as an archived segment."""
    with pytest.raises(MeshError) as caught:
        new_records(check(first_index=5), 3)
    assert caught.value.reason is Reason.CONFLICT
    assert new_records(check(first_index=5, after_gap=True), 3) == 0


def test_questions_are_bounded() -> None:
    """Each wrong value is refused."""
    for wrong in (
        {"limit": 0},
        {"limit": limits.MAX_EXECUTIONS_PAGE + 1},
        {"since_ms": -1},
        {"until_ms": -1},
        {"method": "\0"},
        {"caller": "x" * (limits.MAX_RECORD_NAME_BYTES + 1)},
    ):
        with pytest.raises(InputError):
            Query(**wrong)
    assert parse_decision("") is None
    assert parse_decision("would-deny") is Decided.WOULD_DENY
    with pytest.raises(InputError):
        parse_decision("maybe")


def test_only_a_node_speaks_of_its_ledger() -> None:
    """The certificate decides, not the request."""
    check_ledger(NODE, "a", "spiffe://mesh.test/node/a+1f2e")
    with pytest.raises(MeshError):
        check_ledger(SpiffeId.of("mesh.test", "workload", "a"), "a", "l1")
    long = SpiffeId("mesh.test", f"node/{'x' * 64}")
    with pytest.raises(MeshError) as caught:
        check_ledger(long, long.name, "l1")
    assert caught.value.reason is Reason.IDENTITY_INVALID
