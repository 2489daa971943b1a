"""What is wrong with `@audit` on a policy: there is one value, on permits, and somebody must be able to read."""

from collections.abc import Mapping
from typing import Final

from cedarpy import pst

from trust.bundle import Bundle
from trust.policy.cedar_text import Statement
from trust.policy.problems import Problem, Severity
from trust.policy.rules import AUDIT_PAYLOAD
from trust.policy.validation import at

AUDIT: Final = AUDIT_PAYLOAD[0]


def audit_problems(
    statement: Statement, auditors: Mapping[str, str] | None, described: frozenset[str] | None
) -> list[Problem]:
    """Return what is wrong with the `@audit` that `statement` has.

    Args:
        statement: a policy with that annotation.
        auditors: of the base bundle; None when it is not at hand.
        described: the methods that have descriptors; None when that is not known.
    """
    value, needle = statement.policy.annotations[AUDIT], f"@{AUDIT}"
    if statement.policy.effect != "permit":
        what = f"@{AUDIT} does nothing on a forbid: what is refused is recorded, but not its payload"
        return [at(statement, what, "put it on the permits, or remove it", needle)]
    if (AUDIT, value) != AUDIT_PAYLOAD:
        what = f'@{AUDIT}("{value[:80]}") is an obligation that this version does not have; calls would be refused'
        return [at(statement, what, f'write @{AUDIT}("{AUDIT_PAYLOAD[1]}"), or remove it', needle)]
    if auditors is not None and not auditors:
        what = "the base bundle names no auditor, so nobody could read the payloads; calls would be refused"
        hint = "make a key with 'egm keys new NAME --purpose auditor', then in bundle.yaml: auditors: {NAME: KEY}"
        return [at(statement, what, hint, needle)]
    if described is not None and (method := _undescribed(statement.policy, described)):
        what = f"no descriptor says whether {method} has one response, so only the opening message is kept"
        hint = "add descriptors.binpb (egm policy schema --reflect) to keep responses, too"
        return [at(statement, what, hint, needle, Severity.WARNING)]
    return []


def auditors_of(base: Bundle | None) -> Mapping[str, str] | None:
    """Return the auditors that a base bundle names; None when there is none at hand."""
    return None if base is None or base.mesh is None else base.mesh.auditors


def _undescribed(policy: pst.Template, described: frozenset[str]) -> str | None:
    """Return what the policy is about and nothing describes; None for groups of which something may be described."""
    if isinstance(policy.action, pst.ActionEq) and "/" in policy.action.entity.id:
        return None if policy.action.entity.id in described else str(policy.action.entity.id)
    return None if described else "any of its methods"
