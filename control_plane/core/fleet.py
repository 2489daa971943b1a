"""What the control plane makes of nodes' reports: whose they may be, and which of them are changes worth keeping."""

from dataclasses import dataclass

from trust import limits
from trust.errors import CapacityError, EvidenceError, Reason
from trust.spiffe import SpiffeId


@dataclass(frozen=True, slots=True)
class Change:
    """The part of a report that is kept in a node's history."""

    state: str
    policy_version: int
    lease: str


def check_report(caller: SpiffeId, node: str, *, size_bytes: int) -> None:
    """Decide whether `caller` may report as `node`: only as itself, and only so much.

    Raises:
        EvidenceError: NOT_AUTHORIZED.
        CapacityError: LIMIT_EXCEEDED.
    """
    if caller.kind != "node" or caller.name != node:
        raise EvidenceError(
            Reason.NOT_AUTHORIZED, f"{caller} may report as {caller.name!r} only, not as {node[:80]!r}"
        )
    if size_bytes > limits.MAX_NODE_STATUS_BYTES:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED,
            f"the report has {size_bytes} bytes; at most {limits.MAX_NODE_STATUS_BYTES} are kept",
        )


def check_room(known: int, *, is_new: bool) -> None:
    """Refuse a node beyond the most that one control plane keeps.

    Raises:
        CapacityError: LIMIT_EXCEEDED.
    """
    if is_new and known >= limits.MAX_NODES:
        raise CapacityError(Reason.LIMIT_EXCEEDED, f"{known} nodes are known; at most {limits.MAX_NODES}")


def is_change(previous: Change | None, now: Change) -> bool:
    """Whether `now` belongs into the history after `previous`."""
    return previous != now
