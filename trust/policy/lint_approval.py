"""What is wrong with the approvals that a policy asks for: how they are written, and whether they can be given."""

from collections.abc import Mapping
from typing import Final

from trust import limits
from trust.approval_rule import (
    REQUIRE,
    WAIT,
    WINDOW,
    Groups,
    Requirement,
    parse_duration,
    parse_requirement,
    why_unmeetable,
)
from trust.bundle import Bundle
from trust.errors import EvidenceError
from trust.policy.cedar_text import Statement
from trust.policy.problems import Problem, Severity
from trust.policy.validation import at

_HOW: Final = 'write @require_approval("2 of GROUP") with one of approver_groups in bundle.yaml'
_MOST_S: Final[Mapping[str, int]] = {WAIT: limits.MAX_APPROVAL_WAIT_S, WINDOW: limits.MAX_APPROVAL_LIFETIME_S}


def approval_problems(statement: Statement, name: str, groups: Groups | None) -> list[Problem]:
    """Return what is wrong with one of the approval annotations that `statement` has.

    Args:
        statement: a policy with that annotation.
        name: which of `trust.approval_rule.ANNOTATIONS`.
        groups: of the base bundle; None when it is not at hand.
    """
    value, needle = statement.policy.annotations[name], f"@{name}"
    if statement.policy.effect != "permit":
        what = f"@{name} does nothing on a forbid: approvers cannot allow what is forbidden"
        return [at(statement, what, "put it on the permits, or remove it", needle)]
    if name in _MOST_S:
        return _duration_problems(statement, name, value)
    requirement = _written(value)
    if requirement is None:
        what = f'@{REQUIRE}("{value[:80]}") does not say how many of which group; calls would be refused'
        return [at(statement, what, _HOW, needle)]
    return _people_problems(statement, requirement, groups)


def groups_of(base: Bundle | None) -> Groups | None:
    """Return the approver groups that a base bundle names; None when there is none at hand."""
    return None if base is None or base.mesh is None else base.mesh.approver_groups


def _written(value: str) -> Requirement | None:
    """Return what the annotation asks; None when it cannot be read, or says what has an annotation of its own."""
    try:
        requirement = parse_requirement(value)
    except EvidenceError:
        return None
    return None if requirement.wait_s or requirement.window_s else requirement


def _duration_problems(statement: Statement, name: str, value: str) -> list[Problem]:
    needle = f"@{name}"
    if REQUIRE not in statement.policy.annotations:
        what = f"@{name} means nothing without @{REQUIRE}"
        return [at(statement, what, f'add @{REQUIRE}("2 of GROUP"), or remove it', needle)]
    try:
        parse_duration(value, _MOST_S[name])
    except EvidenceError as error:
        what = f'@{name}("{value[:20]}"): {error.detail.removeprefix("approval: ")}; calls would be refused'
        return [at(statement, what, 'write a duration such as "30s" or "10m"', needle)]
    return []


def _people_problems(statement: Statement, requirement: Requirement, groups: Groups | None) -> list[Problem]:
    needle = f"@{REQUIRE}"
    if groups is None:
        return []
    why = why_unmeetable(requirement, groups)
    if why:
        hint = (
            "make keys with 'egm keys new NAME --purpose approvals', then in bundle.yaml of the base: "
            f"approver_groups: {{{requirement.group}: {{NAME: KEY}}}}"
        )
        return [at(statement, f"{why}; calls would be refused", hint, needle)]
    if len(groups[requirement.group]) == requirement.needed > 1:
        what = f"every member of {requirement.group} must approve: one who is away stops these calls"
        return [at(statement, what, "add a member, or ask for fewer", needle, Severity.WARNING)]
    return []
