"""What is usual for each caller and each kind of call: learned from executions, bounded, and kept across restarts.

Means and variances are river's (`stats.Var`, Welford's algorithm); what is old is forgotten by halving its weight. A
profile is plain numbers in JSON, never pickled: whoever writes to the database must not run code here.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

from river.stats import Var

from control_plane.core.shares import Shares
from trust import limits
from trust.errors import InputError, Reason

Edge = tuple[str, str, str]  # caller (SPIFFE ID), service, "package.Service/Method"

FORMAT: Final = 1
MEMORY: Final = 512.0  # values after which the weight of what was learned is halved
MIN_LEARNED: Final = 8  # values before a baseline says anything
_CLAMP: Final = 3.0  # standard deviations: one wild value cannot teach that wild is usual
HOURS: Final = 24
_HOUR_MS: Final = 3_600_000

K = TypeVar("K")
V = TypeVar("V")


class Baseline:
    """Mean and spread of one number."""

    __slots__ = ("_var",)

    def __init__(self, weight: float = 0.0, mean: float = 0.0, variance: float = 0.0) -> None:
        """Start with what was learned before: `weight` values of that mean and (population) variance."""
        self._var = Var(ddof=0)
        if weight:
            spread = math.sqrt(variance)
            self._var.update(mean - spread, weight / 2)
            self._var.update(mean + spread, weight / 2)

    @property
    def count(self) -> float:
        """How many values it rests on; older ones count less."""
        return self._var.n

    @property
    def mean(self) -> float:
        """The mean."""
        return self._var.mean.get()

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(max(self._var.get(), 0.0))

    @property
    def ready(self) -> bool:
        """Whether enough was learned to say what is unusual."""
        return self.count >= MIN_LEARNED

    def score(self, value: float, *, floor: float) -> float:
        """Return how many standard deviations `value` is off; a deviation counts as `floor` at least."""
        return (value - self.mean) / max(self.deviation, floor)

    def learn(self, value: float, *, floor: float) -> None:
        """Take one value in; what is far off is taken in as less far, so that a lasting change is learned slowly."""
        if self.ready:
            reach = _CLAMP * max(self.deviation, floor)
            value = min(max(value, self.mean - reach), self.mean + reach)
        self._var.update(value)
        if self.count > MEMORY:
            self._var = Baseline(MEMORY / 2, self.mean, max(self._var.get(), 0.0))._var

    def to_json(self) -> list[float]:
        """Return it as numbers."""
        return [self.count, self.mean, max(self._var.get(), 0.0)]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote. Raises ValueError or TypeError."""
        weight, mean, variance = (float(one) for one in value)
        if not all(map(math.isfinite, (weight, mean, variance))) or weight < 0 or variance < 0:
            raise ValueError("not a baseline")
        return cls(min(weight, MEMORY), mean, variance)


