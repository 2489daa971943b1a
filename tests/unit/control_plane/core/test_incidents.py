"""How findings become incidents, and what signed rules do about them."""

from dataclasses import replace
from typing import Any

import pytest

from control_plane.core.findings import Evidence, Finding
from control_plane.core.incidents import Change, State, finding_id, fold, incident_id, resolved
from control_plane.core.responses import Fate, Response, directive_of, plan, withdrawn
from trust import limits
from trust.detection import DetectionSettings
from trust.errors import InputError, Reason

TD = "mesh.test"
NOW = 1_790_000_100_000
MALLORY = f"spiffe://{TD}/workload/mallory"
GROUP_MS = limits.INCIDENT_GROUP_S * 1000


def finding(at_ms: int = NOW, **changes: Any) -> Finding:
    """Return a replayed permit of mallory."""
    window = at_ms - at_ms % 300_000
    plain = Finding("EGM-T002", MALLORY, window, at_ms, "replayed", (Evidence("b", "l", 1, b"e" * 16),))
    return replace(plain, **changes)


def settings(*responses: dict[str, Any], **values: Any) -> DetectionSettings:
    """Return signed settings with these rules, in force."""
    return DetectionSettings.model_validate({"respond": True, "responses": list(responses)} | values)


def planned(
    given: DetectionSettings,
    one: Finding | None = None,
    *,
    held: list[Response] | None = None,
    used: int = 0,
    used_alone: int = 0,
    now_ms: int = NOW,
) -> list[Response]:
    """Return what is planned about a finding that opens an incident."""
    one = one or finding()
    incident, _ = fold(None, one)
    return plan(
        given,
        incident,
        one,
        held=held or [],
        used=used,
        used_alone=used_alone,
        trust_domain=TD,
        now_ms=now_ms,
    )


QUARANTINE = {"on": "EGM-T002", "do": ["quarantine"], "ttl_s": 600}


def test_ids_follow_from_what_was_found() -> None:
    """Two control planes that look at the same records name the same incident."""
    one, again = finding(), finding(NOW + 1)
    assert finding_id(one) == finding_id(again)
    assert finding_id(one) != finding_id(finding(NOW + 300_000))
    assert fold(None, one)[0].id == incident_id("EGM-T002", MALLORY, one.window_ms)
    assert len({incident_id("EGM-T002", who, 1) for who in ("a", "b", "a\n1")}) == 3


def test_findings_of_one_rule_and_subject_are_one_incident_while_it_goes_on() -> None:
    """One line for a person, not hundreds."""
    incident, change = fold(None, finding())
    assert change is Change.OPENED
    second = finding(NOW + GROUP_MS, text="again", evidence=(Evidence("c", "l", 9),))
    grown, change = fold(incident, second)
    assert change is Change.GREW
    assert (grown.id, grown.findings, grown.text, grown.nodes) == (incident.id, 2, "again", ("b", "c"))
    assert len(grown.evidence) == 2
    later, change = fold(grown, finding(NOW + 2 * GROUP_MS + 1))
    assert (change, later.id == grown.id) == (Change.OPENED, False)


def test_resolved_incident_takes_what_was_before_and_opens_again_for_what_comes_after() -> None:
    """Somebody looked at what there was then; a new attempt needs a new look."""
    incident, _ = fold(None, finding())
    closed = resolved(incident, who="spiffe://mesh.test/operator/olga", why="a test", now_ms=NOW + 1_000)
    before, change = fold(closed, finding(NOW + 500))
    assert (change, before.state) == (Change.GREW, State.RESOLVED)
    same_window, change = fold(closed, finding(NOW + 2_000))
    assert (change, same_window.state, same_window.id) == (Change.REOPENED, State.OPEN, incident.id)
    other, change = fold(closed, finding(NOW + 400_000))
    assert (change, other.id == incident.id) == (Change.OPENED, False)


@pytest.mark.parametrize("why", ["", "   ", "two\nlines", "x" * 500])
def test_incident_is_not_resolved_without_a_reason_that_can_be_read(why: str) -> None:
    """The trail says who closed it and why."""
    incident, _ = fold(None, finding())
    with pytest.raises(InputError):
        resolved(incident, who="olga", why=why, now_ms=NOW)


