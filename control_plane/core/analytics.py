"""Which sums are kept of executions, and what they say: who calls what, how often, how long, how it fails.

Every record adds to a few counters of its key (node, side, caller, service, method) in time buckets of a minute, an
hour and a day. A call counts in the bucket in which it began; how it ended, its duration and its bytes count in that in
which it ended. Counters only ever grow, so sums of sums are exact, in any order and from any number of control planes.

Durations are kept in logarithmic buckets, `LATENCY_STEPS_PER_DOUBLING` per doubling: a quantile is within 9 percent of
the true one, however many calls there were, and two histograms merge by addition.
"""

import enum
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from trust import limits
from trust.errors import InputError, Reason
from trust.record import Ending, Intent, Outcome, Side

LATENCY_STEPS_PER_DOUBLING: Final = 4
_MAX_LATENCY_STEP: Final = 4 * 42  # about 50 days in microseconds
OTHER: Final = "(other)"  # stands for what is beyond a node's room for keys
INTERRUPTED: Final = "INTERRUPTED"  # the status of a call whose end nobody saw
OK: Final = "OK"
MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86_400
# resolution -> how long its buckets are kept
RETENTION_S: Final[Mapping[int, int]] = {
    MINUTE_S: limits.ANALYTICS_MINUTES_KEPT_S,
    HOUR_S: limits.ANALYTICS_HOURS_KEPT_S,
    DAY_S: limits.ANALYTICS_DAYS_KEPT_S,
}


@enum.unique
class Measure(enum.IntEnum):
    """What a counter counts; the numbers are in the store and never reused."""

    CALLS = 1
    REFUSED = 2  # by reason
    WOULD_DENY = 3  # by reason
    ENDED = 4  # by gRPC status
    LATENCY = 5  # by step
    DURATION_US = 6
    REQUEST_BYTES = 7
    RESPONSE_BYTES = 8


