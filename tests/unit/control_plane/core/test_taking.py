"""What a batch of records adds to the index, sums and events, in one look."""

from control_plane.core.analytics import Key, key_of
from control_plane.core.executions import Batch
from control_plane.core.findings import Decided, Ended
from control_plane.core.standing import Standing, Weight
from control_plane.core.taking import EXECUTION_COLUMNS, Begun, Place, Taken, missing_intents, take
from tests.support.records import intent, outcome, workload
from trust.record import Intent, Outcome, build_record

TD = "mesh.test"
OWN = Standing(TD, {"": None, "alice": None})


def batch(*records: Intent | Outcome, at: int = 0) -> Batch:
    """Return a batch of node a."""
    return Batch("a", "l1", at, tuple(map(build_record, records)), records, after_gap=False)


def looked_at(
    *records: Intent | Outcome,
    held: int = 0,
    at: int = 0,
    standing: Standing = OWN,
    known: dict[Place, Begun] | None = None,
) -> Taken:
    """Return what a batch of ledger 7 adds."""
    return take(
        batch(*records, at=at),
        held,
        7,
        standing=standing,
        serves=lambda _service: None,
        known=known or {},
        events=True,
    )


def outcomes(taken: Taken) -> list[tuple[int | None, int]]:
    """Return (index, bytes) of the outcome in each execution's row."""
    at = EXECUTION_COLUMNS.index("outcome_index")
    return [(row[at], row[at + 1]) for row in taken.executions]


def test_outcome_that_comes_with_its_intent_needs_no_statement_of_its_own() -> None:
    """Most do; each statement saved is work that a control plane does not do for every call."""
    first, second = intent(1), intent(2)
    taken = looked_at(first, second, outcome(first), at=10)
    assert outcomes(taken) == [(12, len(build_record(outcome(first)))), (None, 0)]
    assert not taken.endings
    assert [one[:2] for one in taken.records] == [(7, 10), (7, 11), (7, 12)]
    assert [type(one) for one in taken.events] == [Decided, Decided, Ended]
    assert [key for _, key in taken.counted] == [key_of(first)] * 3


def test_outcome_of_an_earlier_batch_closes_it_and_counts_as_it_began() -> None:
    """Whose call that was is known from its intent alone."""
    ended = outcome(intent(1))
    assert missing_intents(batch(ended), 0, {}) == {ended.execution_id}
    key = Key("a", ended.side, "c", "s", "m")
    place = ("a", ended.execution_id, int(ended.side))
    taken = looked_at(ended, known={place: Begun(key, Weight.COUNTS)})
    assert not missing_intents(batch(ended), 0, {place: Begun(key, Weight.COUNTS)})
    assert [(one.outcome_index, one.ledger_id) for one in taken.endings] == [(0, 7)]
    assert taken.counted == [(ended, key)]
    (event,) = taken.events
    assert (event.caller, event.service, event.method) == ("c", "s", "m")


def test_outcome_whose_intent_is_not_known_adds_nothing() -> None:
    """Nobody can say whose call that was."""
    taken = looked_at(outcome(intent(1)))
    assert (taken.counted, taken.events) == ([], [])
    assert len(taken.records) == 1


def test_outcome_before_its_intent_does_not_end_it() -> None:
    """A lie about the order."""
    lie = intent(1)
    assert outcomes(looked_at(outcome(lie), lie)) == [(None, 0)]


def test_records_that_were_here_are_not_looked_at_again() -> None:
    """Shipped at least once, counted exactly once."""
    taken = looked_at(intent(1), intent(2), held=1)
    assert [one[1] for one in taken.records] == [1]
    assert len(taken.counted) == len(taken.events) == 1


def test_made_up_call_is_kept_and_counts_for_nothing_but_against_its_node() -> None:
    """It stays as evidence: neither sums nor profiles learn from it, nor from how it is said to have ended."""
    lie = intent(1, caller=workload("mallory"))
    taken = looked_at(lie, outcome(lie))
    assert len(taken.records) == 2
    assert [row[-1] for row in taken.executions] == [Weight.FOREIGN]
    assert not taken.counted
    (event,) = taken.events
    assert isinstance(event, Decided)
    assert "mallory" in event.foreign
