"""Which parts of the context a policy can read."""

import cedarpy
import pytest

from trust.policy.reads import inspect, minimal, reads, tree


def reads_of(condition: str) -> set[tuple[str, ...]]:
    """Return what one condition reads."""
    policies = cedarpy.policies_to_pst(f"permit(principal, action, resource) when {{ {condition} }};")
    return set(reads(policies.static_policies["policy0"]))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("true", set()),
        ("context.request.amount < 3", {("request", "amount")}),
        ('context["request"]["if"] == "x"', {("request", "if")}),
        ("context has request", {("request", "")}),
        (
            "context has request.card.owner",
            {("request", ""), ("request", "card", ""), ("request", "card", "owner", "")},
        ),
        ("context has request && context.request.a == 1", {("request", ""), ("request", "a")}),
        ("context.request == context.caller", {("request",), ("caller",)}),
        ("context == {a: 1}", {()}),
        ("context has x && context == {a: 1}", {()}),
        ("(if context.a then context else context).b", {()}),
        ("{x: context}.x.b", {()}),
        ("[context.a.b, 1].contains(2)", {("a", "b")}),
        ("principal.name == context.caller.authn", {("caller", "authn")}),
        ('context.request.name like "a*"', {("request", "name")}),
        ("context.request.name is Role", {("request", "name")}),
        ("principal has name && principal.context == 1", set()),
        ('context.a[""].b == 1', {("a",)}),
    ],
)
def test_every_use_of_the_context_is_a_read(condition: str, expected: set[tuple[str, ...]]) -> None:
    """What a condition could look at is found, whatever the syntax around it."""
    assert reads_of(condition) == expected


def test_unless_reads_as_when_does() -> None:
    """Both kinds of clause look at the context."""
    text = "forbid(principal, action, resource) when { context.a } unless { context.b };"
    assert reads(cedarpy.policies_to_pst(text).static_policies["policy0"]) == {("a",), ("b",)}


def test_a_whole_read_covers_the_parts() -> None:
    """The parts of what is read whole need no entry of their own."""
    assert minimal([("a",), ("a", "b"), ("a", ""), ("c", "d")]) == {("a",), ("c", "d")}
    assert minimal([(), ("a",)]) == {()}


def test_tree_tells_existence_from_value() -> None:
    """An attribute of which only the presence matters is there, with nothing below it."""
    assert tree([("request", "")]) == {"request": {}}
    assert tree([("request", "card", ""), ("request", "amount")]) == {"request": {"card": {}, "amount": None}}
    assert tree([("a", "b"), ()]) is None
    assert tree([]) == {}


def test_every_entity_that_a_policy_names_is_found() -> None:
    """Scope and conditions both count: a namespace must not touch what the base names anywhere."""
    text = (
        'permit(principal in Role::"a", action in [Action::"b"], resource is S in G::"c") '
        'when { principal in [Role::"d"] && {x: Role::"e"}.x == context.a } unless { principal is W in Role::"f" };'
    )
    _, named = inspect(cedarpy.policies_to_pst(text).static_policies["policy0"])
    assert {uid.id for uid in named} == set("abcdef")
