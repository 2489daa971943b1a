"""The generated schema fits what the engine shows to policies, and refuses policies that do not fit."""

import cedarpy
import pytest

from tests.support.engines import RICH_PROTO, default_schema, descriptors
from trust.errors import EvidenceError, Reason
from trust.policy.schema import generate_schema


def errors(policy: str, schema: str | None = None) -> list[str]:
    """What validation says about one policy."""
    parsed = cedarpy.Schema.from_str(default_schema() if schema is None else schema)
    return [e.error for e in cedarpy.validate_policies(policy, parsed).errors]


def on_order(condition: str, method: str = "Place") -> str:
    return f'permit(principal, action == Action::"shop.Orders/{method}", resource) when {{ {condition} }};'


@pytest.mark.parametrize(
    "condition",
    [
        "context.request.express",
        "context.request.i32 + context.request.s32 + context.request.sf32 + context.request.u32 == 1",
        "context.request.amount + context.request.u64 + context.request.f64 + context.request.s64 == 1",
        'context.request.price.lessThan(decimal("1.5")) && context.request.fl == decimal("0.1")',
        'context.request.currency like "EU*" && context.request.blob == "AA=="',
        'context.request.color == "RED"',
        "context.request has limit && context.request.limit > 1",
        'context.request has leaf && context.request.leaf.name == "x"',
        "context.request has leaf && context.request.leaf has child && context.request.leaf.child.weight == 1",
        'context.request.target_case == "account" && context.request has account && context.request.account == "x"',
        'context.request.tags.contains("x") && context.request.colors.contains("RED")',
        'context.request.counts.contains({key: "a", value: 1})',
        'context.request has at && context.request.at < datetime("2026-01-01T00:00:00Z")',
        'context.request has wait && context.request.wait < duration("1h")',
        "context.request has maybe && context.request.maybe == 1",
        'context.request has bmaybe && context.request.bmaybe == ""',
        "context.request has nothing && context.request.nothing == {}",
        'context.request has any && context.request.any.type_url == "x"',
        'context.request has mask && context.request.mask.contains("a.b")',
        'context.request["if"] == "x"',
        'context.caller.authn == "mtls" && context.caller.trust_domain == "mesh.local"',
        'context.node.level >= 4 && context.node.name == "a"',
        'context.time.hour > 5 && context.time.weekday < 6 && context.time.now > datetime("2026-01-01")',
        'context.metadata has tenant && context.metadata["tenant"] == "blue"',
    ],
)
def test_policy_on_each_kind_of_field_validates(condition: str) -> None:
    """One for every row of the mapping."""
    assert errors(on_order(condition)) == []


@pytest.mark.parametrize(
    "condition",
    [
        'context.request.amount == "1"',
        "context.request.price > 1",
        "context.request.limit > 1",
        "context.request.leaf.weight > 1",
        "context.request.free == {}",
        "context.request.frees == []",
        "context.request.bags == []",
        "context.request.any_value == {}",
        "context.request.amuont > 1",
        "context.request.__entity.weight > 1",
        'context.metadata.tenant == "x"',
        "context.caller.name == 1",
    ],
)
def test_policy_that_misreads_a_field_does_not_validate(condition: str) -> None:
    """Wrong types, unguarded optional attributes, names that do not exist."""
    assert errors(on_order(condition))


def test_request_is_there_exactly_when_a_single_message_opens_the_call() -> None:
    """Server streaming has one, client streaming has none."""
    assert errors(on_order("context.request.amount > 1", "Watch")) == []
    assert errors(on_order("context.request.amount > 1", "Upload"))
    assert errors(on_order("context.request.amount > 1", "Chat"))
    mixed = (
        'permit(principal, action in Action::"shop.Orders", resource) when { context.request.amount > 1 };'
    )
    assert errors(mixed)
    guarded = mixed.replace("{ context", "{ context has request && context")
    assert errors(guarded) == []


