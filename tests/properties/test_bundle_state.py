"""Any order of offers, restarts and clock faults: versions only grow, and a lease never outlives its bound."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.bundle_state import BundleState, Lease, Persist, Record
from sidecar.core.call import RefusedError
from sidecar.core.pipeline import Pipeline
from tests.support.sidecar_core import ALICE, ALLOW, PAY, ManualClock, RuleDecider, attempt, mesh, verified
from trust.errors import Reason, StateError
from trust.verified import VerifiedPolicy

TTL_S, GRACE_S = 60, 120
OPEN_MS = (TTL_S + GRACE_S) * 1000


class LeaseMachine(RuleBasedStateMachine):
    """A node at level 4 whose wall clock lies, whose control plane signs, and whose network replays."""

    def __init__(self) -> None:
        super().__init__()
        self.real_ms = 1_000_000_000  # what a perfect clock would say
        self.signed: list[VerifiedPolicy] = []
        self.renewed_real_ms: int | None = None  # when the newest accepted timestamp was accepted
        self.highest: dict[str, int] = {}
        self.stored: VerifiedPolicy | None = None
        self.clock = ManualClock(self.real_ms, 5_000)
        self.record = Record()
        self.decider = RuleDecider(mesh(4, TTL_S, GRACE_S), rules={(ALICE, PAY): ALLOW})
        self._boot(0)

    def _boot(self, mono: int) -> None:
        self.clock.mono = mono
        self.state = BundleState(self.record, monotonic_ms=mono)
        self.pipeline = Pipeline(
            node="n", trust_domain="mesh.local", boot_id="b", state=self.state, clock=self.clock
        )

    def _offer(self, policy: VerifiedPolicy, *, resumed: bool = False) -> None:
        known = self.highest.get("timestamp", 0)
        try:
            effects = self.state.offer(
                policy,
                self.decider,
                now_ms=self.clock.wall,
                monotonic_ms=self.clock.mono,
                resumed=resumed,
            )
        except StateError as error:
            assert error.reason in {Reason.POLICY_ROLLBACK, Reason.POLICY_EXPIRED}
            return
        for effect in effects:
            if isinstance(effect, Persist):
                self.record = effect.record
        self.stored = policy
        if policy.versions["timestamp"] > known:
            self.renewed_real_ms = self.real_ms
        for role, version in policy.versions.items():
            assert version >= self.highest.get(role, 0), "a version went back"
            self.highest[role] = version

    @rule(new_content=st.booleans())
    def sign(self, new_content: bool) -> None:
        """The control plane signs the next timestamp, with or without a new policy."""
        last = self.signed[-1] if self.signed else None
        version = (last.base.version if last else 0) + (1 if new_content or last is None else 0)
        timestamp = (last.versions["timestamp"] if last else 0) + 1
        lease_ms = self.real_ms + TTL_S * 1000
        self.signed.append(verified(version, timestamp=timestamp, lease_expires_ms=lease_ms))

    @precondition(lambda self: self.signed)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """The network delivers anything that was ever signed."""
        self._offer(data.draw(st.sampled_from(self.signed)))

    @rule(ms=st.integers(0, 200_000))
    def time_passes(self, ms: int) -> None:
        """All clocks run."""
        self.real_ms += ms
        self.clock.pass_ms(ms)

    @rule(ms=st.integers(-10_000_000, 10_000_000))
    def wall_clock_jumps(self, ms: int) -> None:
        """Somebody sets the wall clock."""
        self.clock.wall = max(0, self.clock.wall + ms)

    @rule(mono=st.integers(0, 10_000))
    def restart(self, mono: int) -> None:
        """The process ends in order and starts again from its disk."""
        self.record = self.state.checkpoint(self.clock.mono).record
        self._boot(mono)
        if self.stored is not None:
            self._offer(self.stored, resumed=True)

    @invariant()
    def nothing_is_allowed_when_lease_and_grace_have_passed(self) -> None:
        """Invariant 2, against a perfect clock and whatever the wall clock says."""
        try:
            self.pipeline.authorize(attempt(), None, now_ms=self.clock.wall)
        except RefusedError as refused:
            assert refused.decision.reason in {
                Reason.POLICY_MISSING,
                Reason.POLICY_STALE,
                Reason.POLICY_EXPIRED,
            }
        else:
            assert self.renewed_real_ms is not None
            assert self.real_ms - self.renewed_real_ms < OPEN_MS

    @invariant()
    def the_policy_in_force_is_the_newest_ever_accepted(self) -> None:
        """Invariant 3, across restarts."""
        held = self.state.in_force
        if held is not None:
            assert held.policy.versions["timestamp"] == self.highest["timestamp"]
        assert (held is None) == (self.state.lease(self.clock.wall, self.clock.mono) is Lease.NONE)


LeaseMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLease = LeaseMachine.TestCase
