"""Which executions an operator asks for, and which records the index takes: bounds, cursors, order."""

import base64
import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from trust import limits
from trust.errors import CapacityError, EvidenceError, InputError, Reason, StateError
from trust.record import Intent, Outcome, parse_record
from trust.spiffe import SpiffeId, check_name

DEFAULT_PAGE: Final = 100
MAX_INDEX: Final = 2**62
_CURSOR = re.compile(r"([0-9]{1,19})-([0-9]{1,19})\Z")
# A ledger's name is shown to people and part of a key: printable ASCII without spaces.
_LEDGER = re.compile(rf"[!-~]{{1,{limits.MAX_LEDGER_NAME_BYTES}}}\Z")


@enum.unique
class Decided(enum.StrEnum):
    """What the filter `decision` may ask for."""

    ALLOWED = "allowed"
    DENIED = "denied"
    WOULD_DENY = "would-deny"  # went on, but level 4 would have refused it


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of a page: the next page holds what is older."""

    at_ms: int
    row: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote.

        Raises:
            InputError: INPUT_INVALID.
        """
        try:
            found = _CURSOR.match(base64.urlsafe_b64decode(text.encode("ascii")).decode("ascii"))
        except ValueError:
            found = None
        cursor = None if found is None else cls(int(found[1]), int(found[2]))
        if cursor is None or str(cursor) != text or max(cursor.at_ms, cursor.row) >= 2**63:
            raise InputError(
                Reason.INPUT_INVALID, "not a cursor of ours; leave it out to start from the newest"
            )
        return cursor

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.at_ms}-{self.row}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Query:
    """One page of executions, newest first. Empty and None mean any; `limit` is 1 to MAX_EXECUTIONS_PAGE."""

    limit: int = DEFAULT_PAGE
    cursor: Cursor | None = None
    caller: str = ""
    service: str = ""
    method: str = ""
    decision: Decided | None = None
    reason: str = ""
    node: str = ""
    since_ms: int = 0  # inclusive
    until_ms: int = 0  # exclusive; 0: no end

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= limits.MAX_EXECUTIONS_PAGE:
            raise InputError(
                Reason.INPUT_INVALID, f"limit is 1 to {limits.MAX_EXECUTIONS_PAGE}, not {self.limit}"
            )
        if self.since_ms < 0 or self.until_ms < 0:
            raise InputError(Reason.INPUT_INVALID, "since and until are not before 1970")
        texts = (self.caller, self.service, self.method, self.reason, self.node)
        if any("\0" in text or len(text) > limits.MAX_RECORD_NAME_BYTES for text in texts):
            raise InputError(Reason.INPUT_INVALID, "a filter holds a NUL character or is too long")


def parse_decision(text: str) -> Decided | None:
    """Return the filter that `text` names; None when it is empty.

    Raises:
        InputError: INPUT_INVALID, naming those there are.
    """
    if not text:
        return None
    try:
        return Decided(text)
    except ValueError:
        raise InputError(
            Reason.INPUT_INVALID, f"no decision {text[:40]!r}; there are: {', '.join(Decided)}"
        ) from None


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one ledger, one after the other from `first_index`; `raw` and `parsed` in the same order."""

    node: str
    ledger: str
    first_index: int
    raw: tuple[bytes, ...]
    parsed: tuple[Intent | Outcome, ...]
    after_gap: bool

    @property
    def end(self) -> int:
        """The index after the last record."""
        return self.first_index + len(self.raw)


def check_ledger(caller: SpiffeId, node: str, ledger: str) -> None:
    """Decide whether `caller` may speak of `ledger` of `node`: only a node, only of its own.

    Raises:
        EvidenceError: NOT_AUTHORIZED, or IDENTITY_INVALID for a node whose name is none of ours.
        InputError: INPUT_INVALID.
    """
    if caller.kind != "node" or caller.name != node:
        raise EvidenceError(
            Reason.NOT_AUTHORIZED, f"{caller} may ship records of {caller.name!r} only, not of {node[:80]!r}"
        )
    check_name(node)
    if not _LEDGER.match(ledger):
        raise InputError(
            Reason.INPUT_INVALID,
            f"a ledger's name has 1 to {limits.MAX_LEDGER_NAME_BYTES} printable ASCII characters",
        )


def check_batch(
    caller: SpiffeId, *, node: str, ledger: str, first_index: int, records: Sequence[bytes], after_gap: bool
) -> Batch:
    """Return a batch whose every record is well-formed and of the node that ships it.

    Raises:
        EvidenceError: NOT_AUTHORIZED, for records of another node; RECORD_MALFORMED, naming the index.
        CapacityError: LIMIT_EXCEEDED.
        InputError: INPUT_INVALID.
    """
    check_ledger(caller, node, ledger)
    size = sum(map(len, records))
    if len(records) > limits.MAX_SHIP_BATCH_RECORDS or size > limits.MAX_SHIP_BATCH_BYTES:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED,
            f"{len(records)} records of {size} bytes in one message; at most "
            f"{limits.MAX_SHIP_BATCH_RECORDS} of {limits.MAX_SHIP_BATCH_BYTES} bytes",
        )
    if not records or not 0 <= first_index < MAX_INDEX:
        raise InputError(Reason.INPUT_INVALID, "a batch has records, and their index is 0 or more")
    parsed = []
    for index, data in enumerate(records, first_index):
        try:
            record = parse_record(data)
        except EvidenceError as error:
            raise EvidenceError(error.reason, f"record {index} of {node}: {error.detail}") from None
        if record.node != node:
            raise EvidenceError(
                Reason.NOT_AUTHORIZED, f"record {index} shipped by {node} is of node {record.node!r}"
            )
        parsed.append(record)
    return Batch(node, ledger, first_index, tuple(records), tuple(parsed), after_gap)


def new_records(batch: Batch, next_index: int) -> int:
    """Return how many records at the front of `batch` the index has already; the rest continues it.

    Raises:
        StateError: CONFLICT, when records before the batch are missing.
    """
    if batch.first_index > next_index and not batch.after_gap:
        raise StateError(
            Reason.CONFLICT, f"records {next_index} to {batch.first_index - 1} of {batch.node} are missing"
        )
    return min(max(next_index - batch.first_index, 0), len(batch.raw))