def test_recursive_message_is_cut_at_the_depth_limit() -> None:
    """Order is level 1, its leaf 2, the leaf's child 3, the grandchild 4; nothing below."""
    path = "context.request has leaf"
    at = "context.request.leaf"
    for _ in range(2):
        path += f" && {at} has child"
        at += ".child"
    assert errors(on_order(f"{path} && {at}.weight == 1")) == []
    assert (
        errors(on_order(f"{path} && {at} has child && {at}.child.weight == 1")) == []
    )  # `has` is known false
    assert errors(on_order(f"{path} && {at}.child == {at}.child"))


@pytest.mark.parametrize(
    "scope",
    [
        'action == Action::"shop.Orders/Place"',
        'action in Action::"shop.Orders"',
        'action in Action::"any"',
        'action in Action::"risky"',
        'action in [Action::"shop.Stock", Action::"bare.Service"]',
        "action",
    ],
)
def test_methods_are_in_their_service_and_risk_groups(scope: str) -> None:
    """Every way to name methods in a scope."""
    assert errors(f"permit(principal, {scope}, resource);") == []


def test_unknown_method_does_not_validate() -> None:
    """A policy on a misspelled method would silently never match."""
    assert errors('permit(principal, action == Action::"shop.Orders/Plaice", resource);')


def test_methods_without_descriptor_are_declared_by_name() -> None:
    """A service name allows its group, a method name the method; neither has a request."""
    schema = generate_schema(None, grpc_services=["a.B", "c.D/E"], action_groups={"g": ["a.B", "c.D/E"]})
    for name in ("a.B", "c.D", "g", "any"):
        assert errors(f'permit(principal, action in Action::"{name}", resource);', schema) == []
    assert errors('permit(principal, action == Action::"c.D/E", resource);', schema) == []
    assert errors("permit(principal, action, resource) when { context.request == {} };", schema)


def test_schema_of_nothing_still_accepts_a_policy_on_everything() -> None:
    """A mesh may begin before its services are described."""
    assert errors("permit(principal, action, resource);", generate_schema(None)) == []


def test_messages_with_names_that_would_collide_stay_apart() -> None:
    """`a.b_c` and `a_b.c` become two types."""
    proto = """
syntax = "proto3";
package a;
message b_c { string one = 1; }
message b { message c { int64 two = 1; } }
service S { rpc X (b_c) returns (b_c); rpc Y (b.c) returns (b.c); }
"""
    schema = generate_schema(descriptors(proto))
    assert (
        errors(
            'permit(principal, action == Action::"a.S/X", resource) when { context.request.one == "" };',
            schema,
        )
        == []
    )
    assert (
        errors(
            'permit(principal, action == Action::"a.S/Y", resource) when { context.request.two == 1 };',
            schema,
        )
        == []
    )


def test_proto2_presence_defaults_and_groups_are_optional_attributes() -> None:
    """Explicit presence is visible to policies."""
    proto = """
syntax = "proto2";
package p;
message M { required int64 r = 1; optional int64 o = 2 [default = 7]; repeated group G = 3 { optional string x = 1; } }
service S { rpc X (M) returns (M); }
"""
    schema = generate_schema(descriptors(proto))
    policy = "permit(principal, action, resource) when { context.request.r == 1 };"
    assert errors(policy, schema)
    assert errors(policy.replace("{ ", "{ context.request has r && ", 1), schema) == []
    assert errors("permit(principal, action, resource) when { context.request.g.isEmpty() };", schema) == []


def test_same_descriptors_give_the_same_schema_in_any_order() -> None:
    """The schema is part of a bundle whose bytes people compare."""
    assert generate_schema(descriptors(), grpc_services=["b.B", "a.A"]) == generate_schema(
        descriptors(RICH_PROTO), grpc_services=["a.A", "b.B"]
    )


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05\x0a\x03abc" * 2 + b"\x0a\x02\x1a\x00"])
def test_broken_descriptors_are_refused(data: bytes) -> None:
    """With the reason that the bundle reader uses."""
    with pytest.raises(EvidenceError) as caught:
        generate_schema(data)
    assert caught.value.reason is Reason.BUNDLE_MALFORMED
