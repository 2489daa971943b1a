"""Which alerts there are: what the rules of the policy make of sums, nodes and events, and who is told when.

An alert is one rule about one subject. It is pending while its condition holds for less than `for_s`, firing while it
holds, resolved after. Whoever is told hears of each change once, at most once in ALERT_QUIET_S however often it
changes, and again every ALERT_REPEAT_S while it fires and nobody acknowledged it.
"""

import enum
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from control_plane.core.analytics import Edge, Filter, Totals, caller_name
from control_plane.core.text import one_line
from trust import limits
from trust.alerting import ABSENCES, AlertRule, Condition, EventKind, Severity
from trust.errors import InputError, Reason, StateError

_TOP: Final = 3  # edges that a detail names
_GONE: Final = "the signed policy has no such rule any more"
_QUIET_MS: Final = limits.ALERT_QUIET_S * 1000
_REPEAT_MS: Final = limits.ALERT_REPEAT_S * 1000
_HOLD_MS: Final = limits.ALERT_EVENT_HOLD_S * 1000
# How often what was last measured is written down anew while nothing else changes.
_REFRESH_MS: Final = 30_000
EVENT_PREFIX: Final = "event:"


@enum.unique
class State(enum.StrEnum):
    """Where an alert stands."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule about one subject. Times are Unix ms, 0 when it did not happen."""

    rule: str
    subject: str
    severity: Severity
    state: State
    value: float
    detail: str
    since_ms: int  # when the condition began to hold
    fired_ms: int = 0
    ended_ms: int = 0
    seen_ms: int = 0  # when it last held
    notified_ms: int = 0
    told: str = ""  # the state that recipients were last told
    acked_by: str = ""
    acked_ms: int = 0
    revision: int = 0

    @property
    def id(self) -> str:
        """16 hexadecimal digits, the same for the same rule and subject on every control plane."""
        return alert_id(self.rule, self.subject)


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """Something that happened; `subject` and `detail` are shown to people."""

    kind: EventKind
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What a node last said of itself."""

    node: str
    last_seen_ms: int
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """What one rule says of one subject now."""

    rule: str
    subject: str
    severity: Severity
    holds: bool
    value: float
    detail: str
    for_ms: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one alert. `tell`: to be said to its channels now."""

    alert: Alert
    tell: bool


def alert_id(rule: str, subject: str) -> str:
    """Return the id of the alert that a rule raises about a subject."""
    return hashlib.sha256(f"{rule}\0{subject}".encode(errors="replace")).hexdigest()[:16]


def event_rule(kind: EventKind) -> str:
    """Return what stands for a rule in the alert of an event; no rule of a policy has such a name."""
    return f"{EVENT_PREFIX}{kind}"


def channels(alert: Alert, rules: Mapping[str, AlertRule]) -> list[str]:
    """Return who is told of an alert under the rules in force, each once."""
    if not alert.rule.startswith(EVENT_PREFIX):
        rule = rules.get(alert.rule)
        return [] if rule is None else list(dict.fromkeys(rule.to))
    kind = alert.rule.removeprefix(EVENT_PREFIX)
    named = (
        channel
        for _, rule in sorted(rules.items())
        if kind in rule.events and rule.node in {None, alert.subject}
        for channel in rule.to
    )
    return list(dict.fromkeys(named))


def observe(
    rules: Mapping[str, AlertRule],
    sums: Mapping[int, Mapping[Edge, Totals]],
    nodes: Sequence[NodeSeen],
    *,
    trust_domain: str,
    now_ms: int,
    watched_since_ms: Mapping[str, int] | None = None,
) -> list[Observed]:
    """Return what every rule says now.

    A rule about absence says nothing before it was watched for its whole window: after a start, nodes need a moment to
    report and to ship what they recorded meanwhile, and a new rule has seen nothing yet.

    Args:
        rules: of the policy in force, by name.
        sums: window in seconds -> sums of each edge over it; a rule whose window is missing says nothing this time.
        nodes: every node that ever reported.
        trust_domain: of callers that a rule names by workload.
        now_ms: Unix ms.
        watched_since_ms: rule -> since when it is looked at; a rule that is not here was always.
    """
    found: list[Observed] = []
    for name, rule in sorted(rules.items()):
        watched_ms = now_ms - (watched_since_ms or {}).get(name, 0)
        if rule.when in ABSENCES and watched_ms < rule.window_s * 1000:
            continue
        if rule.when is Condition.NODE_SILENT:
            found += _silent(name, rule, nodes, now_ms)
        elif rule.when is not Condition.EVENT and rule.window_s in sums:
            wanted = Filter(rule.caller_id(trust_domain), rule.service or "", rule.method or "")
            edges = {edge: totals for edge, totals in sums[rule.window_s].items() if wanted.takes(edge)}
            found.append(_measured(name, rule, edges))
    for seen in nodes:
        alarm = one_line("; ".join(seen.alarms), limits.MAX_ALERT_DETAIL_CHARS)
        rule_name = event_rule(EventKind.NODE_ALARM)
        found.append(
            Observed(rule_name, seen.node, Severity.WARNING, bool(alarm), float(len(seen.alarms)), alarm)
        )
    return found


