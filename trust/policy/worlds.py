"""Decides which entities and actions exist for the services of one namespace.

Calls to a namespace's services see the base's entities and the namespace's own, never another namespace's. A
namespace adds; it cannot change what the base says, nor put anything where a policy of the base would look.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cedarpy

from trust import limits
from trust.bundle import Bundle
from trust.errors import EvidenceError, Reason
from trust.nesting import line_too_deep
from trust.policy.descriptors import MethodTable
from trust.policy.memberships import exceeds, too_many_in_schema

WORKLOAD: Final = "Workload"
ROLE: Final = "Role"
SERVICE: Final = "Service"
ACTION: Final = "Action"
ANY_ACTION: Final = "any"  # the group of all methods
# Stands for methods that no schema declares. A policy cannot name such a method, so none can tell two apart.
UNDECLARED: Final = "*"


@dataclass(frozen=True, slots=True)
class Parsed:
    """One bundle's schema, entities and methods, checked on their own."""

    bundle: Bundle
    schema: cedarpy.Schema
    entities: cedarpy.Entities
    records: Mapping[
        str, Mapping[str, Any]
    ]  # uid -> entity as Cedar renders it, `parents` being all ancestors
    methods: MethodTable

    @property
    def listed(self) -> frozenset[str]:
        """The gRPC services that mesh.json lists; some have no descriptor."""
        mesh = self.bundle.mesh
        return frozenset(g for s in mesh.services.values() for g in s.grpc_services) if mesh else frozenset()


@dataclass(frozen=True, slots=True)
class World:
    """What exists for the services of one namespace (or of none)."""

    entities: cedarpy.Entities
    ancestors: Mapping[str, frozenset[str]]  # uid -> every ancestor's uid; absent: none
    actions: frozenset[str]  # declared action ids, groups included
    listed: frozenset[str]  # gRPC services declared as a group of methods
    methods: MethodTable

    def action_of(self, method: str) -> str:
        """Return the action id that stands for `method` in a request."""
        service, slash, _ = method.partition("/")
        if slash and method in self.actions:
            return method
        if slash and service in self.listed and not self.methods.describes(service):
            return f"{service}/{UNDECLARED}"
        # nobody declared its service, or the signed descriptor says that there is no such method: it is in no
        # group, so only a policy whose scope leaves the action open can match
        return UNDECLARED


def uid(kind: str, name: str) -> str:
    """Return an entity's key, `Type::"id"`; the id is not escaped, the type cannot hold a quote."""
    return f'{kind}::"{name}"'


def parse_bundle(bundle: Bundle, label: str) -> Parsed:
    """Parse schema, entities and descriptors, each of them strictly.

    Raises:
        EvidenceError: BUNDLE_MALFORMED, BUNDLE_POLICY_INVALID or BUNDLE_TOO_LARGE, naming the file.
    """
    deep = line_too_deep(bundle.schema, schema=True)
    if deep is not None:  # the native parser would end the process
        detail = f"{label}schema.cedarschema:{deep}: nested too deeply"
        raise EvidenceError(Reason.BUNDLE_POLICY_INVALID, detail)
    if too_many_in_schema(bundle.schema):
        limit = limits.MAX_ACTION_MEMBERSHIPS
        detail = f"{label}schema.cedarschema: action groups in groups make over {limit} memberships"
        raise EvidenceError(Reason.BUNDLE_TOO_LARGE, f"{detail}; nest them less deeply")
    try:
        schema = cedarpy.Schema.from_str(bundle.schema, release_gil=True)
    except ValueError as error:
        raise EvidenceError(Reason.BUNDLE_POLICY_INVALID, f"{label}schema.cedarschema: {error}") from None
    _check_ancestors(bundle.entities, label)
    try:
        entities = cedarpy.Entities.from_json_str(bundle.entities, schema, release_gil=True)
        records = {_key(record["uid"]): record for record in json.loads(str(entities))}
    except (ValueError, RecursionError) as error:
        raise EvidenceError(Reason.BUNDLE_MALFORMED, f"{label}entities.json: {error}") from None
    return Parsed(bundle, schema, entities, records, MethodTable.parse(bundle.descriptors))


