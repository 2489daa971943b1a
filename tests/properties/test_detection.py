"""Whatever nodes record, detection stays total, bounded and repeatable; a replay accounts for every execution."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.core.detection import Detector
from control_plane.core.findings import Decided, Ended, Event, Evidence
from control_plane.core.incidents import Incident, fold, incident_id
from control_plane.core.replay import Recorded, replay
from control_plane.core.responses import Fate, Response, plan
from tests.support.engines import engine, workload
from tests.support.records import intent
from trust import limits
from trust.detection import RULES, DetectionSettings
from trust.errors import Reason
from trust.record import Side

START = 1_790_000_000_000
NAMES = st.sampled_from(["a", "b", "c", "", "spiffe://x", "\x1b[2J", "é" * 40])
CALLERS = st.sampled_from([*(f"spiffe://mesh.local/workload/{name}" for name in "abc"), "", "nonsense"])
REASONS = st.sampled_from([reason.value for reason in Reason])
SETTINGS = DetectionSettings.model_validate(
    {
        "respond": True,
        "warmup_s": 0,
        "window_s": 10,
        "max_directives_per_hour": 3,
        "responses": [{"on": "severity info", "do": ["alert", "throttle", "quarantine"], "rate": "1/m"}],
    }
)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Any event that a record could be."""
    evidence = Evidence(draw(NAMES), "l", draw(st.integers(0, 99)), draw(st.binary(min_size=16, max_size=16)))
    at_ms = START + draw(st.integers(-(10**9), 10**9))
    about: dict[str, Any] = {
        "evidence": evidence,
        "at_ms": at_ms,
        "side": draw(st.sampled_from(Side)),
        "caller": draw(CALLERS),
        "service": draw(NAMES),
        "method": draw(NAMES),
    }
    if draw(st.booleans()):
        numbers = st.integers(0, 2**63 - 1)
        return Ended(
            **about,
            status=draw(st.sampled_from(["OK", "", "NOT_FOUND"])),
            duration_us=draw(numbers),
            request_bytes=draw(numbers),
            response_bytes=draw(numbers),
        )
    return Decided(
        **about,
        allowed=draw(st.booleans()),
        reason=draw(REASONS),
        would_deny=draw(st.just("") | REASONS),
        parent_id=draw(st.just(b"") | st.binary(min_size=16, max_size=16)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(events(), max_size=60), st.integers(0, 59))
def test_detection_is_total_and_goes_on_after_a_restart_as_if_there_was_none(
    given_events: list[Event], cut: int
) -> None:
    """State through JSON in the middle changes no finding that comes after it; nothing raises."""
    whole, first = Detector(SETTINGS), Detector(SETTINGS)
    cut = min(cut, len(given_events))
    found = [whole.see([one], now_ms=START) for one in given_events]
    for one in given_events[:cut]:
        first.see([one], now_ms=START)
    second = Detector(SETTINGS, json.loads(json.dumps(first.state())))
    again = [second.see([one], now_ms=START) for one in given_events[cut:]]
    told = {(f.rule, f.subject, f.window_ms) for one in found[:cut] for f in one}
    later = [{(f.rule, f.subject, f.window_ms) for f in one} - told for one in found[cut:]]
    # what only memory tells apart: depths of chains, and what was told already
    depth = {"EGM-B009"}
    assert [{key for key in one if key[0] not in depth} for one in later] == [
        {(f.rule, f.subject, f.window_ms) for f in one if f.rule not in depth} - told for one in again
    ]
    assert {f.rule for one in found for f in one} <= set(RULES)


@settings(max_examples=60, deadline=None)
@given(st.lists(events(), max_size=60))
def test_incidents_and_responses_stay_within_their_bounds(given_events: list[Event]) -> None:
    """Never more directives than policy allows, never without a member, ids always those of their first window."""
    detector = Detector(SETTINGS)
    latest: dict[tuple[str, str], Incident] = {}
    held: list[Response] = []
    for event in given_events:
        for finding in detector.see([event], now_ms=START):
            incident, _ = fold(latest.get((finding.rule, finding.subject)), finding)
            latest[finding.rule, finding.subject] = incident
            used = sum(bool(one.kind) and one.fate is Fate.PLANNED for one in held)
            mine = [one for one in held if one.incident == incident.id]
            held += plan(
                SETTINGS, incident, finding, held=mine, used=used, trust_domain="mesh.local", now_ms=START
            )
            assert len(incident.evidence) <= limits.MAX_INCIDENT_EVIDENCE
            assert incident.text.isprintable() or not incident.text
            assert incident_id(finding.rule, finding.subject, finding.window_ms)
    issued = [one for one in held if one.kind and one.fate is Fate.PLANNED]
    assert len(issued) <= SETTINGS.max_directives_per_hour
    assert all(one.value for one in issued)


HIDDEN = {"unchanged", "not-by-policy"}
ENGINES = [
    engine('@id("all") permit(principal, action, resource);', services={"payments": {"level": level}})
    for level in (1, 3, 4)
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from(Side), st.booleans(), REASONS, st.just("") | REASONS
        ),
        max_size=20,
    ),
    st.sampled_from(ENGINES),
    st.sampled_from([None, *ENGINES]),
)
def test_replay_accounts_for_every_execution_that_counts(
    rows: list[tuple[str, Side, bool, str, str]], new: Any, old: Any
) -> None:
    """The counts add up, and each group holds what it says."""
    past = [
        Recorded(
            intent(
                number,
                caller=workload(name),
                side=side,
                allowed=allowed,
                reason=reason,
                would_deny=would_deny if allowed else "",
            )
        )
        for number, (name, side, allowed, reason, would_deny) in enumerate(rows, 1)
    ]
    report = replay(old, new, past)
    assert sum(report.counts.values()) == report.executions <= len(past)
    for group in report.groups:
        assert 1 <= len(group.examples) <= min(group.count, limits.MAX_REPLAY_EXAMPLES)
    shown = sum(group.count for group in report.groups)
    assert shown == sum(count for change, count in report.counts.items() if change.value not in HIDDEN)
