"""Whether an allowed call is within the limits that its policies, or incident response, set; and what it takes of them.

Limits of policy bind from level 3 on, restrictions by incident response from level 2 on; below, what they would have
refused is said and passes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from sidecar.core.call import Decision
from sidecar.core.meters import NOTHING, Charge, Meters, Short, Taken
from trust.errors import MeshError, Reason
from trust.levels import POLICY_AWARE, REACTIVE
from trust.policy.controls import BUDGET, UNITS_PER_ONE, Control

_SOON_MS: Final = 120_000  # told as a duration, not as a time


@dataclass(frozen=True, slots=True)
class Use:
    """One call, as limits see it."""

    direction: str  # a call between two workloads of one node passes it twice
    caller: str  # SPIFFE ID; all that are not identified are one
    amount: Callable[
        [Control], int
    ]  # what it asks for of a budget's field; raises MeshError when it cannot be told
    now_ms: int  # trusted Unix time
    monotonic_ms: int


def metered(meters: Meters, decision: Decision, use: Use) -> tuple[Decision, Taken]:
    """Return the decision with limits counted in, and what was taken of them; nothing when it is refused.

    `controls` of what is returned are those that something was taken of: a limit that does not bind and is used up is
    not among them.

    Args:
        meters: of this node.
        decision: allowed, with `controls`.
        use: the call.
    """
    times = {"now_ms": use.now_ms, "monotonic_ms": use.monotonic_ms}
    taken = NOTHING
    for binding in (True, False):
        controls = [c for c in decision.controls if _binds(c, decision.level) is binding]
        if not controls:
            continue
        charges, shortage = _charges(controls, use.amount)
        if shortage is None:
            short = meters.short(use.direction, use.caller, charges, **times)
            shortage = None if short is None else _exceeded(short, use.caller, use.now_ms)
        if shortage is None:
            more = meters.take(use.direction, use.caller, charges, **times)
            taken = Taken(taken.rates + more.rates, taken.budgets + more.budgets)
        elif binding:
            return _refused(decision, *shortage), NOTHING
        else:
            counted = tuple(c for c in decision.controls if c not in controls)
            first = decision.would_deny is None
            decision = replace(
                decision,
                controls=counted,
                would_deny=shortage[0] if first else decision.would_deny,
                detail=shortage[1] if first else decision.detail,
            )
    return decision, taken


def previewed(meters: Meters, decision: Decision, use: Use) -> Decision:
    """Return what `metered` would decide now, and take nothing."""
    decided, taken = metered(meters, decision, use)
    meters.give_back(taken, monotonic_ms=use.monotonic_ms)
    return replace(decided, controls=decision.controls) if decided.allowed else decided


def left(meters: Meters, control: Control, use: Use) -> str:
    """Return how much of a limit the caller has left now, as a number that a person reads."""
    units = meters.left(use.direction, use.caller, control, now_ms=use.now_ms, monotonic_ms=use.monotonic_ms)
    return _amount(control, units)


def _amount(control: Control, units: int) -> str:
    return f"{units / UNITS_PER_ONE:.10g}" if control.field else str(units)


def unreadable(control: Control) -> str:
    """Say why a budget cannot be counted for a stream."""
    return (
        f"{control.by} sums {'.'.join(control.field)} of the request (@{control.name}), and a stream has "
        "no single request: the budget must count calls, or be on methods with one request and a descriptor"
    )


def _binds(control: Control, level: int) -> bool:
    return level >= (POLICY_AWARE if control.source else REACTIVE)


_Shortage = tuple[Reason, str, int]  # reason, detail, retry_ms


def _charges(
    controls: Iterable[Control], amount: Callable[[Control], int]
) -> tuple[list[Charge], _Shortage | None]:
    try:
        return [Charge(c, amount(c) if c.field else 1) for c in controls], None
    except MeshError as error:
        return [], (error.reason, error.detail, 0)


def _exceeded(short: Short, caller: str, now_ms: int) -> _Shortage:
    control = short.control
    allows = f'{control.by} allows {caller} @{control.name}("{control.text}")'
    if control.name != BUDGET:
        detail = f"{allows}, which is used up; call again {_when(short.retry_ms, now_ms)}"
        return Reason.RATE_EXCEEDED, detail, short.retry_ms
    rest = _amount(control, short.left)
    detail = f"{allows}, of which {rest} is left; ask for less, or call again {_when(short.retry_ms, now_ms)}"
    return Reason.BUDGET_EXCEEDED, detail, short.retry_ms


def _when(retry_ms: int, now_ms: int) -> str:
    if retry_ms < _SOON_MS:
        return f"in {retry_ms / 1000:.1f} s"
    return f"after {datetime.fromtimestamp((now_ms + retry_ms) // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _refused(decision: Decision, reason: Reason, detail: str, retry_ms: int) -> Decision:
    return replace(
        decision,
        allowed=False,
        reason=reason,
        detail=detail,
        would_deny=None,
        obligations=(),
        controls=(),
        method_alone=False,
        retry_ms=retry_ms,
    )
