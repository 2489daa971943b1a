"""What `@rate` and `@budget` limit: how often a caller may call, and how much it may ask for, under one policy.

    @rate("100/m")                       COUNT/UNIT, UNIT one of s, m, h, d
    @budget("1000 per day of amount")    AMOUNT per UNIT of FIELD, UNIT one of minute, hour, day
    @budget("50 per hour")               without a field: so many calls

Amounts are counted in units of 0.0001, as policies see floating point numbers (`trust.policy.request_context`).
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from trust import limits
from trust.errors import EvidenceError, Reason

RATE: Final = "rate"
BUDGET: Final = "budget"
CONTROLS: Final = frozenset({RATE, BUDGET})
UNITS_PER_ONE: Final = 10_000
SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60 * SECOND_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
HOW_TO_RATE: Final = f'write @{RATE}("100/m"): 1 to {limits.MAX_RATE_COUNT} calls in one s, m, h or d'
HOW_TO_BUDGET: Final = (
    f'write @{BUDGET}("1000 per day of amount"), or @{BUDGET}("1000 per day") to count calls: an amount above 0 with '
    "at most four digits after the point, per minute, hour or day, of a numeric field of the request"
)

_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/([smhd])\Z", re.ASCII)
_BUDGET: Final = re.compile(
    r"([0-9]{1,15})(?:\.([0-9]{1,4}))? per (minute|hour|day)(?: of ([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*))?\Z",
    re.ASCII,
)
_RATE_MS: Final[Mapping[str, int]] = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_BUDGET_MS: Final[Mapping[str, int]] = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value" for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32")
)
_NUMERIC: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_FLOAT,
        FieldDescriptor.CPPTYPE_DOUBLE,
    }
)


@dataclass(frozen=True, slots=True, order=True)
class Control:
    """One limit, of one policy or of one restriction by incident response."""

    source: str  # policy id; empty for a restriction
    name: str  # RATE or BUDGET
    text: str  # as written
    most: int  # RATE: calls at once, and per window; BUDGET: units of 0.0001, or calls, per window
    window_ms: int
    field: tuple[str, ...] = ()  # BUDGET: path of the field that is summed; empty: calls are counted

    @property
    def obligation(self) -> tuple[str, str]:
        """The annotation, as decisions and records list it."""
        return self.name, self.text

    @property
    def by(self) -> str:
        """Who sets the limit, for a person."""
        return f"policy {self.source}" if self.source else "incident response"


@functools.lru_cache(4096)
def control_of(name: str, text: str, source: str = "") -> Control | None:
    """Return what an annotation limits; None when it says nothing that can be measured.

    Args:
        name: RATE or BUDGET; None is returned for every other.
        text: its value.
        source: id of the policy that says it; empty for a restriction.
    """
    if name == RATE and (match := _RATE.match(text)):
        return Control(source, name, text, int(match[1]), _RATE_MS[match[2]])
    if name == BUDGET and (match := _BUDGET.match(text)):
        whole, fraction, unit, path = match.groups()
        if path is None:
            most = 0 if fraction else int(whole)
        else:
            most = int(whole) * UNITS_PER_ONE + int((fraction or "").ljust(4, "0"))
        field = () if path is None else tuple(path.split("."))
        return Control(source, name, text, most, _BUDGET_MS[unit], field) if most else None
    return None


def controls_of(obligations: tuple[tuple[str, str], ...], source: str = "") -> tuple[Control, ...]:
    """Return the limits among some obligations, ascending."""
    found = (control_of(name, text, source) for name, text in obligations if name in CONTROLS)
    return tuple(sorted(control for control in found if control is not None))


def field_problem(message: Descriptor, field: tuple[str, ...]) -> str:
    """Say why `field` of a request cannot be summed; empty when it can.

    Args:
        message: the type of the request.
        field: a path of field names.
    """
    kind: Descriptor | None = message
    for number, name in enumerate(field):
        path = ".".join(field[: number + 1])
        found = None if kind is None else kind.fields_by_name.get(name)
        if found is None:
            return f"{message.full_name} has no field {path!r}"
        if found.is_repeated:
            return f"the field {path!r} of {message.full_name} is repeated"
        kind = found.message_type
    if kind is not None:
        return (
            "" if kind.full_name in _WRAPPERS else f"the field {path!r} of {message.full_name} is a message"
        )
    numeric = found is not None and found.cpp_type in _NUMERIC
    return "" if numeric else f"the field {path!r} of {message.full_name} is not a number"


def amount_of(message: Message, field: tuple[str, ...]) -> int:
    """Return what `field` of a request holds, in units of 0.0001, rounded half to even but never down to nothing.

    Raises:
        EvidenceError: OBLIGATION_UNMET: absent, though it could be told from zero; negative; not a finite number.
    """
    value: object = message
    for name in field:
        found = value.DESCRIPTOR.fields_by_name.get(name) if isinstance(value, Message) else None
        if not isinstance(value, Message) or found is None or found.is_repeated:
            raise _unmet(field, "is not there")
        if found.has_presence and not value.HasField(name):
            raise _unmet(field, "is not set")
        value = getattr(value, name)
    if isinstance(value, Message) and value.DESCRIPTOR.full_name in _WRAPPERS:
        value = getattr(value, "value")  # noqa: B009  # every wrapper has it, which no type says
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unmet(field, "is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise _unmet(field, "is not a finite number")
    if value < 0:
        raise _unmet(field, "is negative")
    numerator, denominator = value.as_integer_ratio()
    units, rest = divmod(numerator * UNITS_PER_ONE, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and units % 2):
        units += 1
    return units if units or not numerator else 1


def _unmet(field: tuple[str, ...], what: str) -> EvidenceError:
    return EvidenceError(
        Reason.OBLIGATION_UNMET,
        f"policy sums {'.'.join(field)} of the request (@{BUDGET}), which {what}; "
        "set it to a number that is not negative",
    )
