"""Detection as a whole: generated traffic with labelled attacks, and each rule on a stream made for it."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from control_plane.core.detection import Detector
from control_plane.core.findings import Decided, Ended, Event, Evidence, Finding
from control_plane.core.profiles import MEMORY, Baseline, CallerProfile, EdgeProfile, Profiles
from control_plane.core.threats import proven, tampered
from tests.support.detection_score import score
from tests.support.traffic import Traffic
from trust import limits
from trust.detection import DetectionSettings
from trust.errors import InputError
from trust.record import Side

START = 1_790_000_000_000 // 86_400_000 * 86_400_000
WINDOW = 300_000
HOUR = 3_600_000
ALICE, BOB = (f"spiffe://mesh.test/workload/{name}" for name in ("alice", "bob"))
NO_WARMUP = DetectionSettings(warmup_s=0)


def decided(at_ms: int = START, number: int = 0, **changes: Any) -> Decided:
    """Return an allowed execution of alice as the callee's sidecar recorded it."""
    execution = number.to_bytes(16)
    plain = Decided(
        evidence=Evidence("b", "l", number, execution),
        at_ms=at_ms,
        side=Side.INBOUND,
        caller=ALICE,
        service="payments",
        method="shop.P/Pay",
        allowed=True,
        reason="ALLOWED",
    )
    return replace(plain, **changes)


def refused(reason: str, at_ms: int = START, number: int = 0, **changes: Any) -> Decided:
    """Return one that was refused."""
    return decided(at_ms, number, allowed=False, reason=reason, **changes)


def ended(at_ms: int = START, number: int = 0, **changes: Any) -> Ended:
    """Return how one ended."""
    plain = Ended(
        Evidence("b", "l", number),
        at_ms,
        Side.INBOUND,
        ALICE,
        "payments",
        "shop.P/Pay",
        "OK",
        2_000,
        300,
        900,
    )
    return replace(plain, **changes)


def seen(detector: Detector, events: Iterable[Event]) -> list[Finding]:
    """Have a detector see events one after the other, each when it happened."""
    return [finding for event in events for finding in detector.see([event], now_ms=event.at_ms)]


