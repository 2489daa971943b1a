"""How well detection does on labelled traffic: recall by kind of attack, precision, false alarms per million calls."""

from collections import Counter
from dataclasses import dataclass, field

from control_plane.core.detection import Detector
from control_plane.core.findings import Finding
from control_plane.core.incidents import Incident, fold
from tests.support.traffic import TD, WINDOW_MS, Attack, Traffic, generate
from trust.detection import DetectionSettings


@dataclass
class Score:
    """What was found of what was there."""

    calls: int = 0  # ordinary ones
    attacks: Counter[str] = field(default_factory=Counter)  # by kind
    caught: Counter[str] = field(default_factory=Counter)
    findings: int = 0
    false: list[Finding] = field(default_factory=list)
    incidents: int = 0
    false_incidents: int = 0

    @property
    def recall(self) -> float:
        """The share of attacks that were caught."""
        return self.caught.total() / max(1, self.attacks.total())

    @property
    def precision(self) -> float:
        """The share of findings that are about an attack."""
        return (self.findings - len(self.false)) / max(1, self.findings)

    @property
    def false_per_million(self) -> float:
        """False alarms (findings) per million ordinary calls."""
        return len(self.false) * 1_000_000 / max(1, self.calls)


def score(traffic: Traffic, settings: DetectionSettings) -> Score:
    """Run detection over generated traffic as the control plane does: window by window, with the clock behind it."""
    revoked: set[str] = set()
    detector, result = Detector(settings, denied=revoked.__contains__, trust_domain=TD), Score()
    attacks: list[Attack] = []
    found: list[Finding] = []
    for events, begun, ordinary in generate(traffic):
        attacks += begun
        revoked |= {attack.subject for attack in begun if attack.kind == "revoked"}
        result.calls += ordinary
        if events:
            now_ms = events[-1].at_ms + 1
            found += detector.see(events, now_ms=now_ms)
    result.attacks.update(attack.kind for attack in attacks)
    result.caught.update(a.kind for a in attacks if any(_about(f, a) and f.rule in a.rules for f in found))
    result.findings = len(found)
    # whatever an attack makes a rule say about its caller while it goes on is about the attack
    result.false = [f for f in found if not any(_about(f, a) for a in attacks)]
    _count_incidents(result, found)
    return result


def _about(finding: Finding, attack: Attack) -> bool:
    return finding.subject == attack.subject and attack.start_ms <= finding.at_ms <= attack.end_ms + WINDOW_MS


def _count_incidents(result: Score, found: list[Finding]) -> None:
    latest: dict[tuple[str, str], Incident] = {}
    wrong: dict[str, bool] = {}
    false = set(map(id, result.false))
    for finding in found:
        incident, _ = fold(latest.get((finding.rule, finding.subject)), finding)
        latest[finding.rule, finding.subject] = incident
        wrong[incident.id] = wrong.get(incident.id, True) and id(finding) in false
    result.incidents, result.false_incidents = len(wrong), sum(wrong.values())
