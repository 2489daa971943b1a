"""The Cedar schema of a bundle, generated: which calls exist and what policies may read of each.

The types of `context.request` are exactly those of the values that
`trust.policy.request_context` produces (a test compares the two):

| protobuf | Cedar |
|---|---|
| bool | Bool |
| every integer kind | Long |
| float, double | decimal |
| string, bytes (base64), enum (value name) | String |
| message | record; optional attribute |
| oneof `x` | members optional; `x_case`: String, the member that is set, or "" |
| repeated T | Set<T> |
| map<K, V> | Set<{key: K, value: V}> |
| Timestamp, Duration | datetime, duration |
| wrapper types | their scalar, optional |
| Any, FieldMask | {type_url: String}, Set<String> |
| Struct, Value, ListValue; messages below limits.MAX_MESSAGE_DEPTH | no attribute |

A scalar with explicit presence (proto2, proto3 `optional`, oneof members) is an optional attribute.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from trust import limits
from trust.policy.descriptors import MethodInfo, MethodTable
from trust.policy.request_context import case_name, is_shown, real_oneofs

ANY_ACTION: Final = "any"
_HEADER: Final = (
    "// Generated from the descriptors by `egm policy`; edit bundle.yaml and rebuild instead of this file.\n"
)
_ENTITIES: Final = """\
entity Role in [Role];
entity Workload in [Role];
entity ServiceGroup in [ServiceGroup];
entity Service in [ServiceGroup];

