"""What detection looks at, and what it finds: executions as nodes recorded them, and findings with their evidence."""

from dataclasses import dataclass
from typing import Any, Self

from trust.errors import EvidenceError
from trust.record import Side
from trust.spiffe import SpiffeId


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a finding can be checked: a record in a node's ledger, or (`note`) something else by its id."""

    node: str
    ledger: str = ""
    index: int = -1
    execution_id: bytes = b""
    note: str = ""

    def to_json(self) -> list[Any]:
        """Return it as JSON values."""
        return [self.node, self.ledger, self.index, self.execution_id.hex(), self.note]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote. Raises ValueError or TypeError."""
        node, ledger, index, execution_id, note = value
        return cls(str(node), str(ledger), int(index), bytes.fromhex(execution_id), str(note))


@dataclass(frozen=True, slots=True)
class Decided:
    """An execution that was asked for, as one of its two sidecars decided it."""

    evidence: Evidence
    at_ms: int
    side: Side
    caller: str  # SPIFFE ID; empty when not identified
    service: str
    method: str
    allowed: bool
    reason: str
    would_deny: str = ""
    parent_id: bytes = b""  # verified; empty when there is none
    # what it claims although its node has no standing for it (`control_plane.core.standing`)
    foreign: str = ""

    @property
    def refusal(self) -> str:
        """Why it was refused, or would have been; empty for what is in order."""
        return self.would_deny if self.allowed else self.reason


@dataclass(frozen=True, slots=True)
class Ended:
    """How an allowed execution ended."""

    evidence: Evidence
    at_ms: int
    side: Side
    caller: str
    service: str
    method: str
    status: str  # gRPC status code's name; empty when nobody knows
    duration_us: int
    request_bytes: int
    response_bytes: int


Event = Decided | Ended


@dataclass(frozen=True, slots=True)
class Finding:
    """Something out of order. One per rule, subject and window.

    `subject` is the SPIFFE ID of whom it is about; other text when nobody can be named, so that nobody is punished
    for what was done to him.
    """

    rule: str
    subject: str
    window_ms: int  # its beginning
    at_ms: int
    text: str
    evidence: tuple[Evidence, ...]
    alone: tuple[str, ...] = ()  # nodes each of whose records show it without those of any other
    part: str = ""  # the node that shows it, too, after it was found in this window

    @property
    def member(self) -> SpiffeId | None:
        """The workload or node that it is about; None when it is about nobody."""
        return member_of(self.subject)


def member_of(subject: str) -> SpiffeId | None:
    """Return the workload or node that a subject names; None when it is nobody."""
    try:
        found = SpiffeId.parse(subject)
    except EvidenceError:
        return None
    return found if found.kind in {"workload", "node"} else None


def window_of(at_ms: int, window_s: int) -> int:
    """Return the beginning of the window that a time falls into, Unix ms."""
    return at_ms - at_ms % (window_s * 1000)