def _check_ancestors(text: str, label: str) -> None:
    """Refuse entities whose ancestors, all together, are too many: a chain of n roles has n squared of them.

    Raises:
        EvidenceError: BUNDLE_TOO_LARGE.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return  # Cedar says what is wrong
    parents: dict[str, set[str]] = {}
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and isinstance(item.get("parents"), list):
            above = parents.setdefault(_any_uid(item.get("uid")), set())
            above.update(map(_any_uid, item["parents"]))
    if exceeds(parents, limits.MAX_ANCESTORS):
        detail = f"{label}entities.json: groups in groups make over {limits.MAX_ANCESTORS} memberships"
        raise EvidenceError(Reason.BUNDLE_TOO_LARGE, f"{detail}; nest roles and groups less deeply")


def _any_uid(value: object) -> str:
    """Return a key for an entity, in whichever of Cedar's JSON forms it is written."""
    if isinstance(value, dict):
        inner = value.get("__entity", value)
        if isinstance(inner, dict):
            return uid(str(inner.get("type")), str(inner.get("id")))
    return repr(type(value))


def base_world(base: Parsed) -> World:
    """Return the world of the services that belong to no namespace."""
    return _world(base.entities, base.records, base.methods, base.listed)


def namespace_world(base: Parsed, own: Parsed, named_by_base: set[str], namespace: str) -> World:
    """Return the world of the services of `namespace`.

    Args:
        base: the base bundle.
        own: the namespace's bundle.
        named_by_base: every entity that a policy of the base names.
        namespace: for messages.

    Raises:
        EvidenceError: BUNDLE_OUT_OF_NAMESPACE, when the namespace would change what the base means.
    """
    reserved = named_by_base | set(base.records) | set(_mentioned(list(base.records.values())))
    services = set(_services_of(base, namespace))
    added: list[Mapping[str, Any]] = []
    joined: dict[str, Mapping[str, Any]] = {}  # workloads of the base, with roles of the namespace
    for key, record in own.records.items():
        if record["uid"]["type"] == ACTION:
            added.extend(_check_action(key, record, base, named_by_base, namespace))
        elif record["uid"]["type"] == WORKLOAD and key in base.records:
            joined.update(_check_joining(key, record, base.records[key], own, reserved, namespace=namespace))
        else:
            added.extend(_check_entity(key, record, base, reserved, services, namespace=namespace))
    try:
        entities = _with_joined(base, joined) if joined else base.entities
        entities = entities.with_added_json_str(json.dumps(added))
    except ValueError as error:
        raise _out(namespace, f"entities.json: {error}") from None
    records = {**base.records, **joined, **{_key(record["uid"]): record for record in added}}
    return _world(entities, records, base.methods.with_fallback(own.methods), base.listed)


def _check_entity(
    key: str,
    record: Mapping[str, Any],
    base: Parsed,
    reserved: set[str],
    services: set[str],
    *,
    namespace: str,
) -> Iterator[Mapping[str, Any]]:
    """Yield the entity when it is new and harmless; nothing when the base has the very same."""
    if key in base.records:
        if _plain(record) != _plain(base.records[key]):
            raise _out(namespace, f"entities.json: {key} differs from the base bundle's")
        return
    kind, name = record["uid"]["type"], record["uid"]["id"]
    if record["attrs"] or record.get("tags"):
        # a policy of the base may read attributes of any principal or resource
        raise _out(namespace, f"entities.json: {key} has attributes; only the base bundle may give them")
    if kind == SERVICE and name not in services:
        raise _out(namespace, f"entities.json: {key} is not a service of this namespace")
    if kind not in {SERVICE, WORKLOAD} and key in reserved:
        raise _out(namespace, f"entities.json: {key} is used by the base bundle; choose another name")
    for parent in map(_key, record["parents"]):
        if parent in reserved:
            raise _out(namespace, f"entities.json: {key} may not join {parent}, which the base bundle uses")
    yield record