def steady(windows: int = 12, calls: int = 20, *, at: int = START, **changes: Any) -> list[Event]:
    """Return the same calls in every window from `at` on."""
    found: list[Event] = []
    for window in range(windows):
        for number in range(calls):
            at_ms = at + window * WINDOW + number * (WINDOW // calls)
            one = decided(at_ms, window * calls + number, **changes)
            found += [one, ended(at_ms + 2, caller=one.caller, service=one.service, method=one.method)]
    return found


def rules(findings: Iterable[Finding]) -> set[str]:
    """Return which rules found something."""
    return {finding.rule for finding in findings}


AFTER = START + 12 * WINDOW


def test_labelled_attacks_are_caught_and_ordinary_traffic_raises_few_alarms() -> None:
    """The measure of docs/detection.md, small: every kind of attack at least once, and hardly a false alarm."""
    result = score(
        Traffic(seed=7, days=9, callers=4, quiet_days=8, attacks=19, rate=1.5), DetectionSettings()
    )
    assert result.calls > 10_000
    assert result.attacks.total() == 19
    assert result.recall >= 0.85
    assert len(result.false) <= 4


@pytest.mark.parametrize(
    ("rule", "events"),
    [
        ("EGM-B001", [decided(AFTER + n, n) for n in range(200)]),
        (
            "EGM-B002",
            [e for n in range(20) for e in (decided(AFTER + n, n), ended(AFTER + n + 1, duration_us=40_000))]
            + [decided(AFTER + WINDOW)],
        ),
        ("EGM-B003", [decided(AFTER, method="shop.Admin/Dump")]),
        ("EGM-B004", [refused("POLICY_DENIED", AFTER + n) for n in range(10)]),
        ("EGM-B005", [ended(AFTER, request_bytes=500_000)]),
        ("EGM-B006", [ended(AFTER, response_bytes=5_000_000)]),
        ("EGM-B007", [decided(AFTER + n, n, method=f"shop.P/M{n}") for n in range(12)]),
        ("EGM-T002", [refused("PERMIT_REPLAYED", AFTER)]),
        ("EGM-T003", [refused("NO_POLICY_PERMITS", AFTER + n, method=f"shop.P/M{n}") for n in range(5)]),
        ("EGM-T004", [refused("PERMIT_MISMATCH", AFTER)]),
        ("EGM-T005", [refused("CALLER_UNIDENTIFIED", AFTER + n, caller="") for n in range(5)]),
        ("EGM-T009", [refused("PERMIT_MISSING", AFTER + n) for n in range(3)]),
        ("EGM-T010", [refused("ATTESTATION_MISSING", AFTER + n) for n in range(5)]),
    ],
)
def test_each_rule_finds_its_case_and_names_whom_it_is_about(rule: str, events: list[Event]) -> None:
    """After an hour of the same calls; the evidence is a record of the case."""
    detector = Detector(NO_WARMUP)
    assert not seen(detector, steady())
    found = seen(detector, events)
    assert rule in rules(found)
    one = next(finding for finding in found if finding.rule == rule)
    assert one.evidence or rule == "EGM-B002"
    actionable = rule not in {"EGM-T005", "EGM-T010"}
    assert (one.member is not None) is actionable
    assert len({(f.rule, f.subject, f.window_ms) for f in found}) == len(found)


def test_calls_that_nearly_cease_are_found_although_their_number_varies() -> None:
    """As square roots, counts that vary by a third of their mean are never six deviations too low, not even none."""
    detector = Detector(NO_WARMUP)
    counts = (30, 90, 50, 80, 35, 55, 75, 45, 40, 65, 85, 42)
    usual = [e for w, count in enumerate(counts) for e in steady(1, count, at=START + w * WINDOW)]
    assert not rules(seen(detector, usual))
    (found,) = seen(detector, [decided(AFTER), decided(AFTER + 1), decided(AFTER + WINDOW)])
    assert (found.rule, found.subject) == ("EGM-B001", ALICE)
    assert found.text.startswith("only 2 calls")


def test_latency_of_a_kind_of_call_with_few_calls_is_learned_over_windows() -> None:
    """Most kinds of calls are rare; what is slow about them must be noticed all the same."""
    detector = Detector(NO_WARMUP)
    assert not rules(seen(detector, steady(100, 2)))
    late = START + 100 * WINDOW
    slow = [e for n in range(20) for e in (decided(late + n, n), ended(late + n + 1, duration_us=40_000))]
    found = seen(detector, [*slow, decided(late + WINDOW)])
    assert "EGM-B002" in rules(found)


def test_ordinary_traffic_raises_nothing() -> None:
    """The same calls for two days: no rule has anything to say."""
    assert not seen(Detector(NO_WARMUP), steady(windows=576, calls=3))


def test_nothing_is_unusual_before_the_warm_up_is_over() -> None:
    """A new caller is not an anomaly."""
    detector = Detector(DetectionSettings(warmup_s=24 * 3600))
    seen(detector, steady())
    burst = [decided(AFTER + n, n, method=f"shop.P/M{n % 12}") for n in range(300)]
    assert not seen(detector, burst)


def test_rules_that_are_off_find_nothing() -> None:
    """The approvers decide what is looked for."""
    detector = Detector(DetectionSettings(warmup_s=0, off=("EGM-T002",)))
    assert not seen(detector, [refused("PERMIT_REPLAYED")])


def test_call_to_a_revoked_service_does_not_accuse_its_caller() -> None:
    """Else one quarantine would spread from callee to caller through the mesh."""
    events = [refused("REVOKED", START + n) for n in range(20)]
    assert not seen(Detector(NO_WARMUP), events)
    revoked = Detector(NO_WARMUP, denied=lambda member: member == ALICE)
    assert rules(seen(revoked, events)) == {"EGM-T006"}


def test_identity_at_an_unknown_node_while_its_owner_works_is_found() -> None:
    """A stolen key beside its owner; a workload that moved is none."""
    out = {"side": Side.OUTBOUND}
    home, evil = Evidence("a", "l", 1), Evidence("evil", "l", 1)
    detector = Detector(NO_WARMUP)
    owner = [decided(START + n * 1_000, evidence=home, **out) for n in range(5)]
    assert not seen(detector, owner)
    assert "EGM-T001" in rules(seen(detector, [decided(START + 9_000, evidence=evil, **out)]))
    moved = Detector(NO_WARMUP)
    seen(moved, owner)
    later = decided(START + 3 * WINDOW, evidence=evil, **out)
    assert "EGM-T001" not in rules(seen(moved, [later]))


def test_unusual_hour_needs_a_week_and_is_found_then() -> None:
    """A caller that works from 8 to 17 h calls at 3."""
    detector = Detector(DetectionSettings(warmup_s=0))
    office = [
        decided(START + day * 24 * HOUR + hour * HOUR, day * 24 + hour)
        for day in range(8)
        for hour in range(8, 17)
    ]
    assert not rules(seen(detector, office)) & {"EGM-B008"}
    night = START + 8 * 24 * HOUR + 3 * HOUR
    found = seen(detector, [decided(night)])
    assert rules(found) == {"EGM-B008"}
    assert "3 h" in found[0].text


def test_chain_of_calls_that_bite_their_tail_is_found() -> None:
    """Each call is made under the one before, as verified permits say."""
    detector = Detector(NO_WARMUP)
    out = {"side": Side.OUTBOUND}
    flat = [decided(START + n, n + 1, **out) for n in range(40)]
    assert not seen(detector, flat)
    chain = [
        decided(START + 1_000 + n, 1_000 + n, parent_id=(999 + n).to_bytes(16), **out) for n in range(1, 20)
    ]
    found = [one for one in seen(detector, chain) if one.rule == "EGM-B009"]
    assert len(found) == 1
    endless = [
        decided(START + 2_000 + n, 1_020 + n, parent_id=(1_019 + n).to_bytes(16), **out) for n in range(40)
    ]
    assert seen(Detector(DetectionSettings()), chain + endless)  # also of a caller nobody knows yet


def test_execution_that_both_sidecars_recorded_counts_once() -> None:
    """Else the rate doubles on the day the callee gets a sidecar."""
    both = Detector(NO_WARMUP)
    for number in range(3):
        seen(both, [decided(START + number, number), decided(START + number, number, side=Side.OUTBOUND)])
    state = both.state()
    assert state["callers"][0][1]["calls"] == 3


def test_records_shipped_late_are_no_burst() -> None:
    """A node that was cut off for an hour ships everything at once."""
    detector = Detector(NO_WARMUP)
    seen(detector, steady())
    seen(detector, [decided(AFTER + 3 * WINDOW)])
    late = [decided(AFTER - 4 * WINDOW + n, n) for n in range(500)]
    found = detector.see(late, now_ms=AFTER + 3 * WINDOW)
    assert not found


def test_record_from_the_future_counts_as_of_now() -> None:
    """A node with a wrong clock opens no window that only closes next year."""
    detector = Detector(NO_WARMUP)
    detector.see([refused("PERMIT_REPLAYED", START + 10**10)], now_ms=START)
    state = detector.state()
    assert state["counts"][0][3] <= START


def test_what_was_learned_survives_json_and_goes_on_in_the_open_window() -> None:
    """A restart loses nothing and raises nothing."""
    first = Detector(NO_WARMUP)
    half = steady(windows=13)
    seen(first, half[:-20])
    second = Detector(NO_WARMUP, json.loads(json.dumps(first.state())))
    assert not seen(second, half[-20:])
    seen(first, half[-20:])
    assert _rounded(second.state()) == _rounded(first.state())


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state | {"format": 99},
        lambda state: state | {"callers": [["x"]]},
        lambda state: state | {"edges": [["a", "b", "c", {"rate": [1, 2, math.nan]}]]},
        lambda state: state | {"counts": [["EGM-T002"]]},
        lambda _state: [],
    ],
)
def test_damaged_state_is_an_error_that_says_so(damage: Any) -> None:
    """Never half taken up."""
    detector = Detector(NO_WARMUP)
    seen(detector, steady(windows=2))
    with pytest.raises(InputError):
        Detector(NO_WARMUP, damage(detector.state()))