@dataclass(slots=True)
class EdgeProfile:
    """One kind of call by one caller. Rates are square roots of calls per window, latency and sizes logarithms."""

    last_ms: int
    rate: Baseline = field(default_factory=Baseline)
    hourly: dict[int, Baseline] = field(default_factory=dict)  # hour of the day, UTC -> rate in it
    latency: Baseline = field(default_factory=Baseline)  # of the mean in a window
    request: Baseline = field(default_factory=Baseline)
    response: Baseline = field(default_factory=Baseline)
    # the open window
    window_ms: int = 0
    calls: int = 0
    latency_sum: float = 0.0
    latency_count: int = 0

    def rate_baseline(self, at_ms: int) -> Baseline:
        """Return the baseline of that hour, or the one of all hours while the hour's is too young."""
        own = self.hourly.get(hour_of(at_ms))
        return own if own is not None and own.ready else self.rate

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "open": [self.window_ms, self.calls, self.latency_sum, self.latency_count],
            "last": self.last_ms,
            "rate": self.rate.to_json(),
            "hourly": {str(hour): one.to_json() for hour, one in self.hourly.items()},
            "latency": self.latency.to_json(),
            "request": self.request.to_json(),
            "response": self.response.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises ValueError, TypeError or KeyError."""
        window_ms, calls, latency_sum, latency_count = value["open"]
        return cls(
            window_ms=int(window_ms),
            calls=int(calls),
            latency_sum=float(latency_sum),
            latency_count=int(latency_count),
            last_ms=int(value["last"]),
            rate=Baseline.from_json(value["rate"]),
            hourly={int(hour) % HOURS: Baseline.from_json(one) for hour, one in value["hourly"].items()},
            latency=Baseline.from_json(value["latency"]),
            request=Baseline.from_json(value["request"]),
            response=Baseline.from_json(value["response"]),
        )


@dataclass(slots=True)
class CallerProfile:
    """One caller, over everything that it calls."""

    first_ms: int
    last_ms: int
    calls: int = 0
    refusals: Baseline = field(default_factory=Baseline)  # square root, per window with any
    fanout: Baseline = field(default_factory=Baseline)  # square root of kinds of calls per window
    depth: Baseline = field(default_factory=Baseline)
    hours: list[int] = field(default_factory=lambda: [0] * HOURS)  # days on which it called in that hour
    days: int = 0  # days on which it called
    last_hour: int = 0  # hours since 1970
    nodes: dict[str, int] = field(default_factory=dict)  # node -> last call from there, Unix ms
    # the open window
    window_ms: int = 0
    refused: int = 0
    kinds: set[tuple[str, str]] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "open": [self.window_ms, self.refused, sorted(self.kinds)],
            "first": self.first_ms,
            "last": self.last_ms,
            "calls": self.calls,
            "refusals": self.refusals.to_json(),
            "fanout": self.fanout.to_json(),
            "depth": self.depth.to_json(),
            "hours": self.hours,
            "days": self.days,
            "last_hour": self.last_hour,
            "nodes": self.nodes,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises ValueError, TypeError or KeyError."""
        hours = [int(days) for days in value["hours"]]
        if len(hours) != HOURS:
            raise ValueError("a day has 24 hours")
        window_ms, refused, kinds = value["open"]
        return cls(
            window_ms=int(window_ms),
            refused=int(refused),
            kinds={(str(service), str(method)) for service, method in kinds},
            first_ms=int(value["first"]),
            last_ms=int(value["last"]),
            calls=int(value["calls"]),
            refusals=Baseline.from_json(value["refusals"]),
            fanout=Baseline.from_json(value["fanout"]),
            depth=Baseline.from_json(value["depth"]),
            hours=hours,
            days=int(value["days"]),
            last_hour=int(value["last_hour"]),
            nodes={str(node): int(at) for node, at in value["nodes"].items()},
        )

    def note_hour(self, at_ms: int) -> None:
        """Count the hour of the day in which it calls, once a day."""
        hour = at_ms // _HOUR_MS
        if hour <= self.last_hour:
            return
        if hour // HOURS > self.last_hour // HOURS:
            self.days += 1
        self.hours[hour % HOURS] += 1
        self.last_hour = hour

    def note_node(self, node: str, at_ms: int) -> None:
        """Remember that it called from `node`; the node longest unused is forgotten when there are too many."""
        self.nodes[node] = max(at_ms, self.nodes.get(node, 0))
        if len(self.nodes) > limits.MAX_PROFILED_NODES_PER_CALLER:
            del self.nodes[min(self.nodes, key=lambda name: self.nodes[name])]


