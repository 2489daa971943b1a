"""Alerts: when they fire and end, and that nobody is told too often or not at all."""

import json
from dataclasses import replace
from typing import Any

import pytest

from control_plane.core.alerts import (
    Alert,
    AlertEvent,
    NodeSeen,
    Observed,
    State,
    Step,
    acknowledge,
    advance,
    alert_id,
    channels,
    event_rule,
    message,
    observe,
    retry_ms,
)
from control_plane.core.analytics import Edge, Totals, latency_step
from tests.support.records import START_MS, workload
from trust import limits
from trust.alerting import AlertRule, EventKind, Severity
from trust.errors import InputError, Reason

DOMAIN = "mesh.test"
QUIET_MS = limits.ALERT_QUIET_S * 1000
PAY = Edge(workload("alice"), "payments", "shop.Payments/Pay")
TAKE = Edge(workload("bob"), "stock", "shop.Stock/Take")


def rule(**settings: Any) -> AlertRule:
    """Return a rule that tells the channel mqtt."""
    return AlertRule.model_validate({"to": ["mqtt"], **settings})


def busy() -> dict[Edge, Totals]:
    """Two edges: 100 calls with 10 refusals and 5 errors, and 20 calls without."""
    pay, take = Totals(calls=100), Totals(calls=20)
    pay.refused["POLICY_DENIED"], pay.refused["REVOKED"] = 8, 2
    pay.would_deny["NO_POLICY_PERMITS"] = 4
    pay.ended["OK"], pay.ended["INTERNAL"] = 85, 5
    take.ended["OK"] = 20
    pay.latency[latency_step(100_000)] = 90
    take.latency[latency_step(1_000)] = 20
    return {PAY: pay, TAKE: take}


def look(settings: dict[str, Any], nodes: tuple[NodeSeen, ...] = (), now_ms: int = START_MS) -> Observed:
    """Return what one rule says of `busy`."""
    found = observe({"x": rule(**settings)}, {300: busy()}, nodes, trust_domain=DOMAIN, now_ms=now_ms)
    return found[0]


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"when": "calls"}, 120),
        ({"when": "calls", "service": "stock"}, 20),
        ({"when": "calls", "caller": "alice"}, 100),
        ({"when": "calls", "caller": workload("bob"), "method": "shop.Stock/Take"}, 20),
        ({"when": "refusals"}, 10),
        ({"when": "refusals", "reason": "REVOKED"}, 2),
        ({"when": "would_deny"}, 4),
        ({"when": "would_deny", "reason": "POLICY_DENIED"}, 0),
        ({"when": "errors"}, 5),
        ({"when": "error_percent"}, 4.5),
        ({"when": "error_percent", "service": "stock"}, 0),
        ({"when": "p95_ms"}, pytest.approx(100, rel=0.1)),
        ({"when": "p95_ms", "caller": "carol"}, 0),
    ],
)
def test_a_threshold_measures_what_it_is_narrowed_to(settings: dict[str, Any], value: float) -> None:
    """And holds only above its threshold, not at it."""
    seen = look({**settings, "above": 0.0})
    assert seen.value == value
    assert seen.holds is (seen.value > 0)
    assert not look({**settings, "above": float(seen.value)}).holds


def test_what_is_too_much_is_explained_by_who_did_most_of_it() -> None:
    """Whoever is woken wants to know where to look."""
    seen = look({"when": "refusals", "above": 5.0})
    assert seen.detail == ("refusals 10 within 300 s, above 5: alice to payments shop.Payments/Pay 10")


def test_silence_of_a_caller_is_noticed_and_a_call_ends_it() -> None:
    """Absence is a rule of its own: a threshold of zero could not say it."""
    assert look({"when": "no_calls", "caller": "carol"}).holds
    assert not look({"when": "no_calls", "caller": "alice"}).holds


def test_a_node_is_silent_each_for_itself_and_one_that_never_spoke_is_too() -> None:
    """A node that a rule names and that never joined must not count as well."""
    nodes = (NodeSeen("a", START_MS - 1_000), NodeSeen("b", START_MS - 500_000))
    found = observe({"x": rule(when="node_silent")}, {}, nodes, trust_domain=DOMAIN, now_ms=START_MS)
    silent = {seen.subject: seen.holds for seen in found if seen.rule == "x"}
    assert silent == {"a": False, "b": True}
    never = look({"when": "node_silent", "node": "c"}, nodes)
    assert (never.holds, never.detail) == (True, "node c never reported")


def test_a_rule_whose_window_was_not_summed_up_says_nothing() -> None:
    """Long windows are looked at less often; in between nothing may end or begin."""
    found = observe(
        {"x": rule(when="no_calls", window_s=3600)}, {300: busy()}, (), trust_domain=DOMAIN, now_ms=START_MS
    )
    assert found == []