@enum.unique
class By(enum.StrEnum):
    """What a summary is grouped by."""

    CALLER = "caller"
    SERVICE = "service"
    METHOD = "method"
    EDGE = "edge"  # caller, service and method
    NODE = "node"  # what each node recorded: an execution that two nodes recorded is in both


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Whose sums. `caller` is a SPIFFE ID, empty for nobody identified."""

    node: str
    side: Side
    caller: str
    service: str
    method: str

    @property
    def digest(self) -> bytes:
        """SHA-256 by which the store finds it."""
        parts = (self.node, str(int(self.side)), self.caller, self.service, self.method)
        return hashlib.sha256("\0".join(parts).encode()).digest()

    def other(self) -> "Key":
        """Return the key of this node and side that stands for those it has no room for."""
        return Key(self.node, self.side, OTHER, OTHER, OTHER)


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """Who calls which method of which service."""

    caller: str
    service: str
    method: str


@dataclass(slots=True)
class Totals:
    """Sums over some keys and some time."""

    calls: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    would_deny: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    latency: Counter[int] = field(default_factory=Counter)
    duration_us: int = 0
    request_bytes: int = 0
    response_bytes: int = 0

    @property
    def allowed(self) -> int:
        """Calls that were forwarded."""
        return max(0, self.calls - self.refused.total())

    @property
    def errors(self) -> int:
        """Calls that ended in another status than OK."""
        return self.ended.total() - self.ended[OK]

    def add(self, measure: int, label: str, count: int) -> None:
        """Add one counter."""
        match measure:
            case Measure.CALLS:
                self.calls += count
            case Measure.REFUSED:
                self.refused[label] += count
            case Measure.WOULD_DENY:
                self.would_deny[label] += count
            case Measure.ENDED:
                self.ended[label] += count
            case Measure.LATENCY:
                self.latency[int(label)] += count
            case Measure.DURATION_US:
                self.duration_us += count
            case Measure.REQUEST_BYTES:
                self.request_bytes += count
            case Measure.RESPONSE_BYTES:
                self.response_bytes += count

    def merge(self, other: "Totals") -> None:
        """Add all of `other`."""
        self.calls += other.calls
        self.refused += other.refused
        self.would_deny += other.would_deny
        self.ended += other.ended
        self.latency += other.latency
        self.duration_us += other.duration_us
        self.request_bytes += other.request_bytes
        self.response_bytes += other.response_bytes

    def quantile_ms(self, share: float) -> float:
        """Return the duration that `share` of the calls that ended took at most, in ms; 0 when none ended.

        Args:
            share: 0 < share <= 1; 0.95 for the 95th percentile.
        """
        rank = math.ceil(share * self.latency.total())
        for step in sorted(self.latency):
            rank -= self.latency[step]
            if rank <= 0:
                return step_middle_us(step) / 1000
        return 0.0


def latency_step(duration_us: int) -> int:
    """Return the bucket of a duration: 0 up to 1 microsecond, then LATENCY_STEPS_PER_DOUBLING per doubling."""
    if duration_us <= 1:
        return 0
    return min(_MAX_LATENCY_STEP, 1 + math.floor(math.log2(duration_us) * LATENCY_STEPS_PER_DOUBLING))


def step_middle_us(step: int) -> float:
    """Return the geometric middle of a bucket, in microseconds: at most 9.1 percent from any duration in it."""
    return 1.0 if step == 0 else 2 ** ((step - 0.5) / LATENCY_STEPS_PER_DOUBLING)


Delta = tuple[int, int, Key, int, str]  # resolution_s, bucket_s, key, measure, label


def deltas(records: Iterable[tuple[Intent | Outcome, Key]], *, now_ms: int) -> Counter[Delta]:
    """Return what new records add to which counter.

    A time in the future, which only a wrong clock writes, counts as now; what is older than a resolution is kept adds
    nothing to it. No sum is larger than MAX_ANALYTICS_COUNT, whatever a node records.

    Args:
        records: each taken for the first time, with the key of its execution.
        now_ms: Unix ms.
    """
    now_s = now_ms // 1000
    minutes: dict[tuple[int, Key], dict[tuple[int, str], int]] = {}
    for record, key in records:
        at_s = min(record.wall_ms // 1000, now_s)
        place = (at_s - at_s % MINUTE_S, key)
        sums = minutes.get(place)
        if sums is None:
            sums = minutes[place] = {}
        for part, count in _of_intent(record) if isinstance(record, Intent) else _of_outcome(record):
            sums[part] = sums.get(part, 0) + count
    found: Counter[Delta] = Counter()
    for (minute, key), sums in minutes.items():
        for resolution, kept_s in RETENTION_S.items():
            bucket = minute - minute % resolution
            if bucket >= now_s - kept_s:
                for (measure, label), count in sums.items():
                    if count:
                        delta = (resolution, bucket, key, measure, label)
                        found[delta] = min(found[delta] + count, limits.MAX_ANALYTICS_COUNT)
    return found


def key_of(intent: Intent) -> Key:
    """Return the key under which an execution counts."""
    return Key(intent.node, intent.side, intent.caller, intent.service, intent.method)


_CALL: Final = ((int(Measure.CALLS), ""), 1)


def _of_intent(record: Intent) -> list[tuple[tuple[int, str], int]]:
    if not record.allowed:
        return [_CALL, ((int(Measure.REFUSED), record.reason), 1)]
    if record.would_deny:
        return [_CALL, ((int(Measure.WOULD_DENY), record.would_deny), 1)]
    return [_CALL]


def _of_outcome(record: Outcome) -> list[tuple[tuple[int, str], int]]:
    found = [
        ((int(Measure.ENDED), record.status or INTERRUPTED), 1),
        ((int(Measure.REQUEST_BYTES), ""), record.request_bytes),
        ((int(Measure.RESPONSE_BYTES), ""), record.response_bytes),
    ]
    if record.ending is not Ending.INTERRUPTED:  # how long that took nobody knows
        found += [
            ((int(Measure.LATENCY), str(latency_step(record.duration_us))), 1),
            ((int(Measure.DURATION_US), ""), record.duration_us),
        ]
    return found


def once(inbound: Totals | None, outbound: Totals | None) -> Totals:
    """Return the sums of one edge with every execution counted once, from what its two sides recorded.

    The callee's side counts; besides it, what never reached the callee: refusals of the caller's side, and calls that
    the caller's side forwarded beyond those that the callee's side has seen. Without a callee's side that records, the
    caller's side counts. (Below level 5 the two records of a call carry nothing in common, so this is decided for an
    edge over the whole time asked for, not call by call.)
    """
    if inbound is None or outbound is None:
        return inbound or outbound or Totals()
    merged = Totals()
    merged.merge(inbound)
    beyond = max(0, outbound.allowed - inbound.calls)
    merged.calls += outbound.refused.total() + beyond
    merged.refused += outbound.refused
    merged.would_deny |= outbound.would_deny  # both sides decide under the same policy: the larger of the two
    # Calls that ended at the caller's side alone, by status: those that the callee's side did not see end so.
    merged.ended += _first(outbound.ended - inbound.ended, beyond)
    # A few records of the callee's side (it began to record just now, or somebody made them up) must not stand for the
    # durations of all the others.
    if 2 * inbound.latency.total() < outbound.latency.total():
        merged.latency, merged.duration_us = outbound.latency, outbound.duration_us
        merged.request_bytes, merged.response_bytes = outbound.request_bytes, outbound.response_bytes
    return merged


def _kept_back(outbound: Totals) -> Totals:
    """Return what the caller's side did not forward, and what level 4 would not have."""
    return Totals(
        calls=outbound.refused.total(),
        refused=Counter(outbound.refused),
        would_deny=Counter(outbound.would_deny),
    )