def _silent(name: str, rule: AlertRule, nodes: Sequence[NodeSeen], now_ms: int) -> Iterator[Observed]:
    known = {seen.node: seen.last_seen_ms for seen in nodes}
    for node in [rule.node] if rule.node is not None else sorted(known):
        last_ms = known.get(node)
        silent_s = rule.window_s if last_ms is None else max(0, now_ms - last_ms) // 1000
        text = "never reported" if last_ms is None else f"silent for {silent_s} s"
        holds = last_ms is None or silent_s >= rule.window_s
        yield Observed(
            name, node, rule.severity, holds, float(silent_s), f"node {node} {text}", rule.for_s * 1000
        )


def _measured(name: str, rule: AlertRule, edges: Mapping[Edge, Totals]) -> Observed:
    whole = Totals()
    for totals in edges.values():
        whole.merge(totals)
    value = _value(rule, whole)
    if rule.when is Condition.NO_CALLS:
        holds, text = whole.calls == 0, f"no call within {rule.window_s} s"
    else:
        holds = value > (rule.above or 0)
        text = f"{rule.when} {value:g} within {rule.window_s} s, above {rule.above:g}"
        each = sorted(((_value(rule, totals), edge) for edge, totals in edges.items()), reverse=True)
        most = [f"{_edge(edge)} {part:g}" for part, edge in each[:_TOP] if part > 0]
        text += f": {', '.join(most)}" if most and holds else ""
    return Observed(
        name, "", rule.severity, holds, value, text[: limits.MAX_ALERT_DETAIL_CHARS], rule.for_s * 1000
    )


def _value(rule: AlertRule, totals: Totals) -> float:
    match rule.when:
        case Condition.CALLS | Condition.NO_CALLS:
            return float(totals.calls)
        case Condition.REFUSALS:
            return float(totals.refused[rule.reason] if rule.reason else totals.refused.total())
        case Condition.WOULD_DENY:
            return float(totals.would_deny[rule.reason] if rule.reason else totals.would_deny.total())
        case Condition.ERRORS:
            return float(totals.errors)
        case Condition.ERROR_PERCENT:
            ended = totals.ended.total()
            return round(100 * totals.errors / ended, 1) if ended else 0.0
        case Condition.P95_MS:
            return round(totals.quantile_ms(0.95), 1)
        case Condition.NODE_SILENT | Condition.EVENT:
            raise StateError(Reason.INTERNAL, f"{rule.when} is not measured in executions")


def _edge(edge: Edge) -> str:
    return f"{caller_name(edge.caller)} to {edge.service} {edge.method}"


def advance(
    held: Mapping[str, Alert],
    observed: Iterable[Observed],
    events: Iterable[AlertEvent],
    rules: Mapping[str, AlertRule],
    *,
    now_ms: int,
) -> list[Step]:
    """Return every alert that changes now.

    Args:
        held: by id: those that are not over, or of whose end nobody was told yet.
        observed: what the rules say.
        events: what happened since the last time.
        rules: of the policy in force.
        now_ms: Unix ms.
    """
    now: dict[str, Alert] = dict(held)
    for seen in observed:
        key = alert_id(seen.rule, seen.subject)
        following = step(now.get(key), seen, now_ms=now_ms)
        if following is not None:
            now[key] = following
    for event in events:
        seen = Observed(event_rule(event.kind), event.subject, Severity.WARNING, True, 1.0, event.detail)
        key = alert_id(seen.rule, seen.subject)
        following = step(now.get(key), seen, now_ms=now_ms)
        if following is not None:
            now[key] = following
    for key, alert in list(now.items()):
        now[key] = _over(alert, rules, now_ms=now_ms)
    steps = []
    for key, alert in now.items():
        tell = due(alert, now_ms=now_ms)
        told = replace(alert, told=alert.state.value, notified_ms=now_ms) if tell else alert
        if told != held.get(key):
            steps.append(Step(told, tell))
    return steps


