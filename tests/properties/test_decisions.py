"""Slicing, projecting and memoising must never change a decision."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.engines import bundle, entity, order, workload
from trust.errors import Reason
from trust.policy.engine import Engine
from trust.policy.types import Authn, Call

NOW_MS = 1_795_392_000_000
WORKLOADS = ("a", "b", "c", "stranger")
ROLES = ("r0", "r1", "r2")
SERVICES = ("payments", "stock", "other")
GROUPS = ("g0", "g1")
ORDER_METHODS = ("shop.Orders/Place", "shop.Orders/Watch")
METHODS = (
    *ORDER_METHODS,
    "shop.Orders/Upload",
    "shop.Stock/Count",
    "bare.Service/X",
    "bare.Service/Y",
    "no.Such/M",
)
ACTION_GROUPS = ("any", "shop.Orders", "shop.Stock", "bare.Service", "risky")

principals = st.one_of(
    st.just("principal"),
    st.just("principal is Workload"),
    st.sampled_from(WORKLOADS).map(lambda w: f'principal == Workload::"{workload(w)}"'),
    st.sampled_from(WORKLOADS).map(lambda w: f'principal in Workload::"{workload(w)}"'),
    st.sampled_from(ROLES).map(lambda r: f'principal in Role::"{r}"'),
    st.sampled_from(ROLES).map(lambda r: f'principal is Workload in Role::"{r}"'),
)
order_actions = st.one_of(
    st.sampled_from(ORDER_METHODS).map(lambda m: f'action == Action::"{m}"'),
    st.lists(st.sampled_from(ORDER_METHODS), min_size=1, max_size=2, unique=True).map(
        lambda ms: "action in [" + ", ".join(f'Action::"{m}"' for m in ms) + "]"
    ),
)
wide_actions = st.one_of(
    st.just("action"),
    st.sampled_from(METHODS[:4]).map(lambda m: f'action == Action::"{m}"'),
    st.sampled_from(ACTION_GROUPS).map(lambda g: f'action in Action::"{g}"'),
    st.lists(st.sampled_from(ACTION_GROUPS), min_size=1, max_size=3).map(
        lambda gs: "action in [" + ", ".join(f'Action::"{g}"' for g in gs) + "]"
    ),
)
resources = st.one_of(
    st.just("resource"),
    st.just("resource is Service"),
    st.sampled_from(SERVICES).map(lambda s: f'resource == Service::"{s}"'),
    st.sampled_from(GROUPS).map(lambda g: f'resource in ServiceGroup::"{g}"'),
    st.sampled_from(GROUPS).map(lambda g: f'resource is Service in ServiceGroup::"{g}"'),
)
wide_atoms = st.one_of(
    st.sampled_from([a.value for a in Authn]).map(lambda a: f'context.caller.authn == "{a}"'),
    st.integers(0, 5).map(lambda n: f"context.node.level >= {n}"),
    st.just('context.node.name like "node-*"'),
    st.integers(0, 23).map(lambda h: f"context.time.hour < {h}"),
    st.integers(1, 7).map(lambda d: f"context.time.weekday == {d}"),
    st.just('context.time.now > datetime("2026-01-01")'),
    st.just('context.metadata has tenant && context.metadata.tenant == "t1"'),
    st.just('context.metadata has "x-env"'),
    st.just('context.caller == {authn: "mtls", trust_domain: "mesh.local"}'),
    st.just("context has request"),
    st.sampled_from(ROLES).map(lambda r: f'principal in Role::"{r}"'),
    st.just("context.node.level * 9223372036854775807 > 0"),  # overflows at 2 and above
)
order_atoms = st.one_of(
    st.integers(-3, 3).map(lambda n: f"context.request.amount < {n}"),
    st.just("context.request.amount * 9223372036854775807 > 0"),  # overflows unless -1, 0 or 1
    st.just('context.request.currency like "E*"'),
    st.just("context.request has note"),
    st.just('context.request has note && context.request.note == "n"'),
    st.just("context.request has leaf.name"),
    st.just("context.request has leaf && context.request.leaf.weight > 1"),
    st.just('context.request.target_case == "account"'),
    st.just('context.request.tags.contains("x")'),
    st.just("context.request.tags.isEmpty()"),
    st.just('context.request.price.greaterThan(decimal("1.5"))'),
    st.just('["EUR", "USD"].contains(context["request"]["currency"])'),
    st.just("(if context.request.express then context.request.amount else context.request.s64) > 0"),
)


def conditions(atoms: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return expressions over `atoms`."""
    return st.recursive(
        atoms.map(lambda a: f"({a})"),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda e: f"!{e}"),
            st.tuples(inner, inner, inner).map(lambda t: f"(if {t[0]} then {t[1]} else {t[2]})"),
        ),
        max_leaves=4,
    )