def _first(counts: Counter[str], most: int) -> Counter[str]:
    """Return at most `most` of the counts, the largest first."""
    taken: Counter[str] = Counter()
    for label, count in counts.most_common():
        taken[label] = min(count, most)
        most -= taken[label]
    return +taken


def edges(by_key: Mapping[Key, Totals]) -> dict[Edge, Totals]:
    """Return the sums of every edge, each execution once.

    Whom the caller's sidecar could not identify, the callee's sees as the workload that the call was dialled for: there
    the call counts, here what was refused, or would have been.
    """
    sides: dict[Edge, dict[Side, Totals]] = defaultdict(dict)
    served: set[tuple[str, str]] = set()  # (service, method) whose callee's side records
    for key, totals in by_key.items():
        side = sides[Edge(key.caller, key.service, key.method)].setdefault(key.side, Totals())
        side.merge(totals)
        if key.side is Side.INBOUND:
            served.add((key.service, key.method))
    for edge, both in sides.items():
        if not edge.caller and (edge.service, edge.method) in served and Side.OUTBOUND in both:
            both[Side.OUTBOUND] = _kept_back(both[Side.OUTBOUND])
    return {edge: once(both.get(Side.INBOUND), both.get(Side.OUTBOUND)) for edge, both in sides.items()}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which edges; empty means any. A caller is a SPIFFE ID."""

    caller: str = ""
    service: str = ""
    method: str = ""

    def takes(self, edge: Edge | Key) -> bool:
        """Whether `edge` is meant."""
        pairs = ((self.caller, edge.caller), (self.service, edge.service), (self.method, edge.method))
        return all(wanted in {"", found} for wanted, found in pairs)


def summary(by_key: Mapping[Key, Totals], by: By, wanted: Filter) -> dict[tuple[str, str, str], Totals]:
    """Return the sums of each group, as (caller, service, method), or (node, side, "") by node."""
    groups: dict[tuple[str, str, str], Totals] = defaultdict(Totals)
    if by is By.NODE:
        for key, totals in by_key.items():
            if wanted.takes(key):
                groups[key.node, key.side.name.lower(), ""].merge(totals)
        return dict(groups)
    for edge, totals in edges(by_key).items():
        if wanted.takes(edge):
            group = {
                By.CALLER: (edge.caller, "", ""),
                By.SERVICE: ("", edge.service, ""),
                By.METHOD: ("", edge.service, edge.method),
                By.EDGE: (edge.caller, edge.service, edge.method),
            }[by]
            groups[group].merge(totals)
    return dict(groups)


def windows(since_s: int, until_s: int, *, now_s: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Return what to read so that a query reads few buckets: (true start, [(resolution, from, to), …]), seconds.

    Hours are read for whole hours and days for whole days; the ragged ends in the next finer resolution. A start
    more than ANALYTICS_FINE_S before the end, or older than minutes are kept, is rounded down to the hour.

    Args:
        since_s: inclusive. until_s: exclusive, rounded up to the minute.
        now_s: Unix seconds.

    Raises:
        InputError: INPUT_INVALID, when there is no time between the two.
    """
    if since_s >= until_s:
        raise InputError(Reason.INPUT_INVALID, "since is not before until")
    fine = until_s - since_s <= limits.ANALYTICS_FINE_S and since_s > now_s - RETENTION_S[MINUTE_S] + DAY_S
    step = MINUTE_S if fine else HOUR_S
    start = since_s - since_s % step
    end = until_s + -until_s % step
    found: list[tuple[int, int, int]] = []
    _cut(start, end, [DAY_S, HOUR_S, MINUTE_S] if fine else [DAY_S, HOUR_S], found)
    return start, sorted(found, key=lambda part: part[1])


def _cut(start: int, end: int, steps: list[int], found: list[tuple[int, int, int]]) -> None:
    if start >= end:
        return
    step, *finer = steps
    first, last = start + -start % step, end - end % step
    if not finer:
        found.append((step, start, end))
    elif first < last:
        found.append((step, first, last))
        _cut(start, first, finer, found)
        _cut(last, end, finer, found)
    else:
        _cut(start, end, finer, found)


def caller_name(caller: str) -> str:
    """Return a caller as a person names it: a workload by its name, others by SPIFFE ID."""
    if not caller:
        return "(nobody identified)"
    prefix, found, name = caller.partition("/workload/")
    return name if found and prefix.startswith("spiffe://") and name else caller