def test_absence_is_not_told_before_it_was_watched_for_long_enough() -> None:
    """A control plane that starts again must not report every node that it has not heard yet."""
    rules = {"x": rule(when="node_silent", window_s=60), "y": rule(when="no_calls", caller="carol")}
    nodes = (NodeSeen("a", START_MS - 10**6),)
    since = dict.fromkeys(rules, START_MS)
    for seconds, told in ((0, set()), (59, set()), (60, {"x"}), (300, {"x", "y"})):
        found = observe(
            rules,
            {300: busy()},
            nodes,
            trust_domain=DOMAIN,
            now_ms=START_MS + seconds * 1000,
            watched_since_ms=since,
        )
        assert {seen.rule for seen in found if seen.holds} == told


class World:
    """Steps alerts through time as the control plane does."""

    def __init__(self, **rules: AlertRule) -> None:
        self.rules = rules
        self.held: dict[str, Alert] = {}
        self.told: list[tuple[int, str]] = []

    def at(self, s: float, holds: bool | None, *events: AlertEvent, for_s: int = 0) -> State | None:
        """Observe at second `s`; None observes nothing."""
        now_ms = START_MS + int(s * 1000)
        seen = [] if holds is None else [Observed("x", "", Severity.WARNING, holds, 1.0, "why", for_s * 1000)]
        for step in advance(self.held, seen, events, self.rules, now_ms=now_ms):
            self.held[step.alert.id] = step.alert
            if step.tell:
                self.told.append((int(s), step.alert.state.value))
        alert = next(iter(self.held.values()), None)
        return None if alert is None else alert.state


def test_an_alert_fires_once_and_is_resolved_once() -> None:
    """However often it is looked at."""
    world = World(x=rule(when="calls", above=1.0))
    for s in range(0, 300, 5):
        world.at(s, s < 100)
    assert world.told == [(0, "firing"), (100, "resolved")]


def test_a_condition_must_hold_as_long_as_the_rule_says() -> None:
    """One slow minute wakes nobody."""
    world = World(x=rule(when="calls", above=1.0))
    assert world.at(0, True, for_s=60) is State.PENDING
    assert world.at(30, False, for_s=60) is State.RESOLVED
    assert world.at(35, True, for_s=60) is State.PENDING
    assert world.at(90, True, for_s=60) is State.PENDING
    assert world.at(96, True, for_s=60) is State.FIRING
    assert world.told == [(96, "firing")]


def test_flapping_tells_at_most_once_in_a_quiet_time() -> None:
    """A condition that comes and goes every second must not send a message each time."""
    world = World(x=rule(when="calls", above=1.0))
    for s in range(600):
        world.at(s, s % 2 == 0)
    assert len(world.told) <= 600 / limits.ALERT_QUIET_S + 1
    pauses = [b - a for (a, _), (b, _) in zip(world.told, world.told[1:], strict=False)]
    assert min(pauses) >= limits.ALERT_QUIET_S


def test_what_was_told_as_firing_is_told_as_resolved_even_if_the_quiet_time_delays_it() -> None:
    """Nobody may be left believing that something still burns."""
    world = World(x=rule(when="calls", above=1.0))
    world.at(0, True)
    world.at(5, False)
    for s in range(10, 120, 5):
        world.at(s, False)
    assert world.told == [(0, "firing"), (limits.ALERT_QUIET_S, "resolved")]


def test_a_firing_alert_is_repeated_until_somebody_acknowledges_it() -> None:
    """And not again after that."""
    world = World(x=rule(when="calls", above=1.0))
    repeat = limits.ALERT_REPEAT_S
    for s in (0, 10, repeat, repeat + 10):
        world.at(s, True)
    assert world.told == [(0, "firing"), (repeat, "firing")]
    (key,) = world.held
    world.held[key] = acknowledge(world.held[key], "spiffe://mesh.test/operator/olga", now_ms=START_MS)
    world.at(5 * repeat, True)
    assert len(world.told) == 2
    world.at(5 * repeat + 5, False)
    assert world.told[-1][1] == "resolved"
    with pytest.raises(InputError) as caught:
        acknowledge(world.held[key], "x", now_ms=START_MS)
    assert caught.value.reason is Reason.CONFLICT


def test_a_rule_that_left_the_policy_ends_its_alert() -> None:
    """Otherwise it would fire for ever, with nobody looking."""
    world = World(x=rule(when="calls", above=1.0))
    world.at(0, True)
    world.rules = {}
    assert world.at(200, None) is State.RESOLVED
    assert "no such rule" in next(iter(world.held.values())).detail


def test_an_alert_that_nobody_looks_at_this_time_stays_as_it_is() -> None:
    """A long window is not summed up at every look."""
    world = World(x=rule(when="calls", above=1.0))
    world.at(0, True)
    assert world.at(50, None) is State.FIRING