@st.composite
def policy_texts(draw: st.DrawFn) -> str:
    """Draw one valid policy without its @id."""
    of_orders = draw(st.booleans())
    action = draw(order_actions if of_orders else wide_actions)
    atoms = st.one_of(order_atoms, wide_atoms) if of_orders else wide_atoms
    clause = draw(st.sampled_from(["", "when", "unless"]))
    body = f" {clause} {{ {draw(conditions(atoms))} }}" if clause else ""
    effect = draw(st.sampled_from(["permit", "permit", "permit", '@permit("method") permit', "forbid"]))
    return f"{effect}({draw(principals)}, {action}, {draw(resources)}){body};"


@st.composite
def entity_sets(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw roles in roles, workloads in roles, services in groups; one workload stays unknown."""
    result = [
        entity("Role", role, [("Role", p) for p in ROLES[:i] if draw(st.booleans())])
        for i, role in enumerate(ROLES)
    ]
    for name in WORKLOADS[:-1]:
        result.append(entity("Workload", workload(name), [("Role", r) for r in ROLES if draw(st.booleans())]))
    result.append(entity("ServiceGroup", "g0"))
    result.append(entity("ServiceGroup", "g1", [("ServiceGroup", "g0")] if draw(st.booleans()) else []))
    for name in SERVICES[:-1]:
        groups = [("ServiceGroup", g) for g in GROUPS if draw(st.booleans())]
        result.append(entity("Service", name, groups))
    return result


requests = st.one_of(
    st.none(),
    st.just(b"\xff\xff"),
    st.builds(
        order,
        amount=st.sampled_from([-4, -1, 0, 1, 4]),
        s64=st.sampled_from([-1, 1]),
        express=st.booleans(),
        currency=st.sampled_from(["", "EUR", "GBP"]),
        tags=st.lists(st.sampled_from(["x", "y"]), max_size=2),
        price=st.sampled_from([0.0, 2.5, float("nan")]),
    ),
    st.builds(
        order,
        note=st.sampled_from(["", "n"]),
        account=st.just("a"),
        leaf=st.fixed_dictionaries({"weight": st.integers(0, 3)}),
    ),
)
calls = st.builds(
    Call,
    principal=st.sampled_from(WORKLOADS).map(workload),
    method=st.sampled_from(METHODS),
    service=st.sampled_from(SERVICES),
    authn=st.sampled_from(Authn),
    node=st.sampled_from(["node-a", "x"]),
    level=st.sampled_from([0, 1, 2, 3, 4]),
    request=requests,
    metadata=st.dictionaries(st.sampled_from(["tenant", "x-env", "unsigned"]), st.sampled_from(["t1", "t2"])),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(policy_texts(), min_size=1, max_size=12),
    entity_sets(),
    st.lists(
        st.tuples(calls, st.integers(0, 10**7).map(lambda s: NOW_MS + s * 1000)), min_size=10, max_size=30
    ),
)
def test_sliced_unsliced_and_memoised_decisions_agree(
    texts: list[str], entities: list[dict[str, Any]], asked: list[tuple[Call, int]]
) -> None:
    """Leaving out what cannot matter, and reusing what cannot differ, are invisible."""
    source = "\n".join(f'@id("p{i}") {text}' for i, text in enumerate(texts))
    services: dict[str, dict[str, Any]] = {"payments": {}, "stock": {}}
    engine = Engine.build(bundle(source, entities=json.dumps(entities), services=services), {})
    for call, now_ms in asked:
        first = engine.decide(call, now_ms=now_ms)
        unsliced = engine.decide_unsliced(call, now_ms=now_ms)
        again = engine.decide(call, now_ms=now_ms)
        assert first == unsliced, (call, source)
        assert again == first
        assert first.detail != "the policies could not be evaluated; the node's log says why"
        if first.allowed:
            assert first.reason == Reason.ALLOWED
            assert not first.errors
        said = [texts[int(name[1:])].startswith("@permit") for name in first.policies]
        assert first.method_alone == (first.allowed and all(said))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(policy_texts(), min_size=1, max_size=6), entity_sets(), calls, calls)
def test_a_call_that_differs_only_in_what_is_not_read_gets_the_same_decision(
    texts: list[str], entities: list[dict[str, Any]], call: Call, other: Call
) -> None:
    """`reads` is a superset: what it leaves out cannot turn a decision."""
    source = "\n".join(f'@id("p{i}") {text}' for i, text in enumerate(texts))
    engine = Engine.build(bundle(source, entities=json.dumps(entities), services={}), {})
    paths = {
        path for rule in engine.explain(call.principal, call.method, call.service) for path in rule.reads
    }
    parts = {path[0] if path else "" for path in paths}
    assert "" not in parts  # no generated policy uses the context whole
    changed = Call(
        principal=call.principal,
        method=call.method,
        service=call.service,
        authn=call.authn if "caller" in parts else other.authn,
        node=call.node if ("node", "name") in paths else other.node,
        level=call.level if ("node", "level") in paths else other.level,
        request=call.request if "request" in parts else other.request,
        metadata=call.metadata if "metadata" in parts else other.metadata,
    )
    now_ms = NOW_MS if "time" in parts else NOW_MS + 12_345_678
    assert engine.decide_unsliced(call, now_ms=NOW_MS) == engine.decide_unsliced(changed, now_ms=now_ms)
