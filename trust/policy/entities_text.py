"""`entities.json`: who is in which role and which service in which group, with line numbers."""

import json
import re
from dataclasses import dataclass
from typing import Final

from trust.compact import members_once
from trust.errors import EvidenceError
from trust.policy.problems import Problem
from trust.spiffe import SpiffeId, check_name

Uid = tuple[str, str]  # (type, id)
FILE: Final = "entities.json"
# entity type -> what it may be in
PARENT_OF: Final = {
    "Workload": "Role",
    "Role": "Role",
    "Service": "ServiceGroup",
    "ServiceGroup": "ServiceGroup",
}
_SPACE = re.compile(r"[ \t\r\n]*")
_SHAPE: Final = 'write {"uid": {"type": "Workload", "id": "spiffe://…"}, "attrs": {}, "parents": []}'


@dataclass(frozen=True, slots=True)
class Entity:
    """One Cedar entity. This version gives entities no attributes."""

    type: str
    id: str
    parents: frozenset[Uid]

    @property
    def uid(self) -> Uid:
        """Its type and id."""
        return (self.type, self.id)

    def to_json(self) -> dict[str, object]:
        """Return the entity in Cedar's JSON form."""
        parents = [{"type": kind, "id": name} for kind, name in sorted(self.parents)]
        return {"uid": {"type": self.type, "id": self.id}, "attrs": {}, "parents": parents}


def parse_entities(data: bytes) -> tuple[list[Entity], dict[Uid, int], list[Problem]]:
    """Return the entities, the line of each, and every mistake; total over arbitrary bytes."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return [], {}, [Problem(FILE, line, "is not UTF-8 text", "save it as UTF-8")]
    try:
        items = _items(text)
    except json.JSONDecodeError as error:
        return [], {}, [Problem(FILE, error.lineno, f"JSON: {error.msg}", "it must be one array of entities")]
    except (RecursionError, ValueError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        return [], {}, [Problem(FILE, 1, f"JSON: {what[:200]}", "it must be one array of entities")]
    entities: list[Entity] = []
    lines: dict[Uid, int] = {}
    problems: list[Problem] = []
    for line, item in items:
        entity = _entity(item, line)
        if isinstance(entity, Problem):
            problems.append(entity)
        elif entity.uid in lines:
            what = f'{entity.type}::"{entity.id}" appears twice (first on line {lines[entity.uid]})'
            problems.append(Problem(FILE, line, what, "merge the two"))
        else:
            entities.append(entity)
            lines[entity.uid] = line
    return entities, lines, problems or _cycles(entities, lines)


def _items(text: str) -> list[tuple[int, object]]:
    """Return each item of the top-level array with the line it begins on."""
    decoder = json.JSONDecoder(object_pairs_hook=members_once)

    def skip(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match else at

    def expect(at: int, characters: str) -> None:
        if at >= len(text) or text[at] not in characters:
            raise json.JSONDecodeError(f"expected one of {' '.join(characters)}", text, at)

    items: list[tuple[int, object]] = []
    line, counted = 1, 0
    at = skip(0)
    expect(at, "[")
    at = skip(at + 1)
    if text[at : at + 1] != "]":
        while True:
            line += text.count("\n", counted, at)
            counted = at
            item, end = decoder.raw_decode(text, at)
            items.append((line, item))
            at = skip(end)
            expect(at, ",]")
            if text[at] == "]":
                break
            at = skip(at + 1)
    if skip(at + 1) != len(text):
        raise json.JSONDecodeError("text after the end of the array", text, at + 1)
    return items


def _entity(item: object, line: int) -> Entity | Problem:
    if (
        not isinstance(item, dict)
        or not item.keys() <= {"uid", "attrs", "parents", "tags"}
        or "uid" not in item
    ):
        return Problem(FILE, line, "not an entity", _SHAPE)
    uid, parents = _uid(item["uid"]), item.get("parents", [])
    if uid is None or not isinstance(parents, list):
        return Problem(FILE, line, "its uid or parents have the wrong form", _SHAPE)
    kind, name = uid
    if item.get("attrs", {}) != {} or item.get("tags", {}) != {}:
        return Problem(FILE, line, f'{kind}::"{name}" has attributes or tags', "use roles and groups instead")
    if kind not in PARENT_OF:
        return Problem(FILE, line, f"unknown entity type {kind!r}", f"use one of {', '.join(PARENT_OF)}")
    if wrong := _bad_id(kind, name):
        return Problem(FILE, line, f'{kind}::"{name}": {wrong}', "")
    found: set[Uid] = set()
    for parent in parents:
        parent_uid = _uid(parent)
        if parent_uid is None or parent_uid[0] != PARENT_OF[kind] or not parent_uid[1].isprintable():
            return Problem(FILE, line, f'{kind}::"{name}": a parent must be a {PARENT_OF[kind]}', _SHAPE)
        found.add(parent_uid)
    return Entity(kind, name, frozenset(found))


def _uid(value: object) -> Uid | None:
    if isinstance(value, dict) and value.keys() == {"__entity"}:
        value = value["__entity"]
    if not isinstance(value, dict) or value.keys() != {"type", "id"}:
        return None
    kind, name = value["type"], value["id"]
    return (kind, name) if isinstance(kind, str) and isinstance(name, str) else None


def _bad_id(kind: str, name: str) -> str:
    """Return why `name` cannot be the id of a `kind`; empty when it can."""
    try:
        if kind == "Workload":
            SpiffeId.parse(name)
        elif kind == "Service":
            check_name(name)
        elif not name or not name.isprintable():
            return "the name must be printable text"
    except EvidenceError as error:
        return error.detail
    except UnicodeError:
        return "the name must be printable text"
    return ""


def _cycles(entities: list[Entity], lines: dict[Uid, int]) -> list[Problem]:
    """Find roles or groups that contain themselves; Cedar refuses to load them."""
    parents = {entity.uid: entity.parents for entity in entities}
    done: set[Uid] = set()
    for start in sorted(parents):
        path: dict[Uid, None] = {}
        stack: list[tuple[Uid, bool]] = [(start, False)]
        while stack:
            uid, leaving = stack.pop()
            if leaving:
                path.pop(uid)
                done.add(uid)
            elif uid in path:
                what = f'{uid[0]}::"{uid[1]}" is, through its parents, in itself'
                return [Problem(FILE, lines[uid], what, "remove one of the parents")]
            elif uid not in done and uid in parents:
                path[uid] = None
                stack.append((uid, True))
                stack += [(parent, False) for parent in sorted(parents[uid])]
    return []