def step(held: Alert | None, seen: Observed, *, now_ms: int) -> Alert | None:
    """Return the alert after one observation; None while there is none."""
    if not seen.holds:
        if held is None or held.state is State.RESOLVED:
            return held
        return replace(held, state=State.RESOLVED, ended_ms=now_ms, value=seen.value)
    if held is None or held.state is State.RESOLVED:
        fires = seen.for_ms == 0
        return Alert(
            rule=seen.rule,
            subject=seen.subject,
            severity=seen.severity,
            state=State.FIRING if fires else State.PENDING,
            value=seen.value,
            detail=seen.detail,
            since_ms=now_ms,
            fired_ms=now_ms if fires else 0,
            seen_ms=now_ms,
            notified_ms=0 if held is None else held.notified_ms,
            told="" if held is None else held.told,
            revision=0 if held is None else held.revision,
        )
    following = replace(held, value=seen.value, detail=seen.detail, severity=seen.severity, seen_ms=now_ms)
    if held.state is State.PENDING and past(held.since_ms, seen.for_ms, now_ms=now_ms):
        return replace(following, state=State.FIRING, fired_ms=now_ms)
    return following if past(held.seen_ms, _REFRESH_MS, now_ms=now_ms) else held


def _over(alert: Alert, rules: Mapping[str, AlertRule], *, now_ms: int) -> Alert:
    """End what nobody observes any more: a rule that left the policy, an event that is long ago."""
    if alert.state is State.RESOLVED:
        return alert
    if alert.rule.startswith(EVENT_PREFIX):
        ended = past(alert.seen_ms, _HOLD_MS, now_ms=now_ms)
        return replace(alert, state=State.RESOLVED, ended_ms=now_ms) if ended else alert
    if alert.rule in rules and rules[alert.rule].when is not Condition.EVENT:
        return alert
    return replace(alert, state=State.RESOLVED, ended_ms=now_ms, detail=_GONE)


def due(alert: Alert, *, now_ms: int) -> bool:
    """Whether recipients must hear of `alert` now."""
    told_ms = alert.notified_ms
    if alert.state is State.FIRING and alert.told == State.FIRING:
        return not alert.acked_by and past(told_ms, _REPEAT_MS, now_ms=now_ms)
    news = alert.state is State.FIRING or (alert.state is State.RESOLVED and alert.told == State.FIRING)
    return news and past(told_ms, _QUIET_MS, now_ms=now_ms)


def past(then_ms: int, span_ms: float, *, now_ms: int) -> bool:
    """Whether `span_ms` have passed since a time that was written down.

    A time that lies as far ahead was written by a clock that was wrong: waiting for it would silence an alert for as
    long as that clock was ahead.
    """
    return abs(now_ms - then_ms) >= span_ms


def acknowledge(alert: Alert, who: str, *, now_ms: int) -> Alert:
    """Return the alert that `who` takes care of: it is not repeated until it ends.

    Raises:
        InputError: CONFLICT, when it is over.
    """
    if alert.state is State.RESOLVED:
        raise InputError(Reason.CONFLICT, f"alert {alert.id} is resolved: there is nothing to acknowledge")
    return replace(alert, acked_by=who, acked_ms=now_ms)


def message(alert: Alert, *, trust_domain: str, control_plane: str) -> bytes:
    """Return what a channel is sent: one JSON object (docs/observability.md)."""
    told = {
        "version": 1,
        "id": alert.id,
        "rule": alert.rule,
        "subject": alert.subject,
        "severity": alert.severity.value,
        "state": alert.state.value,
        "value": alert.value,
        "detail": alert.detail,
        "since_ms": alert.since_ms,
        "fired_ms": alert.fired_ms,
        "ended_ms": alert.ended_ms,
        "trust_domain": trust_domain,
        "control_plane": control_plane,
    }
    return json.dumps(told, sort_keys=True).encode()


def retry_ms(attempts: int) -> int | None:
    """Return the pause after so many failed attempts to deliver; None: no further attempt."""
    if attempts >= limits.WEBHOOK_ATTEMPTS:
        return None
    return min(limits.WEBHOOK_PAUSE_S, 5 * int(3 ** (attempts - 1))) * 1000
