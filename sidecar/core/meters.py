"""How much each caller has used of what `@rate` and `@budget` allow it; pure: times come in, what to keep goes out.

A rate is a token bucket, kept as the one time at which it is full again (the generic cell rate algorithm, as ATM
Forum TM 4.0 section 4.4.2 has it). A bucket that is full is as good as none: forgetting it gives nobody anything.
A budget is what was spent in the current window of UTC time; one whose window is over can be forgotten likewise.
Neither is ever forgotten earlier: without room, all callers that are not known yet share one bucket per policy.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from trust import limits
from trust.policy.controls import RATE, Control

K = TypeVar("K")
V = TypeVar("V")

_NS_PER_MS: Final = 1_000_000
_LOOKED_AT: Final = 64  # entries looked at for room, per new one
_SHARED: Final = "*"  # the caller that new callers share where there is no room; no SPIFFE ID


class Charge(NamedTuple):
    """One control of a call, and what the call takes of it: 1, or units of 0.0001."""

    control: Control
    amount: int


class Spent(NamedTuple):
    """What is to survive a restart: so much was spent of a budget in a window of UTC time."""

    key: str  # SHA-256 of who, direction and control, 64 hexadecimal digits
    window_ms: int
    window: int  # Unix ms // window_ms
    amount: int


@dataclass(frozen=True, slots=True)
class Short:
    """A control that has not enough left, and when it could have."""

    control: Control
    retry_ms: int
    left: int  # of a budget, in its units


@dataclass(frozen=True, slots=True)
class Taken:
    """What one call took; give it back at most once."""

    rates: tuple[
        tuple[tuple[object, ...], int, int], ...
    ] = ()  # key, ns, when they have flowed back by themselves
    budgets: tuple[tuple[str, int, int], ...] = ()  # key, window, amount

    def __bool__(self) -> bool:
        return bool(self.rates or self.budgets)


NOTHING: Final = Taken()


@dataclass(slots=True)
class _Budget:
    window_ms: int
    window: int
    amount: int


@dataclass(slots=True)
class Meters:
    """All buckets of one node. Not thread-safe: owned by the event loop."""

    max_entries: int = limits.MAX_METERS  # of each kind
    shared: int = 0  # calls that were counted in a shared bucket since start
    _rates: dict[tuple[object, ...], int] = field(default_factory=dict)  # -> full again at, ns
    _budgets: dict[str, _Budget] = field(default_factory=dict)
    _changed: dict[str, Spent] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._rates) + len(self._budgets)

    def short(
        self, direction: str, caller: str, charges: Iterable[Charge], *, now_ms: int, monotonic_ms: int
    ) -> Short | None:
        """Return the first control that has not enough left for its charge; None when all have. Takes nothing.

        Args:
            direction: of the call; a call between two workloads of one node passes twice.
            caller: SPIFFE ID.
            charges: what the call would take.
            now_ms: trusted Unix time, for budgets.
            monotonic_ms: for rates.
        """
        now_ns = monotonic_ms * _NS_PER_MS
        for control, amount in charges:
            if control.name == RATE:
                full_ns = self._rates.get(self._rate_key(direction, caller, control, now_ns), now_ns)
                wait_ns = full_ns - now_ns - _interval_ns(control) * (control.most - 1)
                if wait_ns > 0:
                    return Short(control, -(-wait_ns // _NS_PER_MS), 0)
                continue
            window, spent = self._spent(self._budget_key(direction, caller, control, now_ms), control, now_ms)
            if spent + amount > control.most:
                retry_ms = (window + 1) * control.window_ms - now_ms
                return Short(control, retry_ms, max(0, control.most - spent))
        return None

    def left(self, direction: str, caller: str, control: Control, *, now_ms: int, monotonic_ms: int) -> int:
        """Return how much of a control a caller has left: calls, or units of a budget's field."""
        now_ns = monotonic_ms * _NS_PER_MS
        if control.name == RATE:
            full_ns = self._rates.get(self._rate_key(direction, caller, control, now_ns), now_ns)
            return max(0, control.most - -(-max(0, full_ns - now_ns) // _interval_ns(control)))
        _, spent = self._spent(self._budget_key(direction, caller, control, now_ms), control, now_ms)
        return max(0, control.most - spent)

    def take(
        self, direction: str, caller: str, charges: Iterable[Charge], *, now_ms: int, monotonic_ms: int
    ) -> Taken:
        """Take every charge; call it only when none is `short`, with the same arguments."""
        now_ns = monotonic_ms * _NS_PER_MS
        rates: list[tuple[tuple[object, ...], int, int]] = []
        budgets: list[tuple[str, int, int]] = []
        for control, amount in charges:
            if control.name == RATE:
                rate_key, interval = self._rate_key(direction, caller, control, now_ns), _interval_ns(control)
                full_ns = self._rates[rate_key] = max(self._rates.get(rate_key, now_ns), now_ns) + interval
                rates.append((rate_key, interval, full_ns))
                self.shared += rate_key[1] == _SHARED
                continue
            key = self._budget_key(direction, caller, control, now_ms)
            window, spent = self._spent(key, control, now_ms)
            full = len(self._budgets) >= self.max_entries
            self.shared += full and key == _budget_key(direction, _SHARED, control)
            self._keep(key, _Budget(control.window_ms, window, spent + amount))
            budgets.append((key, window, amount))
        return Taken(tuple(rates), tuple(budgets))

    def give_back(self, taken: Taken, *, monotonic_ms: int) -> None:
        """Undo `take`, for a call that was not forwarded after all.

        What a bucket has regained in the meantime is not given twice: calls that are held long and then given up would
        save up a burst beyond the limit.
        """
        now_ns = monotonic_ms * _NS_PER_MS
        for rate_key, interval, full_ns in taken.rates:
            if rate_key in self._rates and full_ns > now_ns:
                self._rates[rate_key] -= min(interval, full_ns - now_ns)
        for key, window, amount in taken.budgets:
            held = self._budgets.get(key)
            if held is not None and held.window == window:
                self._keep(key, _Budget(held.window_ms, window, max(0, held.amount - amount)))

    def changed(self) -> list[Spent]:
        """Return the budgets that changed since the last time, as they are now; each is returned once."""
        changed, self._changed = list(self._changed.values()), {}
        return changed

    def spent(self, now_ms: int) -> list[Spent]:
        """Return every budget whose window is not over: all that must survive a restart."""
        return [
            Spent(key, held.window_ms, held.window, held.amount)
            for key, held in self._budgets.items()
            if held.window >= now_ms // held.window_ms
        ]

    def restore(self, spent: Iterable[Spent], *, now_ms: int) -> None:
        """Take up what an earlier run wrote down, in order: the last word on each budget counts. Before the first call.

        What is over is forgotten.
        """
        for one in spent:
            if one.window >= now_ms // one.window_ms:
                self._budgets[one.key] = _Budget(one.window_ms, one.window, one.amount)

    def _keep(self, key: str, budget: _Budget) -> None:
        self._budgets[key] = budget
        self._changed[key] = Spent(key, budget.window_ms, budget.window, budget.amount)

    def _spent(self, key: str, control: Control, now_ms: int) -> tuple[int, int]:
        """Return the window that counts and what was spent in it; a clock that is set back opens no new window."""
        window = now_ms // control.window_ms
        held = self._budgets.get(key)
        return (window, 0) if held is None or held.window < window else (held.window, held.amount)

    def _rate_key(self, direction: str, caller: str, control: Control, now_ns: int) -> tuple[object, ...]:
        key = (direction, caller, *_limit(control))
        if key in self._rates or self._room(self._rates, lambda full_ns: full_ns <= now_ns):
            return key
        return (direction, _SHARED, *key[2:])

    def _budget_key(self, direction: str, caller: str, control: Control, now_ms: int) -> str:
        key = _budget_key(direction, caller, control)
        if key in self._budgets or self._room(
            self._budgets, lambda one: one.window < now_ms // one.window_ms
        ):
            return key
        return _budget_key(direction, _SHARED, control)

    def _room(self, entries: dict[K, V], over: Callable[[V], bool]) -> bool:
        """Return whether one more entry fits; looks at a few of the oldest, and forgets those that are over."""
        if len(entries) < self.max_entries:
            return True
        for key in list(islice(entries, _LOOKED_AT)):
            value = entries.pop(key)
            if not over(value):
                entries[key] = value  # at the end: the next look is at others
            elif isinstance(key, str):
                self._changed.pop(key, None)
        return len(entries) < self.max_entries


def _limit(control: Control) -> tuple[str, str, int]:
    """Return what tells a limit from others: its policy, whose numbers may change; of a restriction, its text."""
    return control.source, "" if control.source else control.text, control.window_ms


def _interval_ns(control: Control) -> int:
    return -(-control.window_ms * _NS_PER_MS // control.most)


def _budget_key(direction: str, caller: str, control: Control) -> str:
    what = [direction, caller, *_limit(control), *control.field]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
