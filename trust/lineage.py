"""How executions hang together: records of many nodes in, one tree out, with what supports each hop.

The records are claims of the nodes that wrote them. A hop is `verified` when a node says that it verified the permit
naming the parent, and `CONTRADICTED` when two records about it cannot both be true; proof is in the ledgers.
Any records give a tree: cycles are cut, orphans are kept, and the work is linear in the number of records.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trust.errors import EvidenceError
from trust.execution import id_text
from trust.record import Intent, Link, Outcome, Side
from trust.record_rules import trace_of
from trust.spiffe import SpiffeId

_COMPARED: Final = ("caller", "service", "method", "request_sha256", "permit_sha256")


@dataclass(frozen=True, slots=True)
class Seen:
    """One side of one execution, as one node recorded it; `outcome` is None while none is known."""

    intent: Intent
    outcome: Outcome | None = None
    ledger: str = ""
    intent_index: int = 0
    outcome_index: int | None = None


@enum.unique
class Mark(enum.StrEnum):
    """What connects a hop with the one above it."""

    ROOT = "root"  # nobody claims a parent
    VERIFIED = "verified"
    UNVERIFIED = "unverified"  # by traceparent
    ORPHAN = "parent missing"  # it names a parent that no record here is of
    CYCLE = "cycle"  # its parents lead back to itself


@dataclass(frozen=True, slots=True)
class Hop:
    """One execution and where it stands in the tree. `sides` is the caller's first, then the callee's."""

    execution_id: bytes
    sides: tuple[Seen, ...]
    mark: Mark = Mark.ROOT
    parent_id: bytes | None = None  # of the hop above, when it is in the tree
    depth: int = 0
    problems: tuple[str, ...] = ()

    @property
    def first(self) -> Intent:
        """The record that says who called what."""
        return self.sides[0].intent

    @property
    def refused_by(self) -> Intent | None:
        """The record of the side that refused it."""
        return next((seen.intent for seen in self.sides if not seen.intent.allowed), None)

    @property
    def reason(self) -> str:
        """Why it was refused, or may go on."""
        return (self.refused_by or self.first).reason

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, from the caller's side where known."""
        return next((seen.outcome for seen in self.sides if seen.outcome is not None), None)

    @property
    def status(self) -> str:
        """A gRPC status name, INTERRUPTED, REFUSED, or OPEN."""
        if self.sides[0].outcome is None and not self.first.allowed:
            return "REFUSED"
        ended = self.outcome
        return "OPEN" if ended is None else ended.status or "INTERRUPTED"

    @property
    def duration_ms(self) -> float | None:
        """How long it took, as the caller's side saw it where known; None when nobody knows."""
        ended = self.outcome
        return None if ended is None or not ended.status else ended.duration_us / 1000

    @property
    def witnesses(self) -> str:
        """Which sides recorded it, or that they contradict each other."""
        if self.problems:
            return "CONTRADICTED"
        sides = {seen.intent.side for seen in self.sides}
        if len(sides) == 2:
            return "both sides"
        return "caller side only" if Side.OUTBOUND in sides else "callee side only"