type Caller = { "authn": String, "trust_domain": String };
type Node = { "name": String, "level": Long };
type Time = { "now": datetime, "hour": Long, "weekday": Long };
"""
_SCALARS: Final[Mapping[int, str]] = {
    FieldDescriptor.CPPTYPE_BOOL: "Bool",
    FieldDescriptor.CPPTYPE_INT32: "Long",
    FieldDescriptor.CPPTYPE_INT64: "Long",
    FieldDescriptor.CPPTYPE_UINT32: "Long",
    FieldDescriptor.CPPTYPE_UINT64: "Long",
    FieldDescriptor.CPPTYPE_FLOAT: "decimal",
    FieldDescriptor.CPPTYPE_DOUBLE: "decimal",
    FieldDescriptor.CPPTYPE_STRING: "String",
    FieldDescriptor.CPPTYPE_ENUM: "String",
}
_WELL_KNOWN: Final[Mapping[str, str]] = {
    "google.protobuf.Timestamp": "datetime",
    "google.protobuf.Duration": "duration",
    "google.protobuf.BoolValue": "Bool",
    "google.protobuf.Int32Value": "Long",
    "google.protobuf.Int64Value": "Long",
    "google.protobuf.UInt32Value": "Long",
    "google.protobuf.UInt64Value": "Long",
    "google.protobuf.FloatValue": "decimal",
    "google.protobuf.DoubleValue": "decimal",
    "google.protobuf.StringValue": "String",
    "google.protobuf.BytesValue": "String",
    "google.protobuf.Any": '{ "type_url": String }',
    "google.protobuf.FieldMask": "Set<String>",
    "google.protobuf.Empty": "{}",
}


def generate_schema(
    descriptors: bytes | None,
    *,
    grpc_services: Iterable[str] = (),
    action_groups: Mapping[str, Sequence[str]] | None = None,
    metadata_keys: Sequence[str] = (),
) -> str:
    """Return the Cedar schema (human syntax) of the given services and settings.

    Args:
        descriptors: a FileDescriptorSet, or None.
        grpc_services: "pkg.Service" or "pkg.Service/Method", for what has no descriptor.
        action_groups: group -> methods or services ("pkg.Service" stands for all of its methods).
        metadata_keys: attributes of `context.metadata`.

    Raises:
        EvidenceError: BUNDLE_MALFORMED, when `descriptors` is not a complete FileDescriptorSet.
    """
    table = MethodTable.parse(descriptors)
    known = {name: info for name in table.methods() if (info := table.get(name)) is not None}
    types = _Types()
    actions = {name: types.request(info) for name, info in known.items()}
    bare_services: set[str] = set()
    for name in grpc_services:
        service, slash, _ = name.partition("/")
        if slash:
            actions.setdefault(name, None)
        else:
            bare_services.add(service)
    bare_services -= {action.partition("/")[0] for action in actions}
    parents = _parents(actions, action_groups or {})
    lines = [_header(metadata_keys), *([*declared, ""] if (declared := types.declarations()) else [])]
    applies_to_any = not actions and not bare_services
    lines.append(f"action {_q(ANY_ACTION)}{_applies(None) if applies_to_any else ''};")
    for group in sorted(action_groups or {}):
        lines.append(f"action {_q(group)};")
    for service in sorted({action.partition("/")[0] for action in actions} | bare_services):
        groups = sorted(
            {ANY_ACTION} | {g for g, members in (action_groups or {}).items() if service in members}
        )
        applies = _applies(None) if service in bare_services else ""
        lines.append(f"action {_q(service)} in [{', '.join(map(_q, groups))}]{applies};")
    for name in sorted(actions):
        memberships = ", ".join(map(_q, sorted(parents[name])))
        lines.append(f"action {_q(name)} in [{memberships}]{_applies(actions[name])};")
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class _Types:
    """The record types that requests need, named once each per remaining depth."""

    names: dict[tuple[str, int], str] = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)

    def request(self, method: MethodInfo) -> str | None:
        """Return the type of `context.request`; None when the call opens without a message."""
        if not method.has_request:
            return None
        descriptor = cast(Descriptor, method.input_class.DESCRIPTOR)
        return self._named(descriptor, limits.MAX_MESSAGE_DEPTH)

    def declarations(self) -> list[str]:
        """Return the type declarations, by name."""
        return [f"type {name} = {self.bodies[name]};" for name in sorted(self.bodies)]

    def _named(self, message: Descriptor, depth: int) -> str:
        """Return the name of the record type of `message` where `depth` levels of messages remain."""
        key = (message.full_name, depth)
        if key not in self.names:
            self.names[key] = self._name(message.full_name, depth)
            self.bodies[self.names[key]] = self._record(message, depth)
        return self.names[key]

    def _name(self, full_name: str, depth: int) -> str:
        level = limits.MAX_MESSAGE_DEPTH - depth + 1
        base = name = f"M{level}_{full_name.replace('.', '_')}"
        suffix = 1
        while name in self.names.values():  # a.b_c and a_b.c
            suffix += 1
            name = f"{base}_{suffix}"
        return name

    def _record(self, message: Descriptor, depth: int) -> str:
        attributes: dict[str, str] = {}
        for f in message.fields:
            if is_shown(f, depth):
                attributes[_q(f.name) + ("?" if f.has_presence else "")] = self._field(f, depth)
        for oneof in real_oneofs(message):
            attributes[_q(case_name(message, oneof))] = "String"
        inner = ", ".join(f"{name}: {kind}" for name, kind in sorted(attributes.items()))
        return f"{{ {inner} }}" if inner else "{}"

    def _field(self, f: FieldDescriptor, depth: int) -> str:
        if f.message_type is not None and f.message_type.GetOptions().map_entry:
            entry = f.message_type.fields_by_name
            key, value = self._single(entry["key"], depth), self._single(entry["value"], depth)
            return f'Set<{{ "key": {key}, "value": {value} }}>'
        kind = self._single(f, depth)
        return f"Set<{kind}>" if f.is_repeated else kind

    def _single(self, f: FieldDescriptor, depth: int) -> str:
        if f.message_type is None:
            return _SCALARS[f.cpp_type]
        special = _WELL_KNOWN.get(f.message_type.full_name)
        return special if special is not None else self._named(f.message_type, depth - 1)


def _parents(actions: Iterable[str], groups: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return the groups that each method is directly in."""
    result = {name: {ANY_ACTION, name.partition("/")[0]} for name in actions}
    for group, members in groups.items():
        for member in members:
            for name, parents in result.items():
                if member in (name, name.partition("/")[0]):
                    parents.add(group)
    return result


def _header(metadata_keys: Sequence[str]) -> str:
    keys = ", ".join(f"{_q(key)}?: String" for key in sorted(set(metadata_keys)))
    return f"{_HEADER}{_ENTITIES}type Metadata = {{ {keys} }};\n".replace("{  }", "{}")


def _applies(request: str | None) -> str:
    first = "" if request is None else f'"request": {request}, '
    return (
        " appliesTo { principal: [Workload], resource: [Service], context: { "
        f'{first}"caller": Caller, "node": Node, "time": Time, "metadata": Metadata }} }}'
    )


def _q(text: str) -> str:
    """Return `text` as a Cedar string; the names quoted here have no character that JSON escapes differently."""
    return json.dumps(text, ensure_ascii=False)