def test_memory_is_bounded_whatever_callers_invent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest silent makes room; who keeps calling stays known."""
    monkeypatch.setattr(limits, "MAX_PROFILED_CALLERS", 10)
    monkeypatch.setattr(limits, "MAX_PROFILED_EDGES", 20)
    profiles = Profiles()
    for number in range(200):
        profiles.caller("regular", number, "a")
        profiles.caller(f"c{number}", number, "a")
        profiles.edge(("regular", "s", "m"), number, "a")
        profiles.edge((f"c{number}", "s", f"m{number}"), number, "a")
    assert len(profiles.callers) == 10
    assert len(profiles.edges) == 20
    assert "regular" in profiles.callers
    caller = CallerProfile(0, 0)
    for number in range(100):
        caller.note_node(f"n{number}", number)
    assert len(caller.nodes) == limits.MAX_PROFILED_NODES_PER_CALLER


def test_baseline_learns_slowly_from_what_is_far_off_and_forgets() -> None:
    """An attacker who attacks once does not teach that attacks are usual; a lasting change is learned."""
    one = Baseline()
    for number in range(100):
        one.learn(10 + number % 3, floor=0.1)
    before = one.mean
    one.learn(10_000, floor=0.1)
    assert one.mean - before < 0.1
    for _ in range(3_000):
        one.learn(50, floor=0.1)
    assert one.count <= MEMORY + 1
    assert abs(one.mean - 50) < 3


def test_baseline_agrees_with_the_textbook() -> None:
    """Mean and population deviation, and the same again from its numbers."""
    values = [3.0, 5.0, 4.0, 7.0, 10.0]
    one = Baseline()
    for value in values:
        one.learn(value, floor=1)
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    assert one.mean == pytest.approx(mean)
    assert one.deviation == pytest.approx(deviation)
    again = Baseline.from_json(one.to_json())
    assert (again.count, again.mean, again.deviation) == pytest.approx((5, mean, deviation))
    assert EdgeProfile.from_json(EdgeProfile(5).to_json()) is not None


def test_proof_and_alarm_become_findings_that_can_be_found_again() -> None:
    """The same proof is the same finding at every control plane; an alarm of another kind is none."""
    node = "spiffe://mesh.test/node/b"
    one, two = (proven("ab" * 32, node, "two histories", at_ms=at) for at in (START, START + 10**9))
    assert (one.rule, one.subject, one.window_ms) == (two.rule, two.subject, two.window_ms)
    assert one.member is not None
    assert tampered("b", "new policy refused: QUORUM_NOT_MET: 1 of 2", window_s=300, at_ms=START)
    assert tampered("b", "the disk is full", window_s=300, at_ms=START) is None
    assert tampered("b", "policy refused: SOURCE_UNAVAILABLE", window_s=300, at_ms=START) is None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