def test_an_event_fires_once_however_often_it_is_told_and_ends_by_itself() -> None:
    """Approvals and incidents do not tell us when they are over."""
    world = World(x=rule(when="event", events=["incident_opened"]))
    event = AlertEvent(EventKind.INCIDENT_OPENED, "T-003 alice", "replayed permits")
    for s in (0, 1, 1_800):
        assert world.at(s, None, event) is State.FIRING
    (key,) = world.held
    world.held[key] = acknowledge(world.held[key], "olga", now_ms=START_MS)
    assert world.at(1_800 + limits.ALERT_EVENT_HOLD_S - 1, None) is State.FIRING
    assert world.at(1_800 + limits.ALERT_EVENT_HOLD_S, None) is State.RESOLVED
    assert world.told == [(0, "firing"), (1_800 + limits.ALERT_EVENT_HOLD_S, "resolved")]


def test_an_alarm_of_a_node_is_an_event_that_ends_with_it() -> None:
    """The node says when it is over."""
    ringing = NodeSeen("a", START_MS, ("disk full",))
    found = observe({}, {}, (ringing,), trust_domain=DOMAIN, now_ms=START_MS)
    (step,) = advance({}, found, (), {}, now_ms=START_MS)
    assert (step.alert.rule, step.alert.subject, step.alert.detail) == ("event:node_alarm", "a", "disk full")
    quiet = observe({}, {}, (NodeSeen("a", START_MS),), trust_domain=DOMAIN, now_ms=START_MS)
    after = advance({step.alert.id: step.alert}, quiet, (), {}, now_ms=START_MS + QUIET_MS)
    assert [s.alert.state for s in after] == [State.RESOLVED]


def test_events_are_told_to_the_rules_that_name_them_and_to_nobody_else() -> None:
    """A rule of the policy cannot be mistaken for an event, nor the reverse."""
    rules = {
        "ops": rule(when="event", events=["node_alarm"], to=["webhook:ops", "mqtt"]),
        "only-b": rule(when="event", events=["node_alarm"], node="b", to=["webhook:b"]),
        "x": rule(when="calls", above=1.0, to=["webhook:x"]),
    }
    alarm = advance(
        {}, observe({}, {}, (NodeSeen("a", 1, ("x",)),), trust_domain=DOMAIN, now_ms=1), (), rules, now_ms=1
    )
    assert channels(alarm[0].alert, rules) == ["webhook:ops", "mqtt"]
    incident = advance({}, (), (AlertEvent(EventKind.INCIDENT_OPENED, "i", ""),), rules, now_ms=1)
    assert channels(incident[0].alert, rules) == []
    assert event_rule(EventKind.NODE_ALARM) not in rules


def test_what_did_not_change_is_not_written_again() -> None:
    """A firing alert costs the store next to nothing."""
    seen = Observed("x", "", Severity.WARNING, True, 1.0, "why")
    rules = {"x": rule(when="calls", above=1.0)}
    (step,) = advance({}, [seen], (), rules, now_ms=START_MS)
    held = {step.alert.id: step.alert}
    assert advance(held, [seen], (), rules, now_ms=START_MS + 5_000) == []
    assert len(advance(held, [seen], (), rules, now_ms=START_MS + 31_000)) == 1


def test_the_message_names_its_alert_and_the_id_is_the_same_everywhere() -> None:
    """Two control planes speak of one alert."""
    (step,) = advance(
        {},
        [Observed("x", "b", Severity.CRITICAL, True, 2.0, "why")],
        (),
        {"x": rule(when="node_silent")},
        now_ms=7,
    )
    assert isinstance(step, Step)
    told = json.loads(message(step.alert, trust_domain=DOMAIN, control_plane="cp-1"))
    assert told["id"] == alert_id("x", "b") != alert_id("xb", "")
    assert (told["version"], told["state"], told["severity"], told["subject"]) == (
        1,
        "firing",
        "critical",
        "b",
    )


def test_retries_are_bounded_and_grow() -> None:
    """Half an hour, then it is said that it failed."""
    pauses = [retry_ms(n) for n in range(1, limits.WEBHOOK_ATTEMPTS + 1)]
    assert pauses[-1] is None
    known = [p for p in pauses if p is not None]
    assert known == sorted(known)
    assert 20 * 60_000 < sum(known) < 60 * 60_000


def test_a_clock_that_was_ahead_silences_nothing_once_it_is_right() -> None:
    """Told, seen and begun a year ahead: an alert must fire, be told, and end as if that had not been."""
    ahead_ms = START_MS + 365 * 86_400_000
    seen = Observed("r", "", Severity.WARNING, True, 1.0, "much", 60_000)
    begun = Alert(
        rule="r",
        subject="",
        severity=Severity.WARNING,
        state=State.PENDING,
        value=1.0,
        detail="much",
        since_ms=ahead_ms,
        notified_ms=ahead_ms,
        seen_ms=ahead_ms,
        revision=1,
    )
    rules = {"r": rule(when="calls", above=1.0)}
    (fired,) = advance({begun.id: begun}, [seen], [], rules, now_ms=START_MS)
    assert (fired.alert.state, fired.tell) == (State.FIRING, True)
    event = replace(begun, rule=event_rule(EventKind.NODE_ALARM), state=State.FIRING, told="firing")
    (ended,) = advance({event.id: event}, [], [], rules, now_ms=START_MS)
    assert (ended.alert.state, ended.tell) == (State.RESOLVED, True)
