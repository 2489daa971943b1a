"""The permits of a recommended policy: for each set of callers that call exactly the same methods of a service, one."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trust import limits
from trust.bundle import Bundle
from trust.policy.descriptors import MethodTable
from trust.policy.entities_text import parse_entities
from trust.spiffe import SpiffeId

PREFIX: Final = "recommended-"


@dataclass(frozen=True, slots=True, order=True)
class Observed:
    """One edge: calls that were executed, and of them those that the policy of then would have refused at level 4."""

    caller: str  # SPIFFE ID; empty: not identified
    service: str
    method: str
    executed: int
    would_deny: int = 0
    revoked: int = 0  # of these, for a revocation or a quarantine


@dataclass(slots=True)
class Work:
    """What is being made."""

    base: Bundle | None
    settings: dict[str, Any]
    trust_domain: str
    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)  # policy ids
    kept: int = 0
    added: int = 0
    edges: int = 0


@dataclass(frozen=True, slots=True)
class Permit:
    """One new policy: who may call which methods."""

    id: str
    callers: tuple[str, ...]
    edges: tuple[Observed, ...]


def permit_service(work: Work, service: str, edges: Sequence[Observed], period: str) -> list[Permit]:
    """Write the policies of one service; return them."""
    methods_of: dict[str, set[str]] = defaultdict(set)
    for one in edges:
        methods_of[one.caller].add(one.method)
    callers_of: dict[frozenset[str], list[str]] = defaultdict(list)
    for caller, called in sorted(methods_of.items()):
        callers_of[frozenset(called)].append(caller)
    permits = []
    lines = [f"// Who called {service}{period and f' ({period})'}: review before anybody signs.", *_UNKNOWN]
    for methods, callers in sorted(callers_of.items(), key=lambda item: item[1]):
        mine = tuple(one for one in edges if one.caller in callers)
        principal, who = _principal(work, service, callers)
        word = who if who.startswith(f"{service}-") else f"{service}-{who}"
        name = _free(f"{PREFIX}{word}"[:120], work.taken)
        permits.append(Permit(name, tuple(callers), mine))
        lines += ["", *_comments(mine), f"@id({json.dumps(name)})", "permit("]
        lines += [
            f"  {principal},",
            f"  {_action(work, methods)},",
            f"  resource == Service::{json.dumps(service)}",
            ");",
        ]
    work.files[f"policies/{PREFIX}{service}.cedar"] = ("\n".join(lines) + "\n").encode()
    work.added += len(permits)
    work.edges += len(edges)
    return permits


_UNKNOWN: Final = (
    "// Not known from records: which values of a request are legitimate (add `when { context.request... }`), which",
    "// calls happen less often than the time observed, and which of those observed should not have happened.",
    '// At level 5 a stream whose service speaks before its caller needs @permit("method") after the @id.',
)


def _comments(edges: Sequence[Observed]) -> list[str]:
    lines = []
    for one in edges:
        rare = ", RARE: is it meant to be allowed?" if one.executed < limits.RARE_EDGE_CALLS else ""
        lines.append(f"// {SpiffeId.parse(one.caller).name} {one.method}: {one.executed} calls{rare}")
    return lines


def _principal(work: Work, service: str, callers: Sequence[str]) -> tuple[str, str]:
    """Return the scope that names exactly these callers, and a word for them."""
    if len(callers) == 1:
        return f"principal == Workload::{json.dumps(callers[0])}", SpiffeId.parse(callers[0]).name
    role = _exact_role(work, set(callers)) or _new_role(work, service, callers)
    return f"principal in Role::{json.dumps(role)}", re.sub(r"[^a-z0-9-]+", "-", role.lower()).strip(
        "-"
    ) or "role"


def _exact_role(work: Work, callers: set[str]) -> str | None:
    """Return a role in force that has exactly these members, and is in no other role and holds none."""
    members: dict[str, set[str]] = defaultdict(set)
    nested: set[str] = set()  # roles in roles
    if work.base is not None:
        for entity in parse_entities(work.base.entities.encode())[0]:
            for kind, parent in entity.parents:
                if entity.type == "Workload" and kind == "Role":
                    members[parent].add(entity.id)
                elif entity.type == "Role":
                    nested |= {parent, entity.id}
    return next((role for role in sorted(members) if members[role] == callers and role not in nested), None)


def _new_role(work: Work, service: str, callers: Sequence[str]) -> str:
    roles = work.settings.setdefault("roles", {})
    names = [SpiffeId.parse(caller).name for caller in callers]
    held = next((role for role, members in roles.items() if members == names), None)
    if held is not None:
        return str(held)
    taken = {*roles, *(_role_names(work.base) if work.base is not None else ())}
    name = _free(f"{service}-callers", taken)
    roles[name] = names
    return name


def _role_names(base: Bundle) -> set[str]:
    return {entity.id for entity in parse_entities(base.entities.encode())[0] if entity.type == "Role"}


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name


def _action(work: Work, methods: Iterable[str]) -> str:
    """Return the scope that names exactly these methods: a whole gRPC service where all of its methods were called."""
    table = MethodTable.parse(None if work.base is None else work.base.descriptors)
    by_service: dict[str, set[str]] = defaultdict(set)
    for method in methods:
        by_service[method.partition("/")[0]].add(method)
    names: list[str] = []
    whole = False
    for service, called in sorted(by_service.items()):
        described: set[str] = {name for name in table.methods() if name.partition("/")[0] == service}
        if described and called == described:
            names.append(service)
            whole = True
        else:
            names += sorted(called)
    if len(names) == 1 and not whole:
        return f"action == Action::{json.dumps(names[0])}"
    return f"action in [{', '.join(f'Action::{json.dumps(name)}' for name in names)}]"
