"""Finds the records of executions in ledgers: where an index says, else around their time, else everywhere.

An execution's id says when it began, and a ledger is written in the order of time, so that a few records read at the
right places are enough nearly always. What is found is a record of the execution, wherever the hint came from; a hint
that is false costs time and nothing else.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from trust.edge.ledger.segments import Frame
from trust.errors import EvidenceError, InputError, Reason
from trust.record import Intent, Outcome, Record, Side, parse_record

# Clocks of nodes differ, and an execution may wait for a decision before it is written down.
_WINDOW_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Position:
    """Where an index says that one side of an execution is; `outcome` is None while it knows of none."""

    execution: bytes
    node: str
    side: Side
    intent: int
    outcome: int | None


class Ledger(Protocol):
    """What is asked of a ledger (`trust.edge.ledger.Reader`)."""

    @property
    def size(self) -> int:
        """Records under the checkpoint."""
        ...

    def record(self, index: int) -> bytes:
        """Return one record. Raises InputError NOT_FOUND, EvidenceError DIGEST_MISMATCH."""
        ...

    def scan(self, start: int = 0) -> Iterator[Frame]:
        """Yield the records from `start` on. Raises EvidenceError DIGEST_MISMATCH."""
        ...


Records = dict[str, dict[int, tuple[bytes, Record]]]  # node -> index -> bytes and what they say


def find_records(
    wanted: Collection[bytes], readers: Mapping[str, Ledger], positions: Sequence[Position] = ()
) -> Records:
    """Return every signed record of the executions `wanted` (16-byte ids) that the ledgers have.

    Args:
        wanted: at least one.
        readers: node to its ledger.
        positions: what an index says; not believed.

    Raises:
        EvidenceError: DIGEST_MISMATCH, for a ledger that had to be read whole and is damaged.
        InputError: NOT_FOUND, for one that had to be read whole and is partly archived somewhere else.
    """
    found: Records = {node: {} for node in readers}
    for position in positions:
        reader = readers.get(position.node)
        if reader is not None:
            indexes = (position.intent, *(() if position.outcome is None else (position.outcome,)))
            found[position.node].update(_at(reader, indexes, wanted))
    # Only the last and longest search is spared because an index says that a side is on another node.
    elsewhere = {(p.execution, p.side) for p in positions if p.node not in readers}
    for search, excused in ((_around, set()), (_everywhere, elsewhere)):
        if _complete(found, wanted, excused):
            break
        for node, reader in readers.items():
            found[node].update(search(reader, wanted))
    return found


def _complete(found: Records, wanted: Collection[bytes], elsewhere: Collection[tuple[bytes, Side]]) -> bool:
    """Whether both sides of each execution are there with their outcomes, as far as they must be."""
    records = [record for by_index in found.values() for _, record in by_index.values()]
    intents = {(r.execution_id, r.side): r for r in records if isinstance(r, Intent)}
    ended = {(r.execution_id, r.side) for r in records if isinstance(r, Outcome)}
    for execution in wanted:
        sides = {side: intents.get((execution, side)) for side in Side}
        if not any(sides.values()) and not any((execution, side) in elsewhere for side in Side):
            return False
        for side, intent in sides.items():
            if intent is None or not intent.allowed:
                continue
            if (execution, side) not in ended:
                return False
            # without a permit each side has an id of its own, and nothing says which belong together
            other = execution, Side.INBOUND if side is Side.OUTBOUND else Side.OUTBOUND
            if intent.permit_sha256 and other not in intents and other not in elsewhere:
                return False
    return True


def _at(
    reader: Ledger, indexes: Sequence[int], wanted: Collection[bytes]
) -> Iterator[tuple[int, tuple[bytes, Record]]]:
    for index in indexes:
        if 0 <= index < reader.size:
            try:
                data = reader.record(index)
                record = parse_record(data)
            except (EvidenceError, InputError):
                continue  # a false hint, or damage that a search will name
            if record.execution_id in wanted:
                yield index, (data, record)


def _around(reader: Ledger, wanted: Collection[bytes]) -> Iterator[tuple[int, tuple[bytes, Record]]]:
    """Read from a minute before each execution began until it has ended, or a minute after when it is not there."""
    for execution in wanted:
        began_ms = int.from_bytes(execution[:6])
        start = _first_at(reader, began_ms - _WINDOW_MS)
        open_sides: set[Side] = set()
        for index, data in _read(reader, start):
            record = _record_of(data, wanted)
            if record is not None:
                yield index, (data, record)
                if record.execution_id == execution:
                    (open_sides.add if _is_open(record) else open_sides.discard)(record.side)
            elif not open_sides and _wall_ms(data) > began_ms + _WINDOW_MS:
                break


def _is_open(record: Record) -> bool:
    return isinstance(record, Intent) and record.allowed


def _first_at(reader: Ledger, wall_ms: int) -> int:
    """Return the first record that was written at `wall_ms` or later, if the node's clock never went back."""
    low, high = 0, reader.size
    while low < high:
        middle = (low + high) // 2
        try:
            early = parse_record(reader.record(middle)).wall_ms < wall_ms
        except InputError:
            early = True  # archived, and the archive is not here: what is here is later
        except EvidenceError:
            return 0  # damaged: whoever reads on from the beginning names the place
        low, high = (middle + 1, high) if early else (low, middle)
    return low


def _read(reader: Ledger, start: int) -> Iterator[tuple[int, bytes]]:
    try:
        for frame in reader.scan(start):
            yield frame.index, frame.record
    except EvidenceError:
        return  # the search of the whole ledger names it, if it comes to that


def _wall_ms(data: bytes) -> int:
    return parse_record(data).wall_ms


def _record_of(data: bytes, wanted: Collection[bytes]) -> Record | None:
    if not any(execution in data for execution in wanted):
        return None  # nearly always, and much faster than reading what it says
    record = parse_record(data)
    return record if record.execution_id in wanted else None


def _everywhere(reader: Ledger, wanted: Collection[bytes]) -> Iterator[tuple[int, tuple[bytes, Record]]]:
    try:
        for frame in reader.scan():
            record = _record_of(frame.record, wanted)
            if record is not None:
                yield frame.index, (frame.record, record)
    except EvidenceError as error:
        if "is missing from" in error.detail:
            raise InputError(
                Reason.NOT_FOUND,
                f"{error.detail}; if it was archived, name the archive: --archive NODE=PLACE",
            ) from None
        raise
