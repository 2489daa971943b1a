"""Detection against one node that ships records of its choice: others are neither hidden nor accused by many."""

import json

import pytest

from control_plane.core.detection import Detector
from control_plane.core.findings import Decided, Evidence
from control_plane.core.incidents import finding_id, fold
from control_plane.core.profiles import Profiles
from tests.support.records import workload
from trust import limits
from trust.detection import DetectionSettings
from trust.record import Side

START = 1_790_000_000_000 // 86_400_000 * 86_400_000
NO_WARMUP = DetectionSettings(warmup_s=0)


def test_a_node_that_makes_up_callers_makes_nobody_forget_what_others_taught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise one node could blind the detectors for a whole warm-up, also across a restart of what was learned."""
    monkeypatch.setattr(limits, "MAX_PROFILED_CALLERS", 10)
    monkeypatch.setattr(limits, "MAX_PROFILED_EDGES", 10)
    profiles = Profiles()
    for number in range(4):
        profiles.caller(f"honest{number}", number, "a")
        profiles.edge((f"honest{number}", "s", "m"), number, "a")
    for number in range(100):
        if number == 50:
            profiles = Profiles.from_json(json.loads(json.dumps(profiles.to_json())))
        profiles.caller(f"made-up{number}", number, "liar")
        profiles.edge((f"made-up{number}", "s", "m"), number, "liar")
    assert {f"honest{number}" for number in range(4)} <= set(profiles.callers)
    assert {(f"honest{number}", "s", "m") for number in range(4)} <= set(profiles.edges)
    assert (len(profiles.callers), len(profiles.edges)) == (10, 10)


def at_node(node: str, reason: str, number: int = 0, caller: str = "mallory") -> Decided:
    """Return a refusal that one node recorded."""
    evidence = Evidence(node, "l", number, bytes([number]) * 16)
    return Decided(evidence, START, Side.INBOUND, workload(caller), "s", f"p.S/M{number}", False, reason)


def test_what_one_node_makes_up_does_not_hide_what_another_saw() -> None:
    """A liar that tells first must neither use up the finding of a window nor count as more than itself."""
    detector = Detector(NO_WARMUP)
    lies = [at_node("liar", "PERMIT_REPLAYED", n) for n in range(20)]
    (first,) = detector.see(lies, now_ms=START)
    assert (first.alone, {e.node for e in first.evidence}) == (("liar",), {"liar"})
    detector = Detector(NO_WARMUP, json.loads(json.dumps(detector.state())))
    (second,) = detector.see([at_node("b", "PERMIT_REPLAYED")], now_ms=START)
    assert (second.alone, [e.node for e in second.evidence]) == (("b",), ["b"])
    assert finding_id(first) != finding_id(second)
    incident, _ = fold(fold(None, first)[0], second)
    assert incident.alone == ("b", "liar")
    assert not detector.see([at_node("b", "PERMIT_REPLAYED", 7)], now_ms=START)


def test_one_true_refusal_beside_made_up_ones_is_not_the_word_of_two_nodes() -> None:
    """Probing is told once by all records together, and counts for a node that shows all of it."""
    detector = Detector(NO_WARMUP)
    mixed = [at_node("liar", "POLICY_DENIED", n) for n in range(4)] + [at_node("b", "POLICY_DENIED", 9)]
    found = [one for one in detector.see(mixed, now_ms=START) if one.rule == "EGM-T003"]
    assert [one.alone for one in found] == [()]
    more = detector.see([at_node("liar", "POLICY_DENIED", 5)], now_ms=START)
    assert [one.alone for one in more if one.rule == "EGM-T003"] == [("liar",)]


def test_a_flood_of_made_up_findings_leaves_room_for_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dropped for want of room is gone, so each node has room of its own."""
    monkeypatch.setattr(limits, "MAX_FINDINGS_PER_STEP", 8)
    monkeypatch.setattr(limits, "MAX_FINDINGS_PER_NODE", 3)
    detector = Detector(NO_WARMUP)
    lies = [at_node("liar", "PERMIT_REPLAYED", n, caller=f"c{n}") for n in range(20)]
    found = detector.see([*lies, at_node("b", "PERMIT_REPLAYED")], now_ms=START)
    assert [one.evidence[0].node for one in found] == ["liar"] * 3 + ["b"]


def test_a_flood_of_made_up_callers_makes_no_count_of_others_begin_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prober whose count is pushed out is never found."""
    monkeypatch.setattr("control_plane.core.threats._MAX_COUNTED", 10)
    detector = Detector(NO_WARMUP)
    probes = [at_node("b", "POLICY_DENIED", n) for n in range(5)]
    lies = [at_node("liar", "POLICY_DENIED", 1, caller=f"c{n}") for n in range(50)]
    found = detector.see([*probes[:4], *lies, probes[4]], now_ms=START)
    assert "EGM-T003" in {one.rule for one in found}
