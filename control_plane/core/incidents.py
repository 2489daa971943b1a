"""How findings become incidents: one incident per rule and subject while it goes on, with a history of who closed it.

Ids follow from what is found alone, so that two control planes that look at the same records name the same incident.
"""

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from control_plane.core.findings import Evidence, Finding
from control_plane.core.text import one_line
from trust import limits
from trust.detection import RULES, RuleInfo, Severity
from trust.errors import InputError, Reason

ID_DIGITS: Final = 16
MAX_WHY_CHARS: Final = 400


@enum.unique
class State(enum.StrEnum):
    """Whether somebody still has to look."""

    OPEN = "open"
    RESOLVED = "resolved"


@enum.unique
class Change(enum.StrEnum):
    """What a finding did to the incidents."""

    OPENED = "opened"
    REOPENED = "reopened"
    GREW = "grew"


@dataclass(frozen=True, slots=True)
class Incident:
    """Findings of one rule about one subject, with not more than INCIDENT_GROUP_S between them."""

    id: str
    rule: str
    subject: str
    state: State
    opened_ms: int
    last_ms: int
    findings: int
    text: str  # of the newest finding
    evidence: tuple[Evidence, ...]
    nodes: tuple[str, ...]  # whose records are its evidence, ascending
    resolved_by: str = ""  # SPIFFE ID of the operator
    resolved_why: str = ""
    resolved_ms: int = 0
    alone: tuple[str, ...] = ()  # nodes each of whose records show it without those of any other, ascending

    @property
    def only_node(self) -> str:
        """The node on whose word alone it rests; empty when there are several, or none."""
        return self.nodes[0] if len(self.nodes) == 1 else ""

    @property
    def info(self) -> RuleInfo:
        """The rule."""
        return RULES[self.rule]

    @property
    def severity(self) -> Severity:
        """That of its rule."""
        return self.info.severity


def finding_id(finding: Finding) -> str:
    """Return the id of a finding: the same for the same rule, subject and window. 32 hexadecimal digits."""
    what = f"finding by {finding.part}" if finding.part else "finding"
    return _digest(what, finding.rule, finding.subject, finding.window_ms)[:32]


def incident_id(rule: str, subject: str, window_ms: int) -> str:
    """Return the id of the incident that a finding opens. 16 hexadecimal digits."""
    return _digest("incident", rule, subject, window_ms)[:ID_DIGITS]


def fold(latest: Incident | None, finding: Finding) -> tuple[Incident, Change]:
    """Return the incident that a new finding belongs to, as it is then, and what that changed.

    Args:
        latest: the newest incident of the same rule and subject; None when there is none.
        finding: one that was not folded before.
    """
    fresh = incident_id(finding.rule, finding.subject, finding.window_ms)
    if latest is None or abs(finding.at_ms - latest.last_ms) > limits.INCIDENT_GROUP_S * 1000:
        return _opened(fresh, finding), Change.OPENED
    if latest.state is State.RESOLVED and finding.at_ms > latest.resolved_ms:
        if fresh != latest.id:
            return _opened(fresh, finding), Change.OPENED
        again = replace(latest, state=State.OPEN, resolved_by="", resolved_why="", resolved_ms=0)
        return _grown(again, finding), Change.REOPENED
    return _grown(latest, finding), Change.GREW


def resolved(incident: Incident, *, who: str, why: str, now_ms: int) -> Incident:
    """Return the incident closed by an operator.

    Raises:
        InputError: CONFLICT, if it is closed already; INPUT_INVALID, without a reason that can be shown.
    """
    if incident.state is State.RESOLVED:
        raise InputError(
            Reason.CONFLICT,
            f"incident {incident.id} was resolved by {incident.resolved_by}: {incident.resolved_why}",
        )
    why = why.strip()
    if not why or len(why) > MAX_WHY_CHARS or not why.isprintable():
        raise InputError(
            Reason.INPUT_INVALID,
            f"say in 1 to {MAX_WHY_CHARS} printable characters what it was and what was done",
        )
    return replace(incident, state=State.RESOLVED, resolved_by=who, resolved_why=why, resolved_ms=now_ms)


def _opened(identifier: str, finding: Finding) -> Incident:
    return Incident(
        id=identifier,
        rule=finding.rule,
        subject=finding.subject,
        state=State.OPEN,
        opened_ms=finding.at_ms,
        last_ms=finding.at_ms,
        findings=1,
        text=one_line(finding.text, limits.MAX_INCIDENT_TEXT_CHARS),
        evidence=finding.evidence[: limits.MAX_INCIDENT_EVIDENCE],
        nodes=_nodes((), finding),
        alone=_ascending(finding.alone),
    )


def _grown(incident: Incident, finding: Finding) -> Incident:
    kept = incident.evidence
    new = tuple(one for one in finding.evidence if one not in kept)
    newest = one_line(finding.text, limits.MAX_INCIDENT_TEXT_CHARS)
    return replace(
        incident,
        opened_ms=min(incident.opened_ms, finding.at_ms),
        last_ms=max(incident.last_ms, finding.at_ms),
        findings=incident.findings + 1,
        text=newest if finding.at_ms >= incident.last_ms else incident.text,
        evidence=(*kept, *new)[: limits.MAX_INCIDENT_EVIDENCE],
        nodes=_nodes(incident.nodes, finding),
        alone=_ascending((*incident.alone, *finding.alone)),
    )


def _nodes(known: tuple[str, ...], finding: Finding) -> tuple[str, ...]:
    return _ascending((*known, *(one.node for one in finding.evidence)))


def _ascending(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))[: limits.MAX_INCIDENT_NODES]


def _digest(what: str, rule: str, subject: str, window_ms: int) -> str:
    return hashlib.sha256(f"egm/{what}/v1\n{rule}\n{window_ms}\n{subject}".encode()).hexdigest()
