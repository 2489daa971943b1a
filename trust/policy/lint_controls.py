"""What is wrong with `@rate` and `@budget` on a policy: how they are written, and whether the field can be summed."""

from collections.abc import Iterable, Mapping

from cedarpy import pst

from trust.bundle import Bundle
from trust.errors import EvidenceError
from trust.policy.cedar_text import Statement
from trust.policy.controls import BUDGET, HOW_TO_BUDGET, HOW_TO_RATE, control_of, field_problem
from trust.policy.descriptors import MethodInfo, MethodTable
from trust.policy.memberships import action_groups
from trust.policy.problems import Problem, Severity
from trust.policy.validation import at

Methods = Mapping[str, MethodInfo]


def control_problems(statement: Statement, name: str, methods: Methods | None, schema: str) -> list[Problem]:
    """Return what is wrong with one of `CONTROLS` that `statement` has.

    Args:
        statement: a policy with that annotation.
        name: which.
        methods: those with a descriptor; None when that is not known.
        schema: of the bundle, which says what is in which group.
    """
    value, needle = statement.policy.annotations[name], f"@{name}"
    if statement.policy.effect != "permit":
        what = f"@{name} does nothing on a forbid, which allows nothing that could be limited"
        return [at(statement, what, "put it on the permits, or remove it", needle)]
    control = control_of(name, value)
    if control is None:
        what = f'@{name}("{value[:80]}") limits nothing that can be measured; calls would be refused'
        return [at(statement, what, HOW_TO_BUDGET if name == BUDGET else HOW_TO_RATE, needle)]
    if not control.field or methods is None:
        return []
    covered = sorted(_covered(statement.policy, schema, methods))
    problems = [
        at(statement, f"{what}, so calls of it would be refused", hint, needle)
        for method in covered
        for what, hint in _unsummable(method, methods.get(method), control.field)
    ]
    if not covered:
        what = "no method that this policy permits is known, so calls would be refused"
        hint = "name the method, and add descriptors.binpb (egm policy schema --reflect)"
        problems.append(at(statement, what, hint, needle, Severity.WARNING))
    return problems


def methods_of(descriptors: bytes | None, base: Bundle | None) -> Methods | None:
    """Return the methods that a bundle (and its base) has descriptors of; None when they cannot be read."""
    try:
        table = MethodTable.parse(None if base is None else base.descriptors)
        table = table.with_fallback(MethodTable.parse(descriptors))
    except EvidenceError:
        return None  # reported with the descriptors
    return {name: info for name in table.methods() if (info := table.get(name)) is not None}


def _unsummable(method: str, info: MethodInfo | None, field: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    hint = f'correct the field, name the methods that have it, or count calls: @{BUDGET}("… per day")'
    if info is None:
        yield (
            f"no descriptor says what {method} is asked",
            "add descriptors.binpb (egm policy schema --reflect), or count calls",
        )
    elif not info.has_request:
        yield f"{method} has no single request", hint
    elif problem := field_problem(info.input_type, field):
        yield f"{problem} ({method})", hint


def _covered(policy: pst.Template, schema: str, methods: Methods) -> set[str]:
    """Return the methods that the scope of a policy names, also by group; all there are for `action` alone."""
    groups = action_groups(schema)
    known = {name for name in (*groups, *methods) if "/" in name}
    match policy.action:
        case pst.ActionEq(entity=uid):
            return {str(uid.id)} if "/" in uid.id else set()
        case pst.ActionIn(entities=uids):
            named = {str(uid.id) for uid in uids}
            return {name for name in known if named & _above(name, groups)}
        case _:
            return known


def _above(name: str, groups: Mapping[str, set[str]]) -> set[str]:
    """Return a method and every group that it is in."""
    found, waiting = {name}, [name]
    while waiting:
        for group in groups.get(waiting.pop(), ()):
            if group not in found:
                found.add(group)
                waiting.append(group)
    return found
