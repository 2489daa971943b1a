"""Finding records: where an index says, else around their time, else everywhere; false hints change nothing."""

import hashlib
from collections.abc import Iterator, Sequence

import pytest

from control_plane.edge.evidence_find import Position, Records, find_records
from tests.support.records import START_MS, callee_side, execution_id, intent, outcome, refusal
from trust.edge.ledger.segments import Frame
from trust.errors import EvidenceError, InputError, Reason
from trust.record import Record, Side, build_record

HOUR_MS = 3_600_000


class MemoryLedger:
    """A ledger in memory that counts what is read; `archived` records are somewhere else."""

    def __init__(self, records: Sequence[Record], *, archived: int = 0, damaged: int | None = None) -> None:
        self._data = [build_record(record) for record in records]
        self._archived, self._damaged = archived, damaged
        self.read = 0

    @property
    def size(self) -> int:
        return len(self._data)

    def record(self, index: int) -> bytes:
        self.read += 1
        if index < self._archived:
            raise InputError(Reason.NOT_FOUND, f"there is no record {index}")
        if index == self._damaged:
            raise EvidenceError(Reason.DIGEST_MISMATCH, "damaged")
        return self._data[index]

    def scan(self, start: int = 0) -> Iterator[Frame]:
        for index in range(start, self.size):
            if index < self._archived:
                raise EvidenceError(Reason.DIGEST_MISMATCH, f"record {index} is missing from DIR")
            data = self.record(index)
            yield Frame(index, hashlib.sha256(data).digest(), data, 0)


def noise(count: int, node: str, start_ms: int = START_MS) -> list[Record]:
    """Refusals of others, one every ten seconds."""
    return [refusal(1000 + n, node=node, wall_ms=start_ms + 10_000 * n, monotonic_ms=n) for n in range(count)]


WANTED = intent(1, execution_id=execution_id(1, START_MS + 5 * HOUR_MS), wall_ms=START_MS + 5 * HOUR_MS)
AT = 1800  # of the noise: five hours
HERE: list[Record] = [WANTED, outcome(WANTED)]
THERE: list[Record] = [callee_side(WANTED, "b"), outcome(callee_side(WANTED, "b"))]


def world(**options: int) -> dict[str, MemoryLedger]:
    """Two ledgers of 4,000 records over eleven hours, with the wanted execution in the middle of both."""
    return {
        node: MemoryLedger([*noise(AT, node), *mine, *noise(4000 - AT, node, WANTED.wall_ms)], **options)
        for node, mine in (("a", HERE), ("b", THERE))
    }


HINTS = [
    Position(WANTED.execution_id, "a", Side.OUTBOUND, AT, AT + 1),
    Position(WANTED.execution_id, "b", Side.INBOUND, AT, AT + 1),
]


def places(found: Records) -> dict[str, list[int]]:
    """Node to the indexes of what was found."""
    return {node: sorted(records) for node, records in found.items()}


BOTH = {"a": [AT, AT + 1], "b": [AT, AT + 1]}


def read(ledgers: dict[str, MemoryLedger]) -> int:
    return sum(ledger.read for ledger in ledgers.values())


def test_what_an_index_names_is_read_and_nothing_else() -> None:
    """Four records of eight thousand."""
    ledgers = world()
    assert places(find_records([WANTED.execution_id], ledgers, HINTS)) == BOTH
    assert read(ledgers) == 4


def test_without_an_index_the_records_around_the_time_of_the_execution_are_read() -> None:
    """The id says when it began: a search by halves, then a window of two minutes."""
    ledgers = world()
    assert places(find_records([WANTED.execution_id], ledgers)) == BOTH
    assert read(ledgers) < 100


@pytest.mark.parametrize("offset", [-1, 1, 500, 10**6])
def test_a_false_index_changes_nothing_of_what_is_found(offset: int) -> None:
    """Whoever answers for the control plane can neither hide a record nor put another one in its place."""
    false = [Position(p.execution, p.node, p.side, p.intent + offset, None) for p in HINTS]
    assert places(find_records([WANTED.execution_id], world(), false)) == BOTH


def test_a_node_whose_clock_is_hours_off_is_searched_whole() -> None:
    """Its records are not where the time of the execution says."""
    late: list[Record] = [
        callee_side(WANTED, "b", wall_ms=START_MS),
        outcome(callee_side(WANTED, "b", wall_ms=START_MS)),
    ]
    ledgers = world() | {"b": MemoryLedger([*late, *noise(3000, "b")])}
    assert places(find_records([WANTED.execution_id], ledgers)) == {"a": [AT, AT + 1], "b": [0, 1]}


def test_an_outcome_hours_after_its_intent_is_found() -> None:
    """Streams live long; the search goes on until the side has ended."""
    ending = outcome(WANTED, wall_ms=WANTED.wall_ms + 3 * HOUR_MS)
    ledgers = {"a": MemoryLedger([*noise(AT, "a"), WANTED, *noise(1500, "a", WANTED.wall_ms), ending])}
    assert places(find_records([WANTED.execution_id], ledgers)) == {"a": [AT, AT + 1501]}


def test_a_side_that_the_index_knows_on_a_node_whose_ledger_is_not_here_is_not_searched_for() -> None:
    """Asking for one side only does not read every ledger from the beginning."""
    ledgers = {"a": world()["a"]}
    assert places(find_records([WANTED.execution_id], ledgers, HINTS)) == {"a": BOTH["a"]}
    assert read(ledgers) < 100


def test_an_index_that_names_another_node_hides_no_side_of_this_one() -> None:
    """It says that the callee's side is on a node whose ledger nobody brought."""
    false = [HINTS[0], Position(WANTED.execution_id, "nowhere", Side.INBOUND, 1, 2)]
    assert places(find_records([WANTED.execution_id], world(), false)) == BOTH


def test_what_was_archived_and_is_not_here_does_not_hide_what_is() -> None:
    """The older part is somewhere else; the execution is in the newer."""
    ledgers = world(archived=1000)
    assert places(find_records([WANTED.execution_id], ledgers)) == BOTH


def test_a_search_that_needs_an_archive_says_so() -> None:
    """What to do next: name the archive."""
    with pytest.raises(InputError, match="--archive"):
        find_records([execution_id(99)], world(archived=1000))


def test_damage_away_from_the_execution_is_no_obstacle_and_is_named_when_all_must_be_read() -> None:
    """One bad record of eight thousand does not cost the evidence of the others."""
    assert places(find_records([WANTED.execution_id], world(damaged=3), HINTS)) == BOTH
    with pytest.raises(EvidenceError, match="damaged"):
        find_records([execution_id(99)], world(damaged=3))


def test_an_unknown_execution_is_found_nowhere() -> None:
    """After everything was read."""
    assert places(find_records([execution_id(99)], world())) == {"a": [], "b": []}
