"""Any request is either shown to policies in the declared types, or refused."""

import json
from typing import Any

import cedarpy
from cedarpy import _internal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.engines import TD, default_schema, order_info, workload
from trust.errors import EvidenceError, Reason
from trust.policy.reads import tree
from trust.policy.request_context import projection, to_context

INFO = order_info()
SCHEMA = cedarpy.Schema.from_str(default_schema())
PERMIT = cedarpy.PolicySet.from_str("permit(principal, action, resource);")
ENTITIES = cedarpy.Entities.from_json_str("[]", SCHEMA)

leaves = st.recursive(
    st.fixed_dictionaries(
        {}, optional={"name": st.text(max_size=3), "weight": st.integers(-(2**63), 2**63 - 1)}
    ),
    lambda inner: st.fixed_dictionaries({"child": inner}),
    max_leaves=6,
)
i32, u32 = st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)
i64, u64 = st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)
seconds, nanos = (
    st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**11), 10**11),
    i32 | st.integers(0, 10**9),
)
fields: dict[str, st.SearchStrategy[Any]] = {
    "express": st.booleans(), "i32": i32, "s32": i32, "sf32": i32, "u32": u32, "f32": u32,
    "amount": i64, "s64": i64, "sf64": i64, "u64": u64, "f64": u64,
    "fl": st.floats(width=32), "price": st.floats(), "currency": st.text(), "blob": st.binary(), "color": i32,
    "note": st.text(), "limit": i64, "leaf": leaves, "account": st.text(), "holder": leaves, "number": i64,
    "tags": st.lists(st.text()), "leaves": st.lists(leaves, max_size=3),
    "counts": st.dictionaries(st.text(), i64, max_size=3), "by_id": st.dictionaries(i32, leaves, max_size=2),
    "at": st.fixed_dictionaries({"seconds": seconds, "nanos": nanos}),
    "wait": st.fixed_dictionaries({"seconds": seconds, "nanos": nanos}),
    "maybe": st.fixed_dictionaries({"value": i64}), "umaybe": st.fixed_dictionaries({"value": u64}),
    "dmaybe": st.fixed_dictionaries({"value": st.floats()}), "bmaybe": st.fixed_dictionaries({"value": st.binary()}),
    "nothing": st.just({}), "any": st.fixed_dictionaries({"type_url": st.text()}),
    "mask": st.fixed_dictionaries({"paths": st.lists(st.text(), max_size=3)}),
    "colors": st.lists(i32, max_size=3), "prices": st.lists(st.floats(-1e6, 1e6), max_size=3), "if": st.text(),
    "__entity": leaves, "Clear": st.text(),
}  # fmt: skip
messages = st.fixed_dictionaries({}, optional=fields).map(lambda values: INFO.input_class(**values))


def fits_the_schema(context: dict[str, Any]) -> dict[str, Any]:
    """Ask Cedar with the schema, so that it checks every attribute's presence and type."""
    whole = {
        "request": context,
        "caller": {"authn": "mtls", "trust_domain": TD},
        "node": {"name": "n", "level": 4},
        "time": {"now": {"__extn": {"fn": "datetime", "arg": "2026-11-23"}}, "hour": 1, "weekday": 1},
        "metadata": {},
    }
    request = {
        "principal": {"type": "Workload", "id": workload("a")},
        "action": {"type": "Action", "id": "shop.Orders/Place"},
        "resource": {"type": "Service", "id": "payments"},
        "context": json.dumps(whole),
    }
    answer: dict[str, Any] = json.loads(
        _internal.is_authorized(request, PERMIT, ENTITIES._inner, SCHEMA, False)
    )
    return answer


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages)
def test_every_message_fits_the_generated_schema_or_is_refused_with_its_field(message: Any) -> None:
    """What the engine builds and what approvers' policies were checked against are the same types."""
    try:
        context = to_context(message)
    except EvidenceError as error:
        assert error.reason == Reason.REQUEST_UNREPRESENTABLE
        assert error.detail.startswith("request.")
        return
    answer = fits_the_schema(context)
    assert answer["decision"] == "Allow", answer


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages, st.sets(st.sampled_from(sorted(fields)), max_size=5))
def test_a_projection_shows_its_fields_exactly_as_the_whole_does(message: Any, names: set[str]) -> None:
    """Building less never shows anything else."""
    try:
        whole = to_context(message)
    except EvidenceError:
        return
    some = projection(INFO.input_type, tree((name,) for name in names))(message)
    assert some == {name: whole[name] for name in whole if name in names}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_request_or_are_refused(data: bytes) -> None:
    """A caller chooses the bytes; nothing it sends may raise anything else."""
    try:
        to_context(INFO.decode(data))
    except EvidenceError as error:
        assert error.reason == Reason.REQUEST_UNREPRESENTABLE
