"""Whatever a request holds, what policies see of it has the types that the schema declares."""

import cedarpy
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.engines import default_schema, order, table
from trust.errors import EvidenceError, Reason
from trust.policy.request_context import to_context

SCHEMA = cedarpy.Schema.from_str(default_schema())
POLICY = cedarpy.PolicySet.from_str("permit(principal, action, resource);")
FACTS = {
    "caller": {"authn": "mtls", "trust_domain": "mesh.local"},
    "node": {"name": "n", "level": 4},
    "time": {
        "now": {"__extn": {"fn": "datetime", "arg": "2026-01-05T12:00:00.000Z"}},
        "hour": 12,
        "weekday": 1,
    },
    "metadata": {},
}


def accepted(method: str, request: object) -> bool:
    """Whether Cedar takes this context for this method under the schema."""
    result = cedarpy.is_authorized(
        {
            "principal": 'Workload::"spiffe://mesh.local/workload/alice"',
            "action": f'Action::"{method}"',
            "resource": 'Service::"payments"',
            "context": {**FACTS, "request": request},
        },
        POLICY,
        [],
        SCHEMA,
    )
    return result.allowed


SCALARS = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**63 - 1),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(-1e9, 1e9, width=32),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(-1e12, 1e12),
    FieldDescriptor.CPPTYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-3, 5),
}
RANGES = {"google.protobuf.Timestamp": (-(10**10), 10**11), "google.protobuf.Duration": (0, 10**9)}


def scalar(data: st.DataObject, field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return data.draw(st.binary(max_size=8))
    return data.draw(SCALARS[field.cpp_type])


def fill(data: st.DataObject, message: Message, descriptor: Descriptor, depth: int) -> None:
    """Set a random choice of fields to random values."""
    if descriptor.full_name in RANGES:
        low, high = RANGES[descriptor.full_name]
        message.seconds = data.draw(st.integers(low, high))  # type: ignore[attr-defined]
        message.nanos = data.draw(st.integers(0, 999_999_999))  # type: ignore[attr-defined]
        return
    fields = list(descriptor.fields)
    for field in data.draw(st.lists(st.sampled_from(fields), max_size=6)) if fields else ():
        kind = field.message_type
        if kind is None:
            value = scalar(data, field)
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
        elif depth == 0:
            continue
        elif kind.GetOptions().map_entry:
            key = scalar(data, kind.fields_by_name["key"])
            entry = kind.fields_by_name["value"]
            if entry.message_type is None:
                getattr(message, field.name)[key] = scalar(data, entry)
            else:
                fill(data, getattr(message, field.name)[key], entry.message_type, depth - 1)
        else:
            target = getattr(message, field.name)
            if field.is_repeated:
                target = target.add()
            else:
                target.SetInParent()
            fill(data, target, kind, depth - 1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_request_fits_its_declared_type(data: st.DataObject) -> None:
    """Deeper than the cut, too: what the schema omits, the value omits."""
    method = data.draw(st.sampled_from(["shop.Orders/Place", "shop.Orders/Watch", "shop.Stock/Take"]))
    info = table().get(method)
    assert info is not None
    message = info.input_class()
    fill(data, message, info.input_class.DESCRIPTOR, 6)  # type: ignore[arg-type]
    try:
        context = to_context(message)
    except EvidenceError as error:
        assert error.reason is Reason.REQUEST_UNREPRESENTABLE
        return
    assert accepted(method, context)


@given(st.binary(max_size=60))
def test_arbitrary_wire_bytes_fit_or_are_refused(data: bytes) -> None:
    """An attacker chooses the bytes, not the types."""
    info = table().get("shop.Orders/Place")
    assert info is not None
    try:
        context = to_context(info.input_class.FromString(data))
    except DecodeError:
        return
    except EvidenceError as error:
        assert error.reason is Reason.REQUEST_UNREPRESENTABLE
        return
    assert accepted("shop.Orders/Place", context)


def test_value_of_another_shape_is_not_accepted() -> None:
    """The comparison above can fail at all."""
    assert accepted("shop.Orders/Place", to_context(table().decode("shop.Orders/Place", order(amount=1))))
    assert not accepted("shop.Orders/Place", {"amount": "1"})
    assert not accepted("shop.Stock/Count", {"amount": 1})
