"""The fixed mapping from protobuf to Cedar, value by value."""

import math
from typing import Any

import pytest

from tests.support.engines import order_info
from trust.errors import EvidenceError, Reason
from trust.policy.reads import tree
from trust.policy.request_context import projection, to_context


def shown(**fields: Any) -> dict[str, Any]:
    """Return the context of an order with these fields."""
    return to_context(order_info().input_class(**fields))


def extn(function: str, argument: str) -> dict[str, Any]:
    """Return a Cedar extension value."""
    return {"__extn": {"fn": function, "arg": argument}}


def test_scalars_without_presence_are_always_there() -> None:
    """A policy may read them without `has`."""
    context = shown()
    assert context["amount"] == 0
    assert context["express"] is False
    assert context["currency"] == ""
    assert context["color"] == "NONE"
    assert context["tags"] == []
    assert context["price"] == extn("decimal", "0.0000")
    assert context["target_case"] == ""
    for absent in ("note", "limit", "leaf", "account", "holder", "at", "maybe", "nothing"):
        assert absent not in context


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({"u64": 2**63 - 1}, "u64", 2**63 - 1),
        ({"amount": -(2**63)}, "amount", -(2**63)),
        ({"u32": 2**32 - 1}, "u32", 2**32 - 1),
        ({"price": 1.23}, "price", extn("decimal", "1.2300")),
        ({"price": -0.00004}, "price", extn("decimal", "0.0000")),
        ({"price": 0.00015}, "price", extn("decimal", "0.0001")),  # the double is a little less
        ({"price": 0.03125}, "price", extn("decimal", "0.0312")),  # exactly half: to even
        ({"price": 0.09375}, "price", extn("decimal", "0.0938")),
        ({"price": -0.03125}, "price", extn("decimal", "-0.0312")),
        ({"price": -2.5}, "price", extn("decimal", "-2.5000")),
        ({"price": 922337203685477.5}, "price", extn("decimal", "922337203685477.5000")),
        ({"blob": b"\x00\xff"}, "blob", "AP8="),
        ({"color": 2}, "color", "GREEN"),
        ({"color": 99}, "color", "99"),
        ({"note": ""}, "note", ""),
        ({"limit": 0}, "limit", 0),
        ({"account": ""}, "account", ""),
        ({"account": ""}, "target_case", "account"),
        ({"number": 0}, "target_case", "number"),
        ({"tags": ["b", "a", "b"]}, "tags", ["b", "a", "b"]),
        ({"counts": {"k": 2}}, "counts", [{"key": "k", "value": 2}]),
        ({"by_id": {3: {"name": "n"}}}, "by_id", [{"key": 3, "value": {"name": "n", "weight": 0}}]),
        ({"at": {"seconds": 0, "nanos": 1_999_999}}, "at", extn("datetime", "1970-01-01T00:00:00.001Z")),
        ({"at": {"seconds": -1, "nanos": 0}}, "at", extn("datetime", "1969-12-31T23:59:59.000Z")),
        ({"at": {"seconds": -62135596800}}, "at", extn("datetime", "0001-01-01T00:00:00.000Z")),
        ({"at": {"seconds": 253402300799}}, "at", extn("datetime", "9999-12-31T23:59:59.000Z")),
        ({"wait": {"seconds": 1, "nanos": 500_000_000}}, "wait", extn("duration", "1500ms")),
        ({"wait": {"seconds": -1, "nanos": -999_999}}, "wait", extn("duration", "-1000ms")),
        ({"maybe": {}}, "maybe", 0),
        ({"dmaybe": {"value": 0.25}}, "dmaybe", extn("decimal", "0.2500")),
        ({"bmaybe": {"value": b"a"}}, "bmaybe", "YQ=="),
        ({"nothing": {}}, "nothing", {}),
        ({"any": {"type_url": "t", "value": b"x"}}, "any", {"type_url": "t"}),
        ({"mask": {"paths": ["a.b"]}}, "mask", ["a.b"]),
        ({"if": "x"}, "if", "x"),
        ({"Clear": "x"}, "Clear", "x"),
        ({"colors": [1, 7]}, "colors", ["RED", "7"]),
    ],
)
def test_each_kind_of_field_has_one_form(fields: dict[str, Any], name: str, expected: Any) -> None:
    """The table in trust.policy.schema, in values."""
    assert shown(**fields)[name] == expected


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"u64": 2**63}, "request.u64"),
        ({"f64": 2**64 - 1}, "request.f64"),
        ({"umaybe": {"value": 2**63}}, "request.umaybe"),
        ({"price": math.nan}, "request.price"),
        ({"fl": math.inf}, "request.fl"),
        ({"price": 922337203685477.75}, "request.price"),
        ({"price": -1e300}, "request.price"),
        ({"prices": [1.0, math.nan]}, "request.prices"),
        ({"at": {"seconds": 253402300800}}, "request.at"),
        ({"at": {"nanos": -1}}, "request.at"),
        ({"at": {"nanos": 1_000_000_000}}, "request.at"),
        ({"wait": {"seconds": 1, "nanos": -1}}, "request.wait"),
        ({"wait": {"seconds": 2**62}}, "request.wait"),
    ],
)
def test_what_cedar_cannot_hold_is_refused_with_its_path(fields: dict[str, Any], path: str) -> None:
    """Rounding a huge number to something small would let a policy compare the wrong thing."""
    with pytest.raises(EvidenceError) as caught:
        shown(**fields)
    assert caught.value.reason == Reason.REQUEST_UNREPRESENTABLE
    assert caught.value.detail.startswith(f"{path}: ")


def test_messages_below_the_depth_limit_are_left_out() -> None:
    """Recursive messages end at the declared depth, in values as in the schema."""
    context = shown(leaf={"child": {"child": {"child": {"name": "too deep"}}}})
    third = context["leaf"]["child"]["child"]
    assert "child" not in third
    assert third["weight"] == 0


def test_a_field_that_cedar_would_take_for_an_escape_is_not_shown() -> None:
    """A caller could otherwise turn a record into an entity or an extension value."""
    assert "__entity" not in shown(__entity={"name": "x"})


def test_free_form_values_are_not_shown() -> None:
    """Struct, Value and what holds them have no type that a policy could be checked against."""
    context = shown(free={"a": 1}, any_value={"string_value": "x"}, frees=[{}], bags={"k": {}})
    assert not {"free", "any_value", "frees", "bags"} & set(context)


def test_a_projection_neither_builds_nor_checks_what_nobody_reads() -> None:
    """A field that no policy reads cannot make a request unrepresentable."""
    wanted = tree([("amount",), ("leaf", "name"), ("holder", "")])
    project = projection(order_info().input_type, wanted)
    message = order_info().input_class(amount=3, price=math.nan, leaf={"weight": 4}, holder={"name": "h"})
    assert project(message) == {"amount": 3, "leaf": {"name": ""}, "holder": {}}