def test_incident_is_resolved_once() -> None:
    """The second operator hears who was first."""
    incident, _ = fold(None, finding())
    closed = resolved(incident, who="olga", why="a test", now_ms=NOW)
    with pytest.raises(InputError, match="olga") as caught:
        resolved(closed, who="otto", why="mine", now_ms=NOW)
    assert caught.value.reason is Reason.CONFLICT


def test_evidence_nodes_and_text_of_an_incident_are_bounded() -> None:
    """A node that lies fills neither the store nor a terminal."""
    incident, _ = fold(None, finding(text="a\x1b[2Jb" + "x" * 1_000))
    assert "\x1b" not in incident.text
    assert len(incident.text) == limits.MAX_INCIDENT_TEXT_CHARS
    for number in range(200):
        incident, _ = fold(incident, finding(NOW, evidence=(Evidence(f"n{number}", "l", number),)))
    assert len(incident.evidence) == limits.MAX_INCIDENT_EVIDENCE
    assert len(incident.nodes) == limits.MAX_INCIDENT_NODES


@pytest.mark.parametrize(
    ("rule", "kind", "value", "ttl_s"),
    [
        ({"do": ["quarantine"], "ttl_s": 600}, "workload", "mallory", 600),
        ({"do": ["cut"], "ttl_s": 600}, "workload", "mallory", limits.MIN_RESPONSE_TTL_S),
        ({"do": ["throttle"], "rate": "10/m"}, "throttle", "mallory 10/m", 3600),
        ({"do": ["require_approval"], "approval": "1 of ops"}, "approval", "mallory 1 of ops", 3600),
        ({"do": ["alert"]}, "", "", 0),
    ],
)
def test_each_action_becomes_its_directive(rule: dict[str, Any], kind: str, value: str, ttl_s: int) -> None:
    """What is signed is what an emergency key could sign by hand."""
    (one,) = planned(settings({"on": "severity high", **rule}))
    assert (one.fate, one.kind, one.value, one.ttl_s) == (Fate.PLANNED, kind, value, ttl_s)
    if kind:
        incident, _ = fold(None, finding())
        directive = directive_of(one, incident, TD)
        assert directive == directive_of(one, incident, TD)  # doing it twice is doing it once
        assert directive.until_s - directive.issued_s == ttl_s
        assert incident.id in directive.reason


@pytest.mark.parametrize(
    ("values", "changes", "fate"),
    [
        ({"respond": False}, {}, Fate.WOULD),
        ({"protected": ["mallory"]}, {}, Fate.PROTECTED),
        ({}, {"subject": "callers without identity at b"}, Fate.NOBODY),
        ({}, {"subject": "spiffe://other.mesh/workload/mallory"}, Fate.NOBODY),
        ({}, {"subject": f"spiffe://{TD}/control-plane/cp"}, Fate.NOBODY),
        ({}, {"subject": f"spiffe://{TD}/operator/olga"}, Fate.NOBODY),
        ({}, {"at_ms": NOW - GROUP_MS - 1}, Fate.PAST),
    ],
)
def test_what_is_not_done_is_said_with_the_reason(
    values: dict[str, Any], changes: dict[str, Any], fate: Fate
) -> None:
    """A person sees what would have been done, and why it was not."""
    (one,) = planned(settings(QUARANTINE, **values), finding(**changes))
    assert one.fate is fate
    assert one.why


def test_hourly_allowance_bounds_a_runaway() -> None:
    """A detector gone wild quarantines so many, then asks for a person."""
    given = settings(QUARANTINE, max_directives_per_hour=3)
    assert planned(given, used=2)[0].fate is Fate.PLANNED
    assert planned(given, used=3)[0].fate is Fate.LIMITED
    both = settings(
        {"on": "EGM-T002", "do": ["throttle", "quarantine"], "rate": "1/m"}, max_directives_per_hour=3
    )
    assert [one.fate for one in planned(both, used=2)] == [Fate.PLANNED, Fate.LIMITED]


