"""What is done about an incident: signed rules decide, within signed bounds; everything is written down first.

The responder can only take away, and only for a time. It does nothing to whom the policy protects, nothing beyond its
hourly allowance, nothing about what is long past, and nothing at all in a dry run, which says what it would do. One
node's word moves at most half of the allowance, and never against a node: only a proof does that.
"""

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from control_plane.core.findings import Finding, member_of
from control_plane.core.incidents import Incident
from trust import limits
from trust.detection import Action, DetectionSettings, ResponseRule
from trust.errors import EvidenceError
from trust.revocation import Directive, Kind, Subject
from trust.spiffe import SpiffeId

PROVEN: Final = "EGM-T007"  # rests on a proof that anybody can verify, not on a node's word
_TOO_OLD_MS: Final = limits.INCIDENT_GROUP_S * 1000


@enum.unique
class Fate(enum.StrEnum):
    """What became of one action; stored, so never renamed."""

    PLANNED = "planned"  # decided and written down; being done
    DONE = "done"
    FAILED = "failed"  # could not be done; `why` says what a person must do
    WOULD = "would"  # a dry run
    PROTECTED = "protected"
    LIMITED = "limited"  # the hourly allowance is used up
    NOBODY = "nobody"  # the incident names no member that it could be done to
    WAITS = "waits"  # for the evidence of more nodes
    PAST = "past"  # the finding is too old


_IN_EFFECT: Final = frozenset({Fate.PLANNED, Fate.DONE})