def _check_joining(
    key: str,
    record: Mapping[str, Any],
    held: Mapping[str, Any],
    own: Parsed,
    reserved: set[str],
    *,
    namespace: str,
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a workload of the base with the roles that the namespace adds, all of them its own; nothing when none."""
    for part in ("attrs", "tags"):
        if record.get(part) and record[part] != held.get(part):
            raise _out(namespace, f"entities.json: {key} differs from the base bundle's in its {part}")
    has = set(map(_key, held["parents"]))
    new = [parent for parent in record["parents"] if _key(parent) not in has]
    for parent in map(_key, new):
        if parent in reserved:
            raise _out(namespace, f"entities.json: {key} may not join {parent}, which the base bundle uses")
        if parent not in own.records or own.records[parent]["uid"]["type"] != ROLE:
            raise _out(
                namespace,
                f"entities.json: {key} may only join roles of the namespace, not {parent}; define it",
            )
    if new:
        yield key, {**held, "parents": [*held["parents"], *new]}


def _with_joined(base: Parsed, joined: Mapping[str, Mapping[str, Any]]) -> cedarpy.Entities:
    """Return the base's entities, some of them with more parents, checked against the base's schema again."""
    records = {**base.records, **joined}
    rendered = [
        record for record in records.values() if record["uid"]["type"] != ACTION
    ]  # the schema adds these
    return cedarpy.Entities.from_json_str(json.dumps(rendered), base.schema, release_gil=True)


def _check_action(
    key: str, record: Mapping[str, Any], base: Parsed, named_by_base: set[str], namespace: str
) -> Iterator[Mapping[str, Any]]:
    """Yield a new action whose groups are its own; nothing when the base declares the action."""
    ancestors = set(map(_key, record["parents"]))
    if key in base.records:
        if not ancestors <= set(map(_key, base.records[key]["parents"])):
            raise _out(namespace, f"schema: {key} is in groups where the base bundle does not have it")
        return
    name = record["uid"]["id"]
    service = name.partition("/")[0]
    if "/" in name and base.methods.describes(service):
        raise _out(namespace, f"schema: {key} is not a method that the base bundle's descriptors know")
    allowed = {uid(ACTION, ANY_ACTION), uid(ACTION, service)}
    for group in sorted(ancestors - allowed):
        if group in base.records or group in named_by_base:
            raise _out(namespace, f"schema: {key} may not join {group}, which the base bundle uses")
    yield record


def _world(
    entities: cedarpy.Entities,
    records: Mapping[str, Mapping[str, Any]],
    methods: MethodTable,
    listed: frozenset[str],
) -> World:
    """Add an action to stand for the undeclared methods of each listed service, and index the ancestors."""
    actions = frozenset(r["uid"]["id"] for r in records.values() if r["uid"]["type"] == ACTION)
    ancestors = {key: frozenset(map(_key, r["parents"])) for key, r in records.items() if r["parents"]}
    # gRPC services, not other groups of methods: a call to "/readonly/x" must not count as being in "readonly"
    spelled_out = {a.partition("/")[0] for a in actions if "/" in a}
    services = {a for a in actions if "." in a and "/" not in a and a not in spelled_out}
    groups = services | {a for a in actions & listed if "/" not in a}
    added = []
    for group in sorted(groups):
        name, parent = f"{group}/{UNDECLARED}", uid(ACTION, group)
        if name not in actions:
            ancestors[uid(ACTION, name)] = ancestors.get(parent, frozenset()) | {parent}
            parents = [{"type": ACTION, "id": group}]
            added.append({"uid": {"type": ACTION, "id": name}, "attrs": {}, "parents": parents})
    everything = entities.with_added_json_str(json.dumps(added))
    return World(everything, ancestors, actions, frozenset(groups), methods)


def _services_of(base: Parsed, namespace: str) -> Iterator[str]:
    mesh = base.bundle.mesh
    if mesh is not None:
        yield from (name for name, s in mesh.services.items() if s.namespace == namespace)


def _mentioned(value: object) -> Iterator[str]:
    """Every entity that a rendered entity refers to, in attributes, tags or parents."""
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if isinstance(item.get("type"), str) and isinstance(item.get("id"), str):
                yield _key(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _plain(record: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    parents = sorted(map(_key, record["parents"]))
    return (
        json.dumps(record["attrs"], sort_keys=True),
        json.dumps(record.get("tags"), sort_keys=True),
        parents,
    )


def _key(value: Mapping[str, Any]) -> str:
    return uid(value["type"], value["id"])


def _out(namespace: str, what: str) -> EvidenceError:
    return EvidenceError(Reason.BUNDLE_OUT_OF_NAMESPACE, f"namespace {namespace}: {what}")