def test_rule_may_ask_for_the_evidence_of_several_nodes() -> None:
    """One lying node makes up records; it cannot make up another's."""
    given = settings(QUARANTINE | {"min_nodes": 2})
    assert planned(given)[0].fate is Fate.WAITS
    together = finding(evidence=(Evidence("b", "l", 1), Evidence("c", "l", 1)), alone=("b",))
    assert planned(given, together)[0].fate is Fate.WAITS  # what b made up stands beside one true record of c
    two = replace(together, alone=("b", "c"))
    assert planned(given, two)[0].fate is Fate.PLANNED


def test_one_node_s_word_moves_half_of_the_allowance_at_most() -> None:
    """A node that accuses made-up workloads must not use up what stops real attacks that others see."""
    given = settings(QUARANTINE, max_directives_per_hour=5)
    assert planned(given, used=3, used_alone=2)[0].fate is Fate.PLANNED
    (limited,) = planned(given, used=3, used_alone=3)
    assert (limited.fate, "b alone" in limited.why) == (Fate.LIMITED, True)
    two = finding(evidence=(Evidence("b", "l", 1), Evidence("c", "l", 1)))
    assert planned(given, two, used=3, used_alone=3)[0].fate is Fate.PLANNED


def test_no_record_moves_anything_against_a_node() -> None:
    """A record that names a witness as its caller is one node's word; quarantining witnesses would end the quorum."""
    given = settings(QUARANTINE)
    (one,) = planned(given, finding(subject=f"spiffe://{TD}/node/witness-1"))
    assert (one.fate, one.kind) == (Fate.NOBODY, "")


@pytest.mark.parametrize(
    ("values", "fate"),
    [
        ({"respond": False}, Fate.WOULD),
        ({"protected": ["mallory"]}, Fate.PROTECTED),
        ({"responses": []}, Fate.WOULD),
    ],
)
def test_what_policy_does_not_want_any_more_is_withdrawn(values: dict[str, Any], fate: Fate) -> None:
    """A plan that a crash left undone is done under the policy of then, not of its making."""
    given = settings(QUARANTINE)
    (one,) = planned(given)
    incident, _ = fold(None, finding())
    assert withdrawn(given, one, incident, trust_domain=TD) is None
    found = withdrawn(given.model_copy(update=values), one, incident, trust_domain=TD)
    assert found is not None
    assert found[0] is fate


def test_response_is_not_repeated_while_it_lasts_and_renewed_after() -> None:
    """One quarantine, not one per finding; but an attack that outlasts it is stopped again."""
    given = settings(QUARANTINE)
    (first,) = planned(given)
    done = replace(first, fate=Fate.DONE)
    assert not planned(given, held=[done], now_ms=NOW + 599_000)
    (again,) = planned(given, finding(NOW + 601_000), held=[done], now_ms=NOW + 601_000)
    assert again.fate is Fate.PLANNED


def test_dry_run_says_it_once_and_a_policy_that_then_responds_does_it() -> None:
    """Turning respond on takes effect at the next finding."""
    (would,) = planned(settings(QUARANTINE, respond=False))
    assert not planned(settings(QUARANTINE, respond=False), held=[would])
    assert planned(settings(QUARANTINE), held=[would])[0].fate is Fate.PLANNED


def test_node_is_quarantined_as_a_node_and_never_throttled() -> None:
    """A misbehaviour incident is about a node; only workloads call."""
    node = finding(rule="EGM-T007", subject=f"spiffe://{TD}/node/b")
    given = settings({"on": "EGM-T007", "do": ["throttle", "quarantine"], "rate": "1/m"})
    throttle, quarantine = planned(given, node)
    assert throttle.fate is Fate.NOBODY
    assert (quarantine.kind, quarantine.value) == ("node", "b")


def test_two_rules_that_ask_for_the_same_do_it_once() -> None:
    """By id and by severity."""
    given = settings(QUARANTINE, {"on": "severity low", "do": ["quarantine"], "ttl_s": 600})
    assert len(planned(given)) == 1
