"""Carries policy from the TUF client through activation into force, and runs the effects that follow."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.core.bundle_state import BundleState, Effect, InForce, Lease, Persist, Swap, Turned
from sidecar.core.decider import Decider
from sidecar.core.feed_state import poll_interval_ms
from sidecar.core.levels import check_local_level
from sidecar.core.pipeline import Pipeline
from sidecar.core.readiness import Alarms
from sidecar.edge.activation import activate
from sidecar.edge.journal import DECISION_ALARMS
from sidecar.edge.record_file import save_record
from trust import limits
from trust.edge.tuf_client import PolicyClient
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.ports import Clock, FileSource
from trust.verified import VerifiedPolicy

logger = logging.getLogger(__name__)

TICK_S: Final = 0.25
CHECKPOINT_MS: Final = 5_000
POLL_WITHOUT_POLICY_MS: Final = 1_000
_OVER: Final = frozenset({Lease.SEALED, Lease.EXPIRED})
_ALARM_OF_LEASE: Final = {
    Lease.STALE: "the policy lease has lapsed and the grace runs; the control plane does not renew it",
    Lease.SEALED: "the policy lease and its grace are over",
    Lease.EXPIRED: "the signed policy has expired; approvers must sign a new version",
}


class PolicyKeeper:
    """Owns the way of a policy into force on one node. One event loop."""

    def __init__(
        self,
        *,
        client: PolicyClient,
        source: FileSource,
        state: BundleState,
        pipeline: Pipeline,
        clock: Clock,
        record_path: Path,
        alarms: Alarms,
        trust_domain: str,
        local_level: int | None,
        changed: Callable[[], None],
        doubtful: asyncio.Event,
        swapped: Callable[[InForce], None] = lambda _now_in_force: None,
    ) -> None:
        """Take the parts; nothing is read yet.

        Args:
            client: verified policy, on disk and from `source`.
            source: where policy files come from; untrusted.
            state: decides what may come into force.
            pipeline: decides calls; told of every change.
            clock: wall and monotonic time.
            record_path: where the lease is remembered.
            alarms: where problems are shown.
            trust_domain: mesh.json must be for it.
            local_level: from the configuration.
            changed: called after policy or lease changed.
            doubtful: set when open streams wait to be decided again.
            swapped: told of a policy that comes into force, in the same step, before anything is decided under it.
        """
        self._swapped = swapped
        self._client, self._source, self._state, self._pipeline = client, source, state, pipeline
        self._clock, self._record_path, self._alarms = clock, record_path, alarms
        self._trust_domain, self._local_level = trust_domain, local_level
        self._changed, self._doubtful = changed, doubtful
        self._one_at_a_time = asyncio.Lock()
        self._seen_timestamp = 0
        self._refused: str | None = None  # content that did not activate: not compiled again and again
        self._checkpointed_ms = clock.monotonic_ms()

    # what the feed asks

    def held_version(self) -> int:
        """Return the newest timestamp version that was verified here, 0 for none."""
        return self._seen_timestamp

    def poll_ms(self) -> int:
        """Return how often to look without an announcement, in milliseconds."""
        held = self._state.in_force
        return POLL_WITHOUT_POLICY_MS if held is None else poll_interval_ms(held.engine.mesh.lease.ttl_s)

    async def refresh(self, announced: bytes | None) -> None:
        """Fetch, verify, activate and adopt the newest policy.

        Raises:
            MeshError: it could not be fetched or verified; what is in force stays. A policy that verifies but
                cannot be activated is an alarm, not an error: fetching it again would not help.
        """
        try:
            policy = await asyncio.to_thread(self._client.refresh, self._source, announced)
        except EvidenceError as error:
            self._alarm("refresh", f"new policy refused: {error}")
            raise
        except StateError as error:
            if error.reason is Reason.POLICY_MISSING:
                return  # nothing was published yet: not a failure to back off from
            if error.reason in {Reason.POLICY_ROLLBACK, Reason.POLICY_EXPIRED, Reason.INTERNAL}:
                self._alarm("refresh", f"new policy refused: {error}")
            raise
        self._alarms.clear("refresh")
        self._seen_timestamp = max(self._seen_timestamp, policy.versions.get("timestamp", 0))
        await self._take(policy, resumed=False)

    # life cycle

    async def resume(self) -> None:
        """Take up the policy that is on disk, verified and self-tested again, within its old lease.

        Raises:
            InputError: CONFIG_INVALID, when the local level is below the signed one.
        """
        try:
            policy = await asyncio.to_thread(self._client.load)
        except MeshError as error:
            if error.reason is not Reason.POLICY_MISSING:
                self._alarm("resume", f"the policy on disk is not usable and will be fetched again: {error}")
            return
        self._seen_timestamp = policy.versions.get("timestamp", 0)
        await self._take(policy, resumed=True)
        held = self._state.in_force
        if held is not None:
            check_local_level(held.engine.mesh, self._local_level)
            logger.info("resumed policy version %d from disk", held.version)

    async def run(self) -> None:
        """Notice lease turns, move the time floor on, and review streams, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick_forever(), name="lease")
            group.create_task(self._review_forever(), name="stream review")

    def checkpoint(self) -> None:
        """Remember how far time has come; called now and then, and at the end."""
        self._checkpointed_ms = self._clock.monotonic_ms()
        if self._state.in_force is not None:
            self._persist(self._state.checkpoint(self._checkpointed_ms))

    async def _take(self, policy: VerifiedPolicy, *, resumed: bool) -> None:
        async with self._one_at_a_time:
            try:
                if not self._news(policy, resumed=resumed):
                    return
                engine = await self._engine(policy)
                if engine is None:
                    return
                effects = self._state.offer(
                    policy,
                    engine,
                    now_ms=self._clock.now_ms(),
                    monotonic_ms=self._clock.monotonic_ms(),
                    resumed=resumed,
                )
            except StateError as error:
                self._alarm("offer", f"policy not adopted: {error}")
                return
            self._alarms.clear("offer", "resume")
            self._perform(effects)
            self._check_level(engine)

    def _news(self, policy: VerifiedPolicy, *, resumed: bool) -> bool:
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        return self._state.check(policy, now_ms=now_ms, monotonic_ms=monotonic_ms, resumed=resumed)

    async def _engine(self, policy: VerifiedPolicy) -> Decider | None:
        """Return the compiled policy; None when it cannot be enforced, which is an alarm."""
        held = self._state.in_force
        if held is not None and held.policy.digest == policy.digest:
            return held.engine
        if self._refused == policy.digest:
            return None
        try:
            engine = await activate(policy, trust_domain=self._trust_domain)
        except EvidenceError as error:
            self._not_activated(policy, held, str(error))
            return None
        except Exception:  # whatever a signed bundle breaks in here must not end the process at every start
            logger.exception("activating policy version %d failed", policy.base.version)
            self._not_activated(policy, held, f"{Reason.INTERNAL}: this node's log says why")
            return None
        self._refused = None
        self._alarms.clear("activation")
        return engine

    def _not_activated(self, policy: VerifiedPolicy, held: InForce | None, why: str) -> None:
        """Raise the alarm; what is in force stays so, but its lease is not renewed (docs/adr/0008)."""
        self._refused = policy.digest
        kept = "nothing is in force"
        if held is not None:
            kept = f"version {held.version} stays in force until its lease and grace are over"
        self._alarm(
            "activation",
            f"policy version {policy.base.version} not activated, {kept}; the approvers must sign a version that "
            f"nodes can enforce: {why}",
        )

    def _check_level(self, engine: Decider) -> None:
        """A policy that arrives later may be above the configured level; it wins, and a person should know."""
        try:
            check_local_level(engine.mesh, self._local_level)
        except InputError as error:
            self._alarm("level", f"the signed level is in force: {error.detail}")
        else:
            self._alarms.clear("level")

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Persist):
                self._persist(effect)
            elif isinstance(effect, Swap):
                self._alarms.clear(*DECISION_ALARMS)
                self._swapped(effect.now_in_force)
                self._pipeline.governance_changed()
                logger.info("policy version %d is in force", effect.now_in_force.version)
            else:
                self._turned(effect)
        if effects:
            self._changed()

    def _turned(self, turned: Turned) -> None:
        self._alarms.clear("lease", *DECISION_ALARMS)
        text = _ALARM_OF_LEASE.get(turned.new)
        if text is not None:
            self._alarm("lease", text)
        logger.info("lease %s -> %s", turned.old, turned.new)
        if turned.old in _OVER or turned.new in _OVER:
            self._pipeline.governance_changed()

    def _persist(self, effect: Persist) -> None:
        """Write in the loop on purpose: milliseconds, and nothing may be decided between this and the swap."""
        try:
            save_record(self._record_path, effect.record)
        except OSError as error:
            # Enforcing the newer policy without a record is safer than staying with the older one.
            self._alarm("record", f"{self._record_path} cannot be written: {error.strerror or error}")
        else:
            self._alarms.clear("record")

    async def _tick_forever(self) -> None:
        while True:
            now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
            self._perform(self._state.tick(now_ms=now_ms, monotonic_ms=monotonic_ms))
            if monotonic_ms - self._checkpointed_ms >= CHECKPOINT_MS:
                self.checkpoint()
                self._check_clock(now_ms, monotonic_ms)
            await asyncio.sleep(TICK_S)

    def _check_clock(self, now_ms: int, monotonic_ms: int) -> None:
        behind_ms = self._state.clock_behind_ms(now_ms, monotonic_ms)
        if behind_ms > limits.MAX_CLOCK_SKEW_MS:
            self._alarm("clock", f"the clock is at least {behind_ms // 1000} s behind signed time; set it")
        else:
            self._alarms.clear("clock")

    async def _review_forever(self) -> None:
        while True:
            await self._doubtful.wait()
            self._doubtful.clear()
            while self._pipeline.streams.pending:
                self._pipeline.review(now_ms=self._clock.now_ms())
                await asyncio.sleep(0)  # calls go on between two steps

    def _alarm(self, kind: str, text: str) -> None:
        if self._alarms.set(kind, text):
            logger.warning("alarm: %s", text)
