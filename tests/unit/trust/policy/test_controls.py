"""What `@rate` and `@budget` may say, and how much of a field one request asks for."""

import math
from typing import Any

import pytest

from tests.support.engines import order_info
from trust import limits
from trust.errors import EvidenceError, Reason
from trust.policy.controls import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    SECOND_MS,
    UNITS_PER_ONE,
    Control,
    amount_of,
    control_of,
    controls_of,
    field_problem,
)

ORDER = order_info()


def order(**fields: Any) -> Any:
    return ORDER.input_class(**fields)


@pytest.mark.parametrize(
    ("name", "text", "most", "window_ms", "field"),
    [
        ("rate", "1/s", 1, SECOND_MS, ()),
        ("rate", "100/m", 100, MINUTE_MS, ()),
        ("rate", f"{limits.MAX_RATE_COUNT}/h", limits.MAX_RATE_COUNT, HOUR_MS, ()),
        ("rate", "7/d", 7, DAY_MS, ()),
        ("budget", "1000 per day of amount", 1000 * UNITS_PER_ONE, DAY_MS, ("amount",)),
        ("budget", "0.5 per hour of leaf.weight", 5000, HOUR_MS, ("leaf", "weight")),
        ("budget", "12.3456 per minute of price", 123456, MINUTE_MS, ("price",)),
        ("budget", "50 per day", 50, DAY_MS, ()),
    ],
)
def test_what_can_be_measured_is_read(
    name: str, text: str, most: int, window_ms: int, field: tuple[str, ...]
) -> None:
    """The annotation as people write it."""
    assert control_of(name, text, "p") == Control("p", name, text, most, window_ms, field)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rate", text)
        for text in (
            "",
            "0/m",
            "01/m",
            "-1/m",
            "1/w",
            "1 / m",
            "1/m ",
            "1.5/m",
            "1000000000/s",
            "٣/m",
            "1/m\n",
            "m",
        )
    ]
    + [
        ("budget", text)
        for text in (
            "",
            "0 per day",
            "0.0 per day of amount",
            "1.5 per day",
            "-1 per day of amount",
            "1.00001 per day of amount",
            "1e3 per day of amount",
            "1 per week of amount",
            "1 per day of ",
            "1 per day of a..b",
            "1 per day of 1a",
            "1 per day of amount\n",
            "9999999999999999 per day of amount",
            "NaN per day of amount",
        )
    ]
    + [("lease", "30s"), ("audit", "payload")],
)
def test_what_cannot_be_measured_is_no_control(name: str, text: str) -> None:
    """It is then an obligation that nobody can meet, and calls are refused."""
    assert control_of(name, text) is None


def test_the_controls_of_obligations_name_their_policy() -> None:
    """Limits are per policy; other obligations are for others."""
    found = controls_of((("audit", "payload"), ("rate", "1/s"), ("budget", "9 per day"), ("rate", "x")), "p")
    assert [(c.source, c.name, c.obligation) for c in found] == [
        ("p", "budget", ("budget", "9 per day")),
        ("p", "rate", ("rate", "1/s")),
    ]
    assert (found[0].by, controls_of((("rate", "1/s"),))[0].by) == ("policy p", "incident response")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("amount", ""),
        ("u64", ""),
        ("price", ""),
        ("fl", ""),
        ("limit", ""),
        ("leaf.weight", ""),
        ("leaf.child.weight", ""),
        ("maybe", ""),
        ("dmaybe", ""),
        ("number", ""),
        ("amout", "has no field 'amout'"),
        ("leaf.weigth", "has no field 'leaf.weigth'"),
        ("amount.units", "has no field 'amount.units'"),
        ("express", "is not a number"),
        ("currency", "is not a number"),
        ("color", "is not a number"),
        ("leaf", "is a message"),
        ("at", "is a message"),
        ("bmaybe", "is a message"),
        ("prices", "is repeated"),
        ("leaves.weight", "is repeated"),
        ("counts", "is repeated"),
    ],
)
def test_only_a_single_number_of_the_request_can_be_summed(path: str, problem: str) -> None:
    """Lint says which part of the path is wrong."""
    found = field_problem(ORDER.input_type, tuple(path.split(".")))
    assert (problem in found) if problem else not found


@pytest.mark.parametrize(
    ("request_", "path", "units"),
    [
        (order(amount=5), "amount", 50_000),
        (order(), "amount", 0),
        (order(u64=2**64 - 1), "u64", (2**64 - 1) * 10_000),
        (order(price=0.1), "price", 1_000),
        (order(price=0.00001), "price", 1),
        (order(price=0.00024), "price", 2),
        (order(price=1e300), "price", int(1e300) * 10_000),
        (order(limit=0), "limit", 0),
        (order(maybe={"value": 3}), "maybe", 30_000),
        (order(leaf={"weight": 7}), "leaf.weight", 70_000),
    ],
)
def test_an_amount_is_counted_in_ten_thousandths(request_: Any, path: str, units: int) -> None:
    """As policies see floating point numbers; nothing that is asked for counts as nothing."""
    assert amount_of(request_, tuple(path.split("."))) == units


@pytest.mark.parametrize(
    ("request_", "path", "words"),
    [
        (order(amount=-1), "amount", "is negative"),
        (order(price=-0.00001), "price", "is negative"),
        (order(price=math.nan), "price", "is not a finite number"),
        (order(price=math.inf), "price", "is not a finite number"),
        (order(price=-math.inf), "price", "is not a finite number"),
        (order(), "limit", "is not set"),
        (order(), "maybe", "is not set"),
        (order(), "leaf.weight", "is not set"),
        (order(account="x"), "number", "is not set"),
        (order(), "amout", "is not there"),
        (order(prices=[1]), "prices", "is not there"),
        (order(express=True), "express", "is not a number"),
        (order(leaf={}), "leaf", "is not a number"),
        (order(), "amount.units", "is not there"),
    ],
)
def test_what_is_no_amount_is_refused_not_counted_as_nothing(request_: Any, path: str, words: str) -> None:
    """A negative amount would fill the budget up again; a missing one may mean a default of the service."""
    with pytest.raises(EvidenceError) as caught:
        amount_of(request_, tuple(path.split(".")))
    assert caught.value.reason is Reason.OBLIGATION_UNMET
    assert words in caught.value.detail
