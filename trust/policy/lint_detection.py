"""Answers to incidents that could never be given."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from trust.bundle import MESH
from trust.detection import Action
from trust.mesh import MeshSettings
from trust.policy.problems import Problem, Severity
from trust.policy.yaml_text import Document

Where = tuple[str | int, ...]


def detection_problems(mesh: MeshSettings, document: Document | None = None) -> list[Problem]:
    """Return what cannot work of `detection`.

    Args:
        mesh: the signed settings.
        document: bundle.yaml, for its line numbers; None when there is only the bundle.
    """
    return [
        Problem(MESH, 0, what, hint, severity)
        if document is None
        else replace(document.problem(place, what, hint), severity=severity)
        for place, what, hint, severity in _problems(mesh)
    ]


def _never_of_two(rule: str) -> bool:
    """Behaviour is learned from the records of all nodes together; T001, T007 and T011 are about one of them."""
    return rule.startswith("EGM-B") or rule in {"EGM-T001", "EGM-T007", "EGM-T011"}


# They name nobody, or a node: no record moves anything against a node.
_ALERT_ONLY: Final = frozenset({"EGM-T005", "EGM-T008", "EGM-T010", "EGM-T011"})


def _problems(mesh: MeshSettings) -> Iterator[tuple[Where, str, str, Severity]]:
    """Yield where it is, what is wrong, what to do, how bad. A missing key is a warning: `egm up` puts one in."""
    settings = mesh.detection
    if settings is None:
        return
    if settings.respond and settings.restricting() and not mesh.emergency_keys:
        hint = "name the responder's key under emergency_keys, or set respond: false"
        what = "nothing can be done about an incident without an emergency key"
        yield ("detection", "respond"), what, hint, Severity.WARNING
    longest_s = mesh.revocation_max_ttl_s
    for number, rule in enumerate(settings.responses):
        where: Where = ("detection", "responses", number)
        if rule.ttl_s > longest_s and set(rule.do) - {Action.ALERT}:
            what = f"{rule.ttl_s} s is longer than a directive may last ({longest_s} s)"
            yield (*where, "ttl_s"), what, "shorten it, or raise revocation_max_ttl_s", Severity.ERROR
        count, _, group = rule.approval.partition(" of ")
        if group and len(mesh.approver_groups.get(group, {})) < int(count):
            what = f"approver group {group!r} has not {count} approvers, so no call could ever be approved"
            yield (*where, "approval"), what, "name them under approver_groups", Severity.ERROR
        if rule.min_nodes > 1 and _never_of_two(rule.on):
            what = f"no two nodes ever show {rule.on} each, so with min_nodes: {rule.min_nodes} this never happens"
            yield (*where, "min_nodes"), what, "remove min_nodes", Severity.WARNING
        if rule.on in _ALERT_ONLY and set(rule.do) - {Action.ALERT}:
            what = f"{rule.on} names no workload, so nothing but an alert ever comes of it"
            hint = "write do: [alert]; a person quarantines a node with: egm node quarantine"
            yield (*where, "do"), what, hint, Severity.WARNING
        if rule.on in settings.off:
            what = f"{rule.on} is off, so this never happens"
            yield (*where, "on"), what, "remove one of the two", Severity.ERROR