@dataclass(frozen=True, slots=True)
class Response:
    """One action about one incident. `value` is that of a directive of `kind`; both are empty for an alert."""

    incident: str
    action: Action
    fate: Fate
    at_ms: int
    kind: str = ""
    value: str = ""
    ttl_s: int = 0
    why: str = ""
    directive: str = ""  # id of the directive that did it

    @property
    def until_ms(self) -> int:
        """When it ends by itself, Unix ms; 0 for an alert."""
        return self.at_ms + self.ttl_s * 1000 if self.ttl_s else 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What it does, to whom."""
        return (self.action.value, self.kind, self.value)


def plan(
    settings: DetectionSettings,
    incident: Incident,
    finding: Finding,
    *,
    held: Sequence[Response],
    used: int,
    used_alone: int = 0,
    trust_domain: str,
    now_ms: int,
) -> list[Response]:
    """Return what is to be done, or is not done and why; nothing that was said before.

    Args:
        settings: of the policy in force.
        incident: as it is with the finding.
        finding: new.
        held: earlier responses to the incident, oldest first.
        used: directives that were issued automatically in the last hour.
        used_alone: those of them that rest on the word of the one node on which `incident` rests.
        trust_domain: of this mesh.
        now_ms: Unix ms; it is what directives are issued at.
    """
    found: list[Response] = []
    for action, kind, value, rule in _wanted(settings, incident, finding.member, trust_domain):
        ttl_s = 0 if not kind else limits.MIN_RESPONSE_TTL_S if action is Action.CUT else rule.ttl_s
        fate, why = Fate.PLANNED, ""
        if now_ms - finding.at_ms > _TOO_OLD_MS:
            fate, why = Fate.PAST, "it was over before it was noticed"
        elif action is not Action.ALERT:
            fate, why = _fate(
                settings, incident, rule, finding.member, value=value, used=used, used_alone=used_alone
            )
        one = Response(incident.id, action, fate, now_ms, kind, value, ttl_s, why)
        if _said((*held, *found), one, now_ms):
            continue
        # directives of one moment must differ in their sequence
        one = Response(incident.id, action, fate, now_ms + len(found), kind, value, ttl_s, why)
        found.append(one)
        if fate is Fate.PLANNED and kind:
            used, used_alone = used + 1, used_alone + 1
    return found


def withdrawn(
    settings: DetectionSettings, response: Response, incident: Incident, *, trust_domain: str
) -> tuple[Fate, str] | None:
    """Return why a planned response must not be done any more; None when it is still to be done.

    Policy may have changed between the plan and the deed: a control plane was down, or its key away.
    """
    member = member_of(incident.subject)
    if response.action is Action.ALERT:
        return None
    if member is not None and member.name in settings.protected:
        return Fate.PROTECTED, f"policy protects {member.name} from automatic responses by now"
    if not settings.respond:
        return Fate.WOULD, "a dry run: policy says respond: false by now"
    asked = {
        (a.value, kind, value) for a, kind, value, _ in _wanted(settings, incident, member, trust_domain)
    }
    if response.key not in asked:
        return Fate.WOULD, "policy does not ask for it any more"
    return None


def directive_of(response: Response, incident: Incident, trust_domain: str) -> Directive:
    """Return the directive of a planned response: always the same one, so that doing it twice does nothing more.

    Raises:
        EvidenceError: REVOCATION_INVALID.
    """
    reason = f"incident {incident.id}: {incident.rule} {incident.info.title}"
    issued_s = response.at_ms // 1000
    return Directive(
        trust_domain,
        response.at_ms,
        Subject(Kind(response.kind), response.value),
        issued_s,
        issued_s + response.ttl_s,
        reason[: limits.MAX_REVOCATION_REASON_CHARS],
    )


def _wanted(
    settings: DetectionSettings, incident: Incident, member: SpiffeId | None, trust_domain: str
) -> Iterator[tuple[Action, str, str, ResponseRule]]:
    """Yield each action that a rule asks for, as kind and value of its directive (empty: nobody to do it to)."""
    for rule in settings.responses:
        if not rule.covers(incident.info):
            continue
        for action in rule.do:
            kind, value = "", ""
            if member is not None and member.trust_domain == trust_domain:
                kind, value = _subject(action, rule, member, proven=incident.rule == PROVEN)
            yield action, kind, value, rule


def _subject(action: Action, rule: ResponseRule, member: SpiffeId, *, proven: bool) -> tuple[str, str]:
    """Return kind and value of the directive; empty when the action is none that can be done to such a member.

    Nodes carry the mesh: a record that names one as its caller is a node's word, and moves nothing against another.
    """
    if action is Action.ALERT or (member.kind != Kind.WORKLOAD and not proven):
        return "", ""
    if action is Action.QUARANTINE:
        kind, value = Kind(member.kind), member.name
    elif member.kind != Kind.WORKLOAD:
        return "", ""
    elif action is Action.CUT:
        kind, value = Kind.WORKLOAD, member.name
    elif action is Action.THROTTLE:
        kind, value = Kind.THROTTLE, f"{member.name} {rule.rate}"
    else:
        kind, value = Kind.APPROVAL, f"{member.name} {rule.approval}"
    try:
        Subject(kind, value)
    except EvidenceError:
        return "", ""  # a name that no directive can hold
    return kind.value, value


def _fate(
    settings: DetectionSettings,
    incident: Incident,
    rule: ResponseRule,
    member: SpiffeId | None,
    *,
    value: str,
    used: int,
    used_alone: int,
) -> tuple[Fate, str]:
    if not value or member is None:
        return Fate.NOBODY, "it is about no member that this can be done to"
    if member.name in settings.protected:
        return Fate.PROTECTED, f"policy protects {member.name} from automatic responses"
    shown = max(1, len(incident.alone))
    if shown < rule.min_nodes:
        what = "the records of one node show it" if shown == 1 else f"those of {shown} nodes each show it"
        return Fate.WAITS, f"{what}, {rule.min_nodes} nodes are asked for"
    if not settings.respond:
        return Fate.WOULD, "a dry run: policy says respond: false"
    if used >= settings.max_directives_per_hour:
        return Fate.LIMITED, f"{used} directives in an hour are all that policy allows"
    if incident.only_node and used_alone >= -(-settings.max_directives_per_hour // 2):
        return (
            Fate.LIMITED,
            f"{used_alone} directives in an hour rest on the word of {incident.only_node} alone",
        )
    return Fate.PLANNED, ""


def _said(earlier: Iterable[Response], new: Response, now_ms: int) -> bool:
    """Whether it is in effect, or the same was said of it last."""
    same = [one for one in earlier if one.key == new.key]
    if not same:
        return False
    last = same[-1]
    if last.fate in _IN_EFFECT:
        return not last.kind or now_ms < last.until_ms
    return last.fate is new.fate
