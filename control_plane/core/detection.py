"""What a stream of executions shows: every rule that is on, each finding once, and everything learned in one value."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from control_plane.core.detectors import Behaviour
from control_plane.core.findings import Decided, Event, Finding, window_of
from control_plane.core.profiles import Profiles
from control_plane.core.threats import Threats
from trust import limits
from trust.detection import DetectionSettings

_MAX_TOLD: Final = 50_000


class Detector:
    """All detectors over one stream. Not thread-safe; no clock of its own."""

    def __init__(
        self,
        settings: DetectionSettings,
        state: Any = None,
        *,
        denied: Callable[[str], bool] = lambda _member: False,
        trust_domain: str = "",
    ) -> None:
        """Start with what was learned before.

        Args:
            settings: of the policy in force.
            state: from `state`; None to know nothing.
            denied: whether a member (SPIFFE ID) is revoked or quarantined now.
            trust_domain: of this mesh.

        Raises:
            InputError: INPUT_INVALID: the state is damaged, or of another version.
        """
        self.settings = settings
        self._denied, self._trust_domain = denied, trust_domain
        self._profiles = Profiles() if state is None else Profiles.from_json(state)
        self._behaviour = Behaviour(settings, self._profiles)
        self._threats = self._threats_by(settings)
        if state is not None:
            self._threats.restore(state.get("counts", []))
        self._told: dict[tuple[str, str, int, str], None] = {}
        self._step: Counter[str] = Counter()  # node -> findings of this step
        self._ticked_ms = 0
        self.dropped = 0  # findings beyond what one step keeps

    def govern(self, settings: DetectionSettings) -> None:
        """Judge by other settings from now on; what was learned stays."""
        if settings == self.settings:
            return
        counts = self._threats.to_json()
        self.settings = settings
        self._behaviour = Behaviour(settings, self._profiles)
        self._threats = self._threats_by(settings)
        self._threats.restore(counts)

    def see(self, events: Sequence[Event], *, now_ms: int, behind: bool = False) -> list[Finding]:
        """Return what events show, and learn from them.

        Args:
            events: in about the order of time.
            now_ms: Unix ms.
            behind: more events wait that are older than now, so windows are over by the time of these events.
        """
        found: list[Finding] = []
        self._step.clear()
        for event in events:
            if isinstance(event, Decided):
                if event.foreign:  # made up: it accuses nobody else, and teaches nothing
                    self._keep(found, self._threats.foreign(event, now_ms=now_ms))
                    continue
                self._keep(found, self._threats.see(event, now_ms=now_ms))
            self._keep(found, self._behaviour.see(event, now_ms=now_ms))
        if behind:
            now_ms = min(now_ms, events[-1].at_ms if events else self._ticked_ms)
        window = window_of(now_ms, self.settings.window_s)
        if window > self._ticked_ms:
            self._ticked_ms = window
            self._threats.tick(now_ms=now_ms)
            self._keep(found, self._behaviour.tick(now_ms=now_ms))
        return found

    def note(self, findings: Sequence[Finding]) -> list[Finding]:
        """Return those of findings from elsewhere (proofs, alarms) whose rule is on and that are new."""
        found: list[Finding] = []
        self._step.clear()
        self._keep(found, findings)
        return found

    def state(self) -> dict[str, Any]:
        """Return everything learned as JSON values."""
        return {**self._profiles.to_json(), "counts": self._threats.to_json()}

    def _threats_by(self, settings: DetectionSettings) -> Threats:
        return Threats(settings, self._profiles, denied=self._denied, trust_domain=self._trust_domain)

    def _keep(self, found: list[Finding], new: Iterable[Finding]) -> None:
        for finding in new:
            key = (finding.rule, finding.subject, finding.window_ms, finding.part)
            if finding.rule in self.settings.off or key in self._told:
                continue
            node = finding.evidence[0].node if finding.evidence else ""
            full = len(found) >= limits.MAX_FINDINGS_PER_STEP
            if full or self._step[node] >= limits.MAX_FINDINGS_PER_NODE:
                self.dropped += 1
                continue
            self._step[node] += 1
            self._told[key] = None
            if len(self._told) > _MAX_TOLD:
                del self._told[next(iter(self._told))]
            found.append(finding)
