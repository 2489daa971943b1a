"""What a batch of records adds to the index: (records, standing, executions that began) -> rows, sums, events.

Each record is looked at once, here: what the index stores, what analytics add up and what detection looks at all come
from the same pass over it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from control_plane.core.analytics import Key, key_of
from control_plane.core.executions import Batch
from control_plane.core.findings import Decided, Ended, Event, Evidence
from control_plane.core.standing import Serves, Standing, Weight, foreign_text
from trust.record import Intent, Outcome, Side

Place = tuple[str, bytes, int]  # node, execution id, side


@dataclass(frozen=True, slots=True)
class Begun:
    """An execution that began: whose sums it counts in, and what its record counts for."""

    key: Key
    weight: Weight


class Ending(NamedTuple):
    """An outcome whose intent came in an earlier batch: what the index adds to that execution's row."""

    outcome_index: int
    outcome_bytes: int
    node: str
    execution_id: bytes
    side: int
    ledger_id: int


@dataclass(slots=True)
class Taken:
    """What one batch adds."""

    batch: Batch
    held: int  # records at its front that were here before
    ledger_id: int
    records: list[tuple[int, int, bytes]] = field(default_factory=list)
    executions: list[list[Any]] = field(default_factory=list)  # in the order of EXECUTION_COLUMNS
    endings: list[Ending] = field(default_factory=list)
    begun: dict[Place, Begun] = field(default_factory=dict)
    counted: list[tuple[Intent | Outcome, Key]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The index of the first new record."""
        return self.batch.first_index + self.held


EXECUTION_COLUMNS = (
    "node",
    "execution_id",
    "side",
    "ledger_id",
    "root_id",
    "trace_id",
    "at_ms",
    "caller",
    "service",
    "method",
    "allowed",
    "would_deny",
    "reason",
    "intent_index",
    "intent_bytes",
    "outcome_index",
    "outcome_bytes",
    "counts",
)
_OUTCOME_INDEX = EXECUTION_COLUMNS.index("outcome_index")


def missing_intents(batch: Batch, held: int, known: Mapping[Place, Begun]) -> set[bytes]:
    """Return the ids of executions that new outcomes end and that neither the batch nor `known` began."""
    began: set[tuple[bytes, int]] = set()
    missing: set[bytes] = set()
    for record in batch.parsed[held:]:
        place = (record.execution_id, int(record.side))
        if isinstance(record, Intent):
            began.add(place)
        elif place not in began and (batch.node, *place) not in known:
            missing.add(record.execution_id)
    return missing


def take(
    batch: Batch,
    held: int,
    ledger_id: int,
    *,
    standing: Standing,
    serves: Serves,
    known: Mapping[Place, Begun],
    events: bool,
) -> Taken:
    """Return what the records of `batch` after the first `held` add.

    Args:
        batch: checked.
        held: how many records at its front the index has.
        ledger_id: of its ledger.
        standing: of its node.
        serves: who may serve a service by the policy in force.
        known: executions that began in earlier batches, at least those of `missing_intents`.
        events: whether somebody looks at events.
    """
    taken = Taken(batch, held, ledger_id)
    here: dict[tuple[bytes, int], list[Any]] = {}  # the first intent of each execution of this batch
    for index, record, raw in zip(
        range(taken.first, batch.end), batch.parsed[held:], batch.raw[held:], strict=True
    ):
        taken.records.append((ledger_id, index, raw))
        place: Place = (batch.node, record.execution_id, int(record.side))
        if isinstance(record, Intent):
            begun = Begun(
                key_of(record),
                standing.weigh(record, serves),
            )
            row = _row(record, index, len(raw), ledger_id, begun.weight)
            taken.executions.append(row)
            here.setdefault(place[1:], row)
            taken.begun.setdefault(place, begun)
        else:
            own = here.get(place[1:])
            if own is None:
                taken.endings.append(Ending(index, len(raw), *place, ledger_id))
            elif own[_OUTCOME_INDEX] is None:
                own[_OUTCOME_INDEX : _OUTCOME_INDEX + 2] = index, len(raw)
            found = taken.begun.get(place) or known.get(place)
            if found is None:
                continue  # its intent left the index before it came
            begun = found
        if begun.weight is Weight.COUNTS:
            taken.counted.append((record, begun.key))
        if events and (event := event_of(batch.node, batch.ledger, index, record, begun)) is not None:
            taken.events.append(event)
    return taken


def event_of(node: str, ledger: str, index: int, record: Intent | Outcome, begun: Begun) -> Event | None:
    """Return a record as detection looks at it; None for what it concludes nothing from."""
    evidence = Evidence(node, ledger, index, record.execution_id)
    key = begun.key
    if isinstance(record, Intent):
        if begun.weight is Weight.NOTHING:
            return None
        return Decided(
            evidence,
            record.wall_ms,
            record.side,
            record.caller,
            record.service,
            record.method,
            record.allowed,
            record.reason,
            record.would_deny,
            record.parent_id if record.side is Side.OUTBOUND else b"",
            foreign_text(record) if begun.weight is Weight.FOREIGN else "",
        )
    if begun.weight is not Weight.COUNTS:
        return None
    return Ended(
        evidence,
        record.wall_ms,
        record.side,
        key.caller,
        key.service,
        key.method,
        record.status,
        record.duration_us,
        record.request_bytes,
        record.response_bytes,
    )


def _row(r: Intent, index: int, size: int, ledger_id: int, weight: Weight) -> list[Any]:
    return [
        r.node,
        r.execution_id,
        int(r.side),
        ledger_id,
        r.root_id,
        r.trace_id or None,
        r.wall_ms,
        r.caller,
        r.service,
        r.method,
        int(r.allowed),
        int(bool(r.would_deny)),
        r.reason,
        index,
        size,
        None,
        0,
        int(weight),
    ]


def records_of(taken: Sequence[Taken]) -> int:
    """Return how many new records there are."""
    return sum(len(one.records) for one in taken)
