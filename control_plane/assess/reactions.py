"""What the control plane's analytics, alerts, detection, responses and review show of levels 1 and 2. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from control_plane.assess.answers import DENIALS
from control_plane.assess.model import MESH, Basis, Check, Outcome

BEHAVIOURAL: Final = "EGM-B"
THREAT: Final = "EGM-T"
_REACTIVE: Final = 2
_UNASKED: Final = "needs a probe node: run egm assess --probe full"


@dataclass(frozen=True, slots=True)
class Raised:
    """An incident or alert about our own synthetic callers."""

    id: str
    rule: str
    subject: str
    state: str
    actions: Sequence[str] = ()  # what was done about it, with its fate: "quarantine done"


@dataclass(frozen=True, slots=True)
class Watched:
    """What is known of one synthetic caller and service."""

    calls: int
    refused: int
    would_deny: int
    methods: int
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Reactions:
    """What was found. A problem says why something could not be asked, or does not work; "" when it does.

    Args:
        asked: whether synthetic callers did what must be noticed.
        calls: service -> what analytics count of our calls to it; None: it could not be asked.
        analytics_problem: why not.
        dashboard: services that the live dashboard shows; None: it could not be asked.
        watched: what is known of the noisy caller.
        incidents: about our callers.
        detection_problem: why detection or its responses do not work.
        rules_off: rules that the signed policy switches off.
        respond: whether the signed policy lets the control plane act.
        responses: what signed policy responds with.
        alerts: about our incidents.
        alert_rules: in the signed policy.
        alert_problems: of rules and channels.
        channels: that a test message was sent to, and what went wrong; "" when it arrived.
        quarantined: the response that denies everything to the noisy caller; "" when none was carried out.
        reached: "service on node" -> the reason of its answer to that caller afterwards.
        levels: service -> lowest level in force at a node that carries it.
        reviewed: service -> how recorded calls compare with the policy in force, by kind of change.
    """

    asked: bool
    calls: Mapping[str, int] | None = None
    analytics_problem: str = ""
    dashboard: Sequence[str] | None = None
    watched: Watched | None = None
    incidents: Sequence[Raised] = ()
    detection_problem: str = ""
    rules_off: Sequence[str] = ()
    respond: bool = False
    responses: Sequence[str] = ()
    alerts: Sequence[Raised] = ()
    alert_rules: int = 0
    alert_problems: Sequence[str] = ()
    channels: Mapping[str, str] = field(default_factory=dict)
    quarantined: str = ""
    reached: Mapping[str, str] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)
    reviewed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def judge(found: Reactions, services: Sequence[str]) -> list[Check]:
    """Return every check of levels 1 and 2 that looks at the control plane."""
    checks = [_alert(found), _anomaly(found), _behaviour(found), _attack(found)]
    for service in services:
        checks += [
            _counted(found, service),
            _shown(found, service),
            _reviewed(found, service),
            _response(found, service),
        ]
    return checks


def _check(  # noqa: PLR0917 (in the order of a sentence)
    name: str,
    subject: str,
    outcome: Outcome,
    tried: str,
    answered: str,
    evidence: Mapping[str, str] | None = None,
    basis: Basis = Basis.PROBED,
) -> Check:
    return Check(name, subject, outcome, basis, tried, answered, evidence or {})


def _about(one: Raised) -> dict[str, str]:
    return {"id": one.id, "rule": one.rule, "subject": one.subject, "state": one.state}


def _alert(found: Reactions) -> Check:
    name, tried = "alert-raised", "looked for the alert about the incident of its own calls"
    evidence = {"signed_rules": str(found.alert_rules)}
    if found.alert_problems:
        why = f"alerting does not work: {'; '.join(found.alert_problems)[:200]}"
        return _check(name, MESH, Outcome.FAILED, tried, why, evidence)
    if dead := {channel: error for channel, error in found.channels.items() if error}:
        why = "; ".join(f"{channel} was told nothing: {error}" for channel, error in sorted(dead.items()))
        return _check(name, MESH, Outcome.FAILED, tried, why[:300], evidence)
    evidence |= dict.fromkeys(found.channels, "told")
    if not found.asked and found.alert_rules:
        why = f"{found.alert_rules} signed rules are watched, and every channel that they tell is there"
        return _check(
            name, MESH, Outcome.HELD, "read the alert rules in force", why, evidence, Basis.OBSERVED
        )
    if not found.asked:
        return _check(name, MESH, Outcome.UNKNOWN, tried, _UNASKED, evidence)
    if found.alerts:
        one = found.alerts[0]
        return _check(
            name, MESH, Outcome.HELD, tried, f"{one.rule} is {one.state}", {**evidence, **_about(one)}
        )
    return _check(name, MESH, Outcome.FAILED, tried, "its own calls raised no alert", evidence)


def _anomaly(found: Reactions) -> Check:
    name = "anomaly-detected"
    return _incident(found, name, "behaved out of line as a synthetic caller", BEHAVIOURAL, "an anomaly")


def _attack(found: Reactions) -> Check:
    name = "attack-detected"
    return _incident(found, name, "forged and replayed permits, and tried many methods", THREAT, "a threat")


def _incident(found: Reactions, name: str, tried: str, prefix: str, what: str) -> Check:
    if found.detection_problem:
        why = f"detection does not work: {found.detection_problem[:200]}"
        return _check(name, MESH, Outcome.FAILED, tried, why)
    if off := [rule for rule in found.rules_off if rule.startswith(prefix)]:
        why = f"signed policy switches rules off: {', '.join(off)}"
        return _check(name, MESH, Outcome.FAILED, tried, why)
    if not found.asked:
        return _check(name, MESH, Outcome.UNKNOWN, tried, _UNASKED)
    for one in found.incidents:
        if one.rule.startswith(prefix):
            return _check(name, MESH, Outcome.HELD, tried, f"found as {one.rule}", _about(one))
    return _check(name, MESH, Outcome.FAILED, tried, f"{tried}: nobody noticed {what}")


def _behaviour(found: Reactions) -> Check:
    name, tried = "behaviour-watched", "looked for what is known of its own caller's behaviour"
    if found.detection_problem or found.analytics_problem:
        why = found.detection_problem or found.analytics_problem
        return _check(name, MESH, Outcome.FAILED, tried, why[:200])
    off = [rule for rule in found.rules_off if rule.startswith(BEHAVIOURAL)]
    if off:
        why = f"signed policy switches behavioural rules off: {', '.join(off)}"
        return _check(name, MESH, Outcome.FAILED, tried, why)
    if not found.asked:
        return _check(name, MESH, Outcome.UNKNOWN, tried, _UNASKED)
    if found.watched is None or found.watched.calls == 0:
        return _check(name, MESH, Outcome.FAILED, tried, "nothing is known of it")
    seen = found.watched
    evidence = {
        "calls": str(seen.calls),
        "refused": str(seen.refused),
        "would_deny": str(seen.would_deny),
        "methods": str(seen.methods),
        "p95_ms": f"{seen.p95_ms:.1f}",
    }
    return _check(name, MESH, Outcome.HELD, tried, "calls, refusals and latencies, per method", evidence)


def _response(found: Reactions, service: str) -> Check:
    """Something must be done without an operator, and it must bite at this service: below level 2 it does not.

    That witnesses quarantine a node that contradicts itself is no answer to an incident: where signed policy says
    `respond: false`, or nobody can carry its responses out, people respond and not the mesh.
    """
    name, tried = "response-automated", "asked which responses are in force, and what was done"
    evidence = {"signed_responses": "; ".join(found.responses), "respond": str(found.respond).lower()}
    level = found.levels.get(service)
    if level is None:
        return _check(
            name, service, Outcome.UNKNOWN, tried, "no node says its level", evidence, Basis.OBSERVED
        )
    if level < _REACTIVE:
        why = f"level {level} is in force: a revocation or quarantine blocks nothing below level {_REACTIVE}"
        return _check(name, service, Outcome.FAILED, tried, why, evidence, Basis.OBSERVED)
    acting = [one for one in found.responses if not one.endswith(": alert")]
    if found.detection_problem:
        why = f"responses do not work: {found.detection_problem}"
        return _check(name, service, Outcome.FAILED, tried, why[:200], evidence, Basis.OBSERVED)
    if not found.respond or not acting:
        why = "signed policy responds to nothing by itself (detection.respond and responses that do more than alert)"
        return _check(name, service, Outcome.FAILED, tried, why, evidence, Basis.OBSERVED)
    every = [
        (one, action) for one in found.incidents for action in one.actions if not action.startswith("alert ")
    ]
    if failed := [f"{one.id}: {action}" for one, action in every if action.endswith(" failed")]:
        why = f"responses to its own calls could not be carried out: {'; '.join(failed)}"
        return _check(name, service, Outcome.FAILED, tried, why[:300], evidence)
    here = {place: reason for place, reason in found.reached.items() if place.startswith(f"{service} on ")}
    evidence |= {f"afterwards, {place}": reason for place, reason in here.items()}
    if missed := sorted(place for place, reason in here.items() if reason not in DENIALS):
        why = f"{found.quarantined} of its noisy caller has not reached {', '.join(missed)}"
        return _check(name, service, Outcome.FAILED, tried, why, evidence)
    done = [f"{one.id}: {action}" for one, action in every if action.endswith(" done")]
    if done:
        evidence["done"] = "; ".join(done)[:300]
        why = "responses to its own calls were carried out"
        return _check(name, service, Outcome.HELD, tried, why, evidence)
    why = f"{len(acting)} signed responses are in force"
    return _check(name, service, Outcome.HELD, tried, why, evidence, Basis.OBSERVED)


def _counted(found: Reactions, service: str) -> Check:
    name, tried = "analytics-counting", "looked for its own calls in the execution analytics"
    if found.calls is None:
        why = found.analytics_problem or "it could not be asked"
        return _check(name, service, Outcome.UNKNOWN, tried, why[:200])
    calls = found.calls.get(service, 0)
    if calls:
        return _check(name, service, Outcome.HELD, tried, f"{calls} are counted", {"calls": str(calls)})
    return _check(name, service, Outcome.FAILED, tried, "none is counted")


def _shown(found: Reactions, service: str) -> Check:
    name, tried = "dashboard-showing", "read what the live dashboard shows"
    if found.dashboard is None:
        why = found.analytics_problem or "it could not be read"
        return _check(name, service, Outcome.UNKNOWN, tried, why[:200])
    if service in found.dashboard:
        return _check(
            name,
            service,
            Outcome.HELD,
            tried,
            "the service is on it",
            {"services": ", ".join(found.dashboard)},
        )
    return _check(name, service, Outcome.FAILED, tried, "the service is not on it")


def _reviewed(found: Reactions, service: str) -> Check:
    name, tried = "review-agreeing", "decided its recorded calls again under the policy in force"
    counts = found.reviewed.get(service) or {}
    evidence = {change: str(count) for change, count in counts.items()}
    told = {
        change: count for change, count in counts.items() if change not in {"cannot-tell", "not-by-policy"}
    }
    differs = {change: count for change, count in told.items() if change != "unchanged"}
    if differs:
        return _check(name, service, Outcome.FAILED, tried, f"some differ: {differs}", evidence)
    if not told:
        return _check(
            name, service, Outcome.UNKNOWN, tried, "no recorded call of it can be decided again", evidence
        )
    return _check(name, service, Outcome.HELD, tried, f"{sum(told.values())} agree", evidence)
