"""Ordinary traffic of a mesh, and attacks in it with labels: from a seed alone, the same on every machine.

Callers have their own hours and rates that follow the day; counts are overdispersed, latencies and sizes have long
tails, there are ordinary bursts, slow spells, a few refusals, and now and then a release that calls something new.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from control_plane.core.findings import Decided, Ended, Event, Evidence
from trust.record import Side

START_MS: Final = 1_790_000_000_000 // 86_400_000 * 86_400_000  # midnight, UTC
WINDOW_MS: Final = 300_000
DAY_MS: Final = 86_400_000
WINDOWS_A_DAY: Final = DAY_MS // WINDOW_MS
TD: Final = "mesh.test"


@dataclass(frozen=True, slots=True)
class Attack:
    """One labelled attack: any of `rules` about `subject` from `start_ms` to `end_ms` is a hit."""

    kind: str
    rules: frozenset[str]
    subject: str
    start_ms: int
    end_ms: int


@dataclass(slots=True)
class _Edge:
    service: str
    method: str
    rate: float  # calls per window at noon
    latency_us: float
    request: float
    response: float
    from_ms: int = 0  # a release brings it


@dataclass(slots=True)
class _Caller:
    id: str
    node: str
    hours: tuple[int, int]  # in which it works, UTC
    edges: list[_Edge] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to generate. Attacks begin after `quiet_days`, one after the other, each on a caller of its own time."""

    seed: int
    days: int = 10
    callers: int = 12
    quiet_days: int = 4
    attacks: int = 60
    rate: float = 12.0  # mean calls per window and kind of call at noon
    strength: float = 1.0  # of the attacks that are a matter of degree


def generate(what: Traffic) -> Iterator[tuple[list[Event], list[Attack], int]]:
    """Yield, window by window, events in the order of time, attacks that begin in it, and its ordinary calls."""
    world = _World(what)
    for window in range(what.days * WINDOWS_A_DAY):
        yield world.window(START_MS + window * WINDOW_MS)


