"""Whether groups in groups have too many members: Cedar holds, and takes the time to find, every one of them.

Measured with cedarpy 4.12.2: 4,000 action groups, each in the next, keep `Schema.from_str` busy for 16 s. So
memberships are counted before Cedar sees the text.
"""

import re
from collections.abc import Mapping
from typing import Final

from trust import limits

_TOKEN: Final = re.compile(r'//[^\n\r]*+|"(?:\\.|[^"\\]++)*+"|[A-Za-z_][A-Za-z0-9_]*+|[\[\],;:{}]')
_ENDS: Final = frozenset({"]", ";", "{", "}", "appliesTo", "attributes"})
_MARKS: Final = frozenset("[],;:{}")


def exceeds(parents: Mapping[str, set[str]], limit: int) -> bool:
    """Whether the ancestors of all members, added up, are more than `limit`. A cycle ends; Cedar refuses it."""
    found: dict[str, set[str]] = {}
    total = 0
    for start in parents:
        stack = [start]
        while stack:
            key = stack[-1]
            waiting = [p for p in parents[key] if p in parents and p not in found] if key not in found else []
            found.setdefault(key, set())  # known while it is visited, so that a cycle ends
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if found[key]:
                continue
            found[key] = parents[key].union(*(found.get(p, ()) for p in parents[key]))
            total += len(found[key])
            if total > limit:
                return True
    return False


def too_many_in_schema(schema: str) -> bool:
    """Whether the actions of a Cedar schema (human syntax, valid or not) are in too many groups.

    Counting too much is harmless: names that differ only in their namespace count as one.
    """
    return exceeds(action_groups(schema), limits.MAX_ACTION_MEMBERSHIPS)


def action_groups(schema: str) -> dict[str, set[str]]:
    """Return the groups that each action is declared to be in."""
    tokens = [t for t in _TOKEN.findall(schema) if not t.startswith("//")]
    parents: dict[str, set[str]] = {}
    at = 0
    while at < len(tokens):
        at += 1
        if tokens[at - 1] != "action":
            continue
        names, groups = [], set()
        while at < len(tokens) and tokens[at] not in _ENDS and tokens[at] != "in":
            names.append(tokens[at])
            at += 1
        if at < len(tokens) and tokens[at] == "in":
            at += 1
            while at < len(tokens) and tokens[at] not in _ENDS:
                groups.add(tokens[at].strip('"'))
                at += 1
        for name in names:
            if name not in _MARKS:
                parents.setdefault(name.strip('"'), set()).update(groups - _MARKS)
    return parents