@dataclass(frozen=True, slots=True)
class Tree:
    """Every hop in the order in which a reader goes through it: each before those below it."""

    root_id: bytes
    hops: tuple[Hop, ...]
    truncated: bool = False  # there were more records than were asked for

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that recorded something, sorted."""
        return tuple(sorted({seen.intent.node for hop in self.hops for seen in hop.sides}))


def build_tree(seen: Iterable[Seen], root_id: bytes, *, truncated: bool = False) -> Tree:
    """Return the tree of the records `seen`, in any order; never fails.

    Args:
        seen: at most some ten thousand, of one chain or one trace.
        root_id: comes first, if it is among them.
        truncated: more exist; a parent may be missing for that reason alone.
    """
    grouped: dict[bytes, list[Seen]] = {}
    for one in seen:
        grouped.setdefault(one.intent.execution_id, []).append(one)
    sides = {key: tuple(sorted(found, key=_side_order)) for key, found in grouped.items()}
    parents = _Parents(sides)
    links = {key: parents.of(found) for key, found in sides.items()}
    below: dict[bytes | None, list[bytes]] = {}
    for key, (parent, _, _) in links.items():
        below.setdefault(parent, []).append(key)

    def when(key: bytes) -> tuple[bool, int, bytes]:
        return key != root_id, sides[key][0].intent.wall_ms, key

    for children in below.values():
        children.sort(key=when)
    hops: list[Hop] = []
    placed: set[bytes] = set()

    def place(top: bytes, *, cut: bool) -> None:
        stack = [(top, 0)]
        while stack:
            key, depth = stack.pop()
            if key in placed:
                continue
            placed.add(key)
            parent, mark, problems = links[key]
            if cut and key == top:
                parent, mark = None, Mark.CYCLE
            hops.append(Hop(key, sides[key], mark, parent, depth, problems))
            stack += [(child, depth + 1) for child in reversed(below.get(key, ()))]

    for key in below.get(None, ()):
        place(key, cut=False)
    for key in sorted(sides.keys() - placed, key=when):
        if key not in placed:
            place(key, cut=True)
    return Tree(root_id, tuple(hops), truncated)


class _Parents:
    """Finds the execution that each one names as its parent."""

    def __init__(self, sides: Mapping[bytes, Sequence[Seen]]) -> None:
        self._sides = sides
        self._by_permit: dict[bytes, bytes] = {}
        self._by_span: dict[tuple[bytes, bytes], bytes] = {}
        for key, found in sides.items():
            for one in found:
                if one.intent.permit_sha256:
                    self._by_permit.setdefault(one.intent.permit_sha256, key)
                if one.intent.span_id and one.intent.trace_id:
                    self._by_span.setdefault((one.intent.trace_id, one.intent.span_id), key)

    def of(self, found: Sequence[Seen]) -> tuple[bytes | None, Mark, tuple[str, ...]]:
        """Return (parent in the tree, mark, problems) of one execution; the strongest link counts."""
        problems = _contradictions(found)
        strongest = max((one.intent for one in found), key=lambda i: (i.link, bool(i.parent_id)))
        if strongest.link is Link.NONE:
            return None, Mark.ROOT, problems
        verified = strongest.link is Link.VERIFIED
        parent = self._named(strongest) if verified else self._traced(strongest)
        if parent is None or parent == strongest.execution_id:
            return None, Mark.ORPHAN if verified else Mark.UNVERIFIED, problems
        if verified and strongest.parent_permit_sha256:
            permits = {one.intent.permit_sha256 for one in self._sides[parent]} - {b""}
            if permits and strongest.parent_permit_sha256 not in permits:
                problems = (*problems, "it names another permit than its parent executed under")
        return parent, Mark.VERIFIED if verified else Mark.UNVERIFIED, problems

    def _named(self, intent: Intent) -> bytes | None:
        if intent.parent_id in self._sides:
            return intent.parent_id
        return None if intent.parent_id else self._by_permit.get(intent.parent_permit_sha256)

    def _traced(self, intent: Intent) -> bytes | None:
        if intent.parent_id in self._sides:
            return intent.parent_id
        return self._by_span.get(trace_of(intent.traceparent))


def _side_order(seen: Seen) -> tuple[int, str, int]:
    return seen.intent.side, seen.intent.node, seen.intent_index


def _contradictions(found: Sequence[Seen]) -> tuple[str, ...]:
    problems = []
    for side in Side:
        nodes = [one.intent.node for one in found if one.intent.side is side]
        if len(nodes) > 1:
            problems.append(f"{' and '.join(nodes)} both claim to be the {side.name.lower()} side")
    first = found[0].intent
    for other in (one.intent for one in found[1:]):
        for name in _COMPARED:
            one_value, other_value = getattr(first, name), getattr(other, name)
            # a refusal has no permit, a stream bound by its method alone no digest: absence is no claim
            if one_value and other_value and one_value != other_value:
                problems.append(f"{first.node} and {other.node} recorded different values of {name}")
    roots = {one.intent.root_id for one in found if one.intent.link is Link.VERIFIED}
    if len(roots) > 1:
        problems.append("its records name different roots")
    return tuple(problems)


def short_names(tree: Tree) -> Mapping[str, str]:
    """Return how to show each caller: the workload's name alone while all are of one trust domain."""
    callers = {seen.intent.caller for hop in tree.hops for seen in hop.sides if seen.intent.caller}
    parsed = {text: SpiffeId.parse(text) for text in callers if _is_spiffe_id(text)}
    one_domain = len(parsed) == len(callers) and len({found.trust_domain for found in parsed.values()}) == 1
    return {
        text: parsed[text].name if one_domain and parsed[text].kind == "workload" else text
        for text in callers
    } | {"": "(nobody identified)"}


def _is_spiffe_id(text: str) -> bool:
    try:
        SpiffeId.parse(text)
    except EvidenceError:
        return False
    return True


def title(hop: Hop, names: Mapping[str, str]) -> str:
    """Return who calls what, in one line."""
    return f"{names.get(hop.first.caller, hop.first.caller)} → {hop.first.service}  {hop.first.method}"


def facts(hop: Hop) -> str:
    """Return decision, ending and duration, in one line."""
    duration = "" if hop.duration_ms is None else f"  {hop.duration_ms:.1f} ms"
    refused = hop.refused_by
    decided = f"{hop.reason} by {refused.node}" if refused is not None else hop.reason
    return f"{decided}  {hop.status}{duration}"


def standing(hop: Hop) -> str:
    """Return what supports the hop, in one line."""
    return ", ".join([hop.mark.value, hop.witnesses, *hop.problems])


def to_json(tree: Tree) -> dict[str, object]:
    """Return the tree as JSON values; hops in reading order, each naming its parent."""
    return {
        "root": id_text(tree.root_id),
        "truncated": tree.truncated,
        "nodes": list(tree.nodes),
        "hops": [hop_json(hop) for hop in tree.hops],
    }


def hop_json(hop: Hop) -> dict[str, object]:
    """Return one hop as JSON values."""
    first = hop.first
    return {
        "id": id_text(hop.execution_id),
        "parent": None if hop.parent_id is None else id_text(hop.parent_id),
        "depth": hop.depth,
        "mark": hop.mark.value,
        "witnesses": hop.witnesses,
        "problems": list(hop.problems),
        "caller": first.caller,
        "service": first.service,
        "method": first.method,
        "allowed": hop.refused_by is None,
        "reason": hop.reason,
        "status": hop.status,
        "duration_ms": hop.duration_ms,
        "nodes": [seen.intent.node for seen in hop.sides],
        "at_ms": first.wall_ms,
        "permit_sha256": first.permit_sha256.hex(),
    }