class _World:
    def __init__(self, what: Traffic) -> None:
        self._random = random.Random(what.seed)
        self._strength = what.strength
        self._number = 0
        self.callers = [self._caller(number, what) for number in range(what.callers)]
        self._slow: dict[str, int] = {}  # service -> until when it is slow
        self._attacks = self._plan(what)

    def window(self, start_ms: int) -> tuple[list[Event], list[Attack], int]:
        """Return one window."""
        events: list[Event] = []
        hour = start_ms // 3_600_000 % 24
        for caller in self.callers:
            if caller.hours[0] <= hour < caller.hours[1]:
                for edge in caller.edges:
                    if edge.from_ms <= start_ms:
                        self._ordinary(caller, edge, start_ms, events)
        ordinary = sum(isinstance(event, Decided) for event in events)
        begun = []
        while self._attacks and self._attacks[0][0] < start_ms + WINDOW_MS:
            _, kind, caller = self._attacks.pop(0)
            begun.append(self._attack(kind, caller, start_ms, events))
        events.sort(key=lambda event: event.at_ms)
        return events, begun, ordinary

    def _caller(self, number: int, what: Traffic) -> _Caller:
        r = self._random
        hours = (0, 24) if number % 3 else (7 + number % 2, 18)
        caller = _Caller(f"spiffe://{TD}/workload/w{number}", f"n{number}", hours)
        for one in range(r.randint(2, 5)):
            caller.edges.append(
                _Edge(
                    f"s{r.randrange(6)}",
                    f"shop.S{number}/M{one}",
                    what.rate * r.lognormvariate(0, 0.8),
                    r.lognormvariate(math.log(3_000), 0.8),
                    r.lognormvariate(math.log(600), 0.9),
                    r.lognormvariate(math.log(2_000), 1.0),
                )
            )
        if number == 0:  # a rate can only be too low where it is worth the name
            caller.edges.append(_Edge("s1", "shop.Busy/M", 16 * what.rate, 2_000, 300, 900))
        # releases: about one caller in four calls something new once
        if number % 4 == 0:
            later = START_MS + r.randrange(what.quiet_days, what.days) * DAY_MS + r.randrange(DAY_MS)
            caller.edges.append(_Edge("s0", f"shop.New{number}/M", what.rate, 3_000, 500, 1_500, later))
        return caller

    def _plan(self, what: Traffic) -> list[tuple[int, str, _Caller]]:
        r = self._random
        first, last = START_MS + what.quiet_days * DAY_MS, START_MS + what.days * DAY_MS - 4 * WINDOW_MS
        busy = self.callers[:1]
        planned = []
        for number in range(what.attacks):
            kind = _KINDS[number % len(_KINDS)]
            office = [one for one in self.callers if one.hours != (0, 24)]
            caller = r.choice(office if kind == "night" else busy if kind == "silence" else self.callers)
            at_ms = r.randrange(first, last) // WINDOW_MS * WINDOW_MS
            low, high = caller.hours
            if kind == "night":
                at_ms = at_ms // DAY_MS * DAY_MS + 2 * 3_600_000
            elif not low <= at_ms // 3_600_000 % 24 < high:
                at_ms = at_ms // DAY_MS * DAY_MS + (low + high) // 2 * 3_600_000
            planned.append((at_ms, kind, caller))
        return sorted(planned, key=lambda one: one[0])

    # ordinary traffic

    def _ordinary(self, caller: _Caller, edge: _Edge, start_ms: int, events: list[Event]) -> None:
        r = self._random
        hour = start_ms / 3_600_000 % 24
        mean = edge.rate * (0.55 + 0.45 * math.cos((hour - 13) / 24 * 2 * math.pi))
        mean *= r.gammavariate(8, 1 / 8)
        if r.random() < 0.003:
            mean *= r.uniform(1.5, 2.5)  # an ordinary burst
        if r.random() < 0.0005:
            self._slow[edge.service] = start_ms + r.randint(1, 3) * WINDOW_MS
        slow = r.uniform(1.2, 1.6) if self._slow.get(edge.service, 0) > start_ms else 1.0
        for _ in range(self._poisson(mean)):
            refusal = "NO_POLICY_PERMITS" if r.random() < 0.0005 else ""
            self._call(caller, edge, start_ms, events, refusal=refusal, slow=slow)

    def _call(
        self,
        caller: _Caller,
        edge: _Edge,
        start_ms: int,
        events: list[Event],
        *,
        refusal: str = "",
        slow: float = 1.0,
        request: float = 1.0,
        response: float = 1.0,
        node: str = "",
        parent: bytes = b"",
        method: str = "",
        identified: bool = True,
        foreign: str = "",
    ) -> bytes:
        r = self._random
        self._number += 1
        execution = hashlib.sha256(self._number.to_bytes(8)).digest()[:16]
        at_ms = start_ms + int(r.random() * (WINDOW_MS - 1_000))
        who, method = caller.id if identified else "", method or edge.method
        caller_side = Evidence(node or caller.node, "l", self._number, execution)
        callee_side = Evidence(f"of-{edge.service}", "l", self._number, execution)
        allowed, reason = not refusal, refusal or "ALLOWED"
        if allowed:
            events.append(
                Decided(
                    caller_side,
                    at_ms,
                    Side.OUTBOUND,
                    who,
                    edge.service,
                    method,
                    True,
                    reason,
                    "",
                    parent,
                    foreign,
                )
            )
        if foreign:  # nobody else knows of it
            return execution
        events.append(Decided(callee_side, at_ms, Side.INBOUND, who, edge.service, method, allowed, reason))
        if allowed:
            duration = edge.latency_us * slow * r.lognormvariate(0, 0.35)
            size = edge.request * request * r.lognormvariate(0, 0.5)
            answer = edge.response * response * r.lognormvariate(0, 0.6)
            done_ms = at_ms + int(duration / 1000)
            events.append(
                Ended(
                    callee_side,
                    done_ms,
                    Side.INBOUND,
                    who,
                    edge.service,
                    method,
                    "OK" if r.random() > 0.002 else "UNAVAILABLE",
                    int(duration),
                    int(size),
                    int(answer),
                )
            )
        return execution

    def _poisson(self, mean: float) -> int:
        r = self._random
        if mean > 30:
            return max(0, round(r.gauss(mean, math.sqrt(mean))))
        limit, product, count = math.exp(-mean), r.random(), 0
        while product > limit:
            product *= r.random()
            count += 1
        return count

    # attacks

    def _attack(self, kind: str, caller: _Caller, start_ms: int, events: list[Event]) -> Attack:
        rules, subject, strength = _EXPECTED[kind], caller.id, self._strength
        known = [edge for edge in caller.edges if edge.from_ms <= start_ms]
        # who takes data in bulk, or slows a service down, does it where there is traffic
        edge = max(known, key=lambda one: one.rate)
        if kind == "burst":
            for _ in range(int((edge.rate * 6 + 40) * strength)):
                self._call(caller, edge, start_ms, events)
        elif kind == "slow":
            events[:] = [e for e in events if not (isinstance(e, Ended) and e.method == edge.method)]
            for _ in range(40):
                self._call(caller, edge, start_ms, events, slow=1 + 3 * strength)
        elif kind == "lateral":
            self._call(caller, edge, start_ms, events, method=f"shop.Admin/Dump{self._number}")
        elif kind == "probe":
            for number in range(14):
                self._call(
                    caller, edge, start_ms, events, refusal="POLICY_DENIED", method=f"shop.P/M{number}"
                )
        elif kind == "exfiltrate":
            self._call(caller, edge, start_ms, events, response=120 * strength)
        elif kind == "inject":
            self._call(caller, edge, start_ms, events, request=120 * strength)
        elif kind == "hammer":
            for _ in range(int(24 * strength)):
                self._call(caller, edge, start_ms, events, refusal="POLICY_DENIED")
        elif kind == "silence":
            quiet = [e for e in events if e.caller == caller.id and e.method == edge.method]
            kept = max(
                3, int(len(quiet) * (1 - 0.97 * strength))
            )  # none at all is nothing that anybody records
            drop = set(map(id, quiet[kept:]))
            events[:] = [e for e in events if id(e) not in drop]
        elif kind == "revoked":
            for _ in range(5):
                self._call(caller, edge, start_ms, events, refusal="REVOKED")
        elif kind == "unvouched":
            subject = f"the node that calls for {caller.id}"
            for _ in range(8):
                self._call(caller, edge, start_ms, events, refusal="ATTESTATION_MISSING")
        elif kind == "liar":
            # a node that makes up calls of a caller whom it does not hold, to have him quarantined
            node = f"of-{edge.service}"
            subject = f"spiffe://{TD}/node/{node}"
            for number in range(20):
                self._call(
                    caller, edge, start_ms, events, node=node, method=f"shop.L/M{number}", foreign="lies"
                )
        elif kind == "map":
            for number in range(int(25 * strength)):
                self._call(caller, edge, start_ms, events, method=f"shop.S{number % 9}/List{number}")
        elif kind == "night":
            for _ in range(3):
                self._call(caller, edge, start_ms, events)
        elif kind == "loop":
            parent = b""
            base = len(events)
            for _ in range(int(14 * strength)):
                parent = self._call(caller, edge, start_ms, events, parent=parent)
            _in_order(events, base, start_ms)
        elif kind == "replay":
            self._call(caller, edge, start_ms, events, refusal="PERMIT_REPLAYED")
        elif kind == "forge":
            self._call(caller, edge, start_ms, events, refusal="PERMIT_INVALID")
        elif kind == "stolen":
            for _ in range(20):
                self._call(caller, edge, start_ms, events)  # its owner works
            self._call(caller, edge, start_ms + WINDOW_MS // 2, events, node=f"evil{self._number}")
        elif kind == "stranger":
            subject = f"callers without identity at of-{edge.service}"
            for _ in range(8):
                self._call(caller, edge, start_ms, events, refusal="CALLER_UNIDENTIFIED", identified=False)
        elif kind == "past-sidecar":
            for _ in range(5):
                self._call(caller, edge, start_ms, events, refusal="PERMIT_MISSING")
        return Attack(kind, rules, subject, start_ms, start_ms + 3 * WINDOW_MS)


def _in_order(events: list[Event], base: int, start_ms: int) -> None:
    """Let the calls of a chain happen one after the other."""
    from dataclasses import replace

    for place in range(base, len(events)):
        events[place] = replace(events[place], at_ms=start_ms + 1_000 + place - base)


_EXPECTED: Final = {
    "burst": frozenset({"EGM-B001"}),
    "slow": frozenset({"EGM-B002"}),
    "lateral": frozenset({"EGM-B003"}),
    "probe": frozenset({"EGM-T003"}),
    "exfiltrate": frozenset({"EGM-B006"}),
    "inject": frozenset({"EGM-B005"}),
    "map": frozenset({"EGM-B007"}),
    "night": frozenset({"EGM-B008"}),
    "loop": frozenset({"EGM-B009"}),
    "replay": frozenset({"EGM-T002"}),
    "forge": frozenset({"EGM-T004"}),
    "stolen": frozenset({"EGM-T001"}),
    "stranger": frozenset({"EGM-T005"}),
    "past-sidecar": frozenset({"EGM-T009"}),
    "hammer": frozenset({"EGM-B004"}),
    "silence": frozenset({"EGM-B001"}),
    "revoked": frozenset({"EGM-T006"}),
    "unvouched": frozenset({"EGM-T010"}),
    "liar": frozenset({"EGM-T011"}),
}
_KINDS: Final = tuple(_EXPECTED)
