"""Decides what a policy sees of a request: one protobuf message as Cedar JSON.

The schema generator (`trust.policy.schema`) declares exactly these types; docs/architecture.md has the table.
A projection is compiled once per message type and per set of paths that policies can read, so that a call
only pays for the fields that some policy reads.
"""

import base64
import functools
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto
from google.protobuf.message import Message

from trust import limits
from trust.errors import EvidenceError, Reason
from trust.policy.reads import Tree

Json = Any  # a JSON value
Convert = Callable[[Any], Json]
Project = Callable[[Message], dict[str, Json]]
_Memo = dict[tuple[str, int], Project]

MAX_LONG: Final = 2**63 - 1
MAX_DECIMAL_UNITS: Final = 2**63 - 1  # of 0.0001
# Cedar reads a record with one of these as an escape, never as data; such a field is not shown to policies.
RESERVED_NAMES: Final = frozenset({"__entity", "__extn", "__expr"})

_MIN_TIMESTAMP_S: Final = -62_135_596_800  # 0001-01-01T00:00:00Z
_MAX_TIMESTAMP_S: Final = 253_402_300_799  # 9999-12-31T23:59:59Z
_MAX_DURATION_S: Final = 315_576_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_OMITTED: Final = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue"))


class _UnrepresentableError(Exception):
    """A value that Cedar cannot hold; the path grows while the exception rises through the message."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[str] = []


def to_context(message: Message, depth: int = limits.MAX_MESSAGE_DEPTH) -> dict[str, Json]:
    """Return `message` as the Cedar JSON record of `context.request`.

    Args:
        message: a decoded request.
        depth: levels of messages represented, 1 being `message` itself; deeper attributes are left out.

    Raises:
        EvidenceError: REQUEST_UNREPRESENTABLE, with the path of the field that Cedar cannot hold.
    """
    return projection(cast(Descriptor, message.DESCRIPTOR), None, depth)(message)


def projection(descriptor: Descriptor, wanted: Tree | None, depth: int = limits.MAX_MESSAGE_DEPTH) -> Project:
    """Return a function from a message of `descriptor` to the attributes in `wanted` (None: all of them).

    Attributes that are not wanted are neither built nor checked. The function raises EvidenceError
    REQUEST_UNREPRESENTABLE as `to_context` does.
    """
    project = _record(descriptor, wanted, depth, {})

    def checked(message: Message) -> dict[str, Json]:
        try:
            return project(message)
        except _UnrepresentableError as error:
            where = ".".join(reversed(error.path))
            raise EvidenceError(Reason.REQUEST_UNREPRESENTABLE, f"request.{where}: {error.why}") from None

    return checked


def is_shown(field: FieldDescriptor, depth: int) -> bool:
    """Whether `field`, of a message at the level where `depth` levels remain, is an attribute at all."""
    if field.name in RESERVED_NAMES:
        return False
    entry = _map_entry(field)
    if entry is not None:
        return is_shown(entry.fields_by_name["value"], depth)
    kind = field.message_type
    if kind is None:
        return True
    return kind.full_name not in _OMITTED and (depth > 1 or _is_leaf(kind))


def case_name(descriptor: Descriptor, oneof: str) -> str:
    """Return the attribute that says which member of `oneof` is set."""
    name = f"{oneof}_case"
    while name in descriptor.fields_by_name:
        name += "_"
    return name


def real_oneofs(descriptor: Descriptor) -> list[str]:
    """Return the declared oneofs; the synthetic one of a proto3 `optional` is not one."""
    proto = DescriptorProto()
    descriptor.CopyToProto(proto)
    synthetic = {f.oneof_index for f in proto.field if f.proto3_optional}
    return [oneof.name for index, oneof in enumerate(proto.oneof_decl) if index not in synthetic]


def _record(descriptor: Descriptor, wanted: Tree | None, depth: int, memo: _Memo) -> Project:
    """Compile the attributes of one message type; whole types are compiled once per level."""
    if wanted is not None:
        return _compile(descriptor, wanted, depth, memo)
    key = (descriptor.full_name, depth)
    if key not in memo:
        memo[key] = _compile(descriptor, None, depth, memo)
    return memo[key]


def _compile(descriptor: Descriptor, wanted: Tree | None, depth: int, memo: _Memo) -> Project:
    always: list[tuple[str, Convert]] = []
    optional: list[tuple[str, Convert]] = []
    for field in descriptor.fields:
        if not is_shown(field, depth) or (wanted is not None and field.name not in wanted):
            continue
        below = None if wanted is None else wanted[field.name]
        (optional if field.has_presence else always).append(
            (field.name, _attribute(field, below, depth, memo))
        )
    cases = [
        (case_name(descriptor, oneof), oneof)
        for oneof in real_oneofs(descriptor)
        if wanted is None or case_name(descriptor, oneof) in wanted
    ]

    def project(message: Message) -> dict[str, Json]:
        record: dict[str, Json] = {}
        name = ""
        try:
            for name, convert in always:
                record[name] = convert(getattr(message, name))
            for name, convert in optional:
                if message.HasField(name):
                    record[name] = convert(getattr(message, name))
        except _UnrepresentableError as error:
            error.path.append(name)
            raise
        for case, oneof in cases:
            record[case] = message.WhichOneof(oneof) or ""
        return record

    return project


def _attribute(field: FieldDescriptor, wanted: Tree | None, depth: int, memo: _Memo) -> Convert:
    entry = _map_entry(field)
    if entry is not None:
        key = _single(entry.fields_by_name["key"], None, depth, memo)
        value = _single(entry.fields_by_name["value"], None, depth, memo)

        def convert_map(entries: Mapping[Any, Any]) -> Json:
            return [{"key": key(k), "value": value(entries[k])} for k in entries]

        return convert_map
    if field.is_repeated:
        one = _single(field, None, depth, memo)
        return lambda values: [one(v) for v in values]
    return _single(field, wanted, depth, memo)


def _single(field: FieldDescriptor, wanted: Tree | None, depth: int, memo: _Memo) -> Convert:
    kind = field.message_type
    if kind is None:
        return _scalar(field)
    special = _well_known(kind)
    return special if special is not None else _record(kind, wanted, depth - 1, memo)


def _scalar(field: FieldDescriptor) -> Convert:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_UINT64:
            return _unsigned
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return _decimal
        case FieldDescriptor.CPPTYPE_ENUM:
            return functools.partial(_enum_name, cast(EnumDescriptor, field.enum_type))
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return _base64
        case _:  # signed and 32-bit integers, booleans, strings
            return lambda value: value


def _well_known(kind: Descriptor) -> Convert | None:
    name = kind.full_name
    if name in _WRAPPERS:
        convert = _scalar(kind.fields_by_name["value"])
        return lambda message: convert(message.value)
    return {
        "google.protobuf.Timestamp": _datetime,
        "google.protobuf.Duration": _duration,
        "google.protobuf.Empty": lambda _: {},
        "google.protobuf.Any": lambda message: {"type_url": message.type_url},
        "google.protobuf.FieldMask": lambda message: list(message.paths),
    }.get(name)


def _is_leaf(kind: Descriptor) -> bool:
    return _well_known(kind) is not None


def _map_entry(field: FieldDescriptor) -> Descriptor | None:
    """Return the entry type when `field` is a map."""
    kind = field.message_type
    return kind if field.is_repeated and kind is not None and kind.GetOptions().map_entry else None


def _unsigned(value: int) -> Json:
    if value > MAX_LONG:
        raise _UnrepresentableError("larger than 9223372036854775807")
    return value


def _decimal(value: float) -> Json:
    """Four fraction digits, half to even, of the exact binary value."""
    if not math.isfinite(value):
        raise _UnrepresentableError("not a finite number")
    numerator, denominator = value.as_integer_ratio()
    units, rest = divmod(numerator * 10_000, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and units % 2):
        units += 1
    if not -MAX_DECIMAL_UNITS - 1 <= units <= MAX_DECIMAL_UNITS:
        raise _UnrepresentableError("outside the range of a decimal")
    whole, fraction = divmod(abs(units), 10_000)
    return {"__extn": {"fn": "decimal", "arg": f"{'-' if units < 0 else ''}{whole}.{fraction:04}"}}


def _enum_name(enum: EnumDescriptor, number: int) -> Json:
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name


def _base64(value: bytes) -> Json:
    return base64.b64encode(value).decode("ascii")


def _datetime(message: Any) -> Json:
    """Milliseconds, rounded down."""
    if not (_MIN_TIMESTAMP_S <= message.seconds <= _MAX_TIMESTAMP_S and 0 <= message.nanos < 1_000_000_000):
        raise _UnrepresentableError("not a time between the years 1 and 9999")
    return datetime_json(message.seconds * 1000 + message.nanos // 1_000_000)


def datetime_json(unix_ms: int) -> Json:
    """Return a Cedar datetime for a Unix time in milliseconds (years 1 to 9999, else OverflowError)."""
    when = (_EPOCH + timedelta(milliseconds=unix_ms)).replace(tzinfo=None)
    return {"__extn": {"fn": "datetime", "arg": when.isoformat(timespec="milliseconds") + "Z"}}


def _duration(message: Any) -> Json:
    """Milliseconds, rounded towards zero."""
    seconds, nanos = message.seconds, message.nanos
    if abs(seconds) > _MAX_DURATION_S or abs(nanos) > 999_999_999 or seconds * nanos < 0:
        raise _UnrepresentableError("not a valid duration")
    total_ns = seconds * 1_000_000_000 + nanos
    total_ms = abs(total_ns) // 1_000_000
    return {"__extn": {"fn": "duration", "arg": f"{'-' if total_ns < 0 else ''}{total_ms}ms"}}