class Profiles:
    """Every profile; the longest silent one of the node that brought in most makes room for a new one."""

    def __init__(self) -> None:
        """Know nothing."""
        self.callers: dict[str, CallerProfile] = {}
        self.edges: dict[Edge, EdgeProfile] = {}
        self.inbound: dict[str, int] = {}  # service -> last execution that its own sidecar recorded, Unix ms
        self._caller_shares: Shares[str] = Shares()
        self._edge_shares: Shares[Edge] = Shares()
        self._inbound_shares: Shares[str] = Shares()
        self.depths: dict[bytes, int] = {}  # execution -> place in its chain; not kept

    def caller(self, name: str, at_ms: int, node: str) -> CallerProfile:
        """Return the profile of a caller, made if there is none; `node` recorded what it is asked for."""
        most, shares = limits.MAX_PROFILED_CALLERS, self._caller_shares
        return _recent(self.callers, shares, name, node, most=most, make=lambda: CallerProfile(at_ms, at_ms))

    def edge(self, edge: Edge, at_ms: int, node: str) -> EdgeProfile:
        """Return the profile of a kind of call, made if there is none."""
        most, shares = limits.MAX_PROFILED_EDGES, self._edge_shares
        return _recent(self.edges, shares, edge, node, most=most, make=lambda: EdgeProfile(at_ms))

    def note_inbound(self, service: str, at_ms: int, node: str) -> None:
        """Remember that the sidecar of `service` records what is executed there."""
        most, shares = limits.MAX_PROFILED_EDGES, self._inbound_shares
        _recent(self.inbound, shares, service, node, most=most, make=lambda: at_ms)
        self.inbound[service] = max(at_ms, self.inbound[service])

    def note_depth(self, execution_id: bytes, depth: int) -> None:
        """Remember the place of an execution in its chain."""
        self.depths[execution_id] = depth
        if len(self.depths) > limits.MAX_TRACKED_DEPTHS:
            del self.depths[next(iter(self.depths))]

    def to_json(self) -> dict[str, Any]:
        """Return everything that is kept, as JSON values."""
        return {
            "format": FORMAT,
            "callers": [
                [name, one.to_json() | {"node": self._caller_shares.owner(name)}]
                for name, one in self.callers.items()
            ],
            "edges": [
                [*edge, one.to_json() | {"node": self._edge_shares.owner(edge)}]
                for edge, one in self.edges.items()
            ],
            "inbound": [
                [service, at_ms, self._inbound_shares.owner(service)]
                for service, at_ms in self.inbound.items()
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote.

        Raises:
            InputError: INPUT_INVALID: another version wrote it, or it is damaged.
        """
        profiles = cls()
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}")
            for name, one in _newest(value["callers"], limits.MAX_PROFILED_CALLERS):
                profiles.callers[str(name)] = CallerProfile.from_json(one)
                profiles._caller_shares.touch(str(name), str(one.get("node", "")))
            for caller, service, method, one in _newest(value["edges"], limits.MAX_PROFILED_EDGES):
                edge = (str(caller), str(service), str(method))
                profiles.edges[edge] = EdgeProfile.from_json(one)
                profiles._edge_shares.touch(edge, str(one.get("node", "")))
            for service, at_ms, *node in _newest(value["inbound"], limits.MAX_PROFILED_EDGES):
                profiles.inbound[str(service)] = int(at_ms)
                profiles._inbound_shares.touch(str(service), str(node[0]) if node else "")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise InputError(Reason.INPUT_INVALID, f"what was learned cannot be read: {error}") from None
        return profiles


def hour_of(at_ms: int) -> int:
    """Return the hour of the day, UTC."""
    return at_ms // _HOUR_MS % HOURS


def _newest(items: Iterable[Any], most: int) -> list[Any]:
    return list(items)[-most:]


def _recent(held: dict[K, V], shares: Shares[K], key: K, node: str, *, most: int, make: Callable[[], V]) -> V:
    """Return `held[key]`, made if need be, as the youngest; another one goes when there are too many."""
    value = held.pop(key, None)
    if value is None:
        value = make()
        if len(held) >= most:
            del held[shares.victim()]
    held[key] = value
    shares.touch(key, node)
    return value
