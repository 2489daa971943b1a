"""Which policy is in force, and how fresh it is: `(state, event, now) -> effects`.

The lease is FRESH until the signed `timestamp.json` expires or `mesh.lease.ttl_s`
has passed since it was taken over, whichever comes first; STALE for `grace_s`
more; then SEALED. Every deadline is held twice, on the wall clock and on the
monotonic clock, and the earlier one counts:

- a wall clock that is set back moves nothing, because the monotonic deadline stands and because trusted
  time never falls below the newest time seen in a signed statement plus the monotonic time since;
- a wall clock that jumps forward can only close early.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sidecar.core.decider import Decider
from trust.errors import Reason, StateError
from trust.mesh import LeaseSettings
from trust.verified import BASE_ROLE, VerifiedPolicy

_ROOT, _SNAPSHOT, _TIMESTAMP = "root", "snapshot", "timestamp"
_NEVER_MS: Final = 2**62


@enum.unique
class Lease(enum.StrEnum):
    """How fresh the policy in force is."""

    NONE = "NONE"  # no policy was ever activated here
    FRESH = "FRESH"
    STALE = "STALE"  # lapsed, within the signed grace: enforced, and alarmed
    SEALED = "SEALED"  # grace is over
    EXPIRED = "EXPIRED"  # the signed metadata itself has expired


@dataclass(frozen=True, slots=True)
class Record:
    """What survives a restart. Times are Unix ms; `versions` is the highest accepted of every role."""

    floor_ms: int = 0  # newest signed time seen, plus the monotonic time that passed since
    lease_expires_ms: int = 0
    fresh_until_ms: int = 0  # trusted time: the lease's end, shortened by mesh.lease.ttl_s
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InForce:
    """A verified and self-tested policy with its compiled engine."""

    policy: VerifiedPolicy
    engine: Decider

    @property
    def version(self) -> int:
        """The version people speak of: the base bundle's."""
        return self.policy.base.version


@dataclass(frozen=True, slots=True)
class Persist:
    """Write `record` durably before running the effects that follow."""

    record: Record


@dataclass(frozen=True, slots=True)
class Swap:
    """From now on decide with `now_in_force`, and decide every open stream again."""

    now_in_force: InForce


@dataclass(frozen=True, slots=True)
class Turned:
    """The lease changed; open streams must be decided again when it became SEALED or EXPIRED."""

    old: Lease
    new: Lease


Effect = Persist | Swap | Turned


@dataclass(frozen=True, slots=True)
class _Deadlines:
    """Ends of FRESH, STALE and of the metadata, each on both clocks; the state holds while now < end."""

    fresh_ms: int = _NEVER_MS
    fresh_mono_ms: int = _NEVER_MS
    sealed_ms: int = _NEVER_MS
    sealed_mono_ms: int = _NEVER_MS
    expires_ms: int = _NEVER_MS
    expires_mono_ms: int = _NEVER_MS


class BundleState:
    """One node's policy. Not thread-safe: owned by the event loop."""

    def __init__(self, record: Record, *, monotonic_ms: int) -> None:
        """Start without a policy; `record` is what an earlier run persisted (or an empty one)."""
        self._record = record
        self._floor_ms = record.floor_ms
        self._floor_mono_ms = monotonic_ms
        self._held: InForce | None = None
        self._ends = _Deadlines()
        self._lease = Lease.NONE

    @property
    def in_force(self) -> InForce | None:
        """The policy that decides now."""
        return self._held

    def trusted_now_ms(self, now_ms: int, monotonic_ms: int) -> int:
        """Return the wall time, unless it lies behind what signed statements prove; Unix ms."""
        return max(now_ms, self._floor_ms + (monotonic_ms - self._floor_mono_ms))

    def clock_behind_ms(self, now_ms: int, monotonic_ms: int) -> int:
        """Return by how much the wall clock lies behind signed time; 0 when it does not."""
        return self.trusted_now_ms(now_ms, monotonic_ms) - now_ms

    def lease(self, now_ms: int, monotonic_ms: int) -> Lease:
        """Return the lease at this moment. Called for every execution: comparisons only."""
        if self._held is None:
            return Lease.NONE
        ends = self._ends
        if now_ms >= ends.expires_ms or monotonic_ms >= ends.expires_mono_ms:
            return Lease.EXPIRED
        if now_ms < ends.fresh_ms and monotonic_ms < ends.fresh_mono_ms:
            return Lease.FRESH
        if now_ms < ends.sealed_ms and monotonic_ms < ends.sealed_mono_ms:
            return Lease.STALE
        return Lease.SEALED

    def remaining_ms(self, now_ms: int, monotonic_ms: int) -> tuple[int, int]:
        """Return how long the policy stays FRESH and how long until it is SEALED, in ms, each >= 0."""
        if self._held is None:
            return 0, 0
        ends = self._ends
        fresh = min(ends.fresh_ms - now_ms, ends.fresh_mono_ms - monotonic_ms)
        sealed = min(ends.sealed_ms - now_ms, ends.sealed_mono_ms - monotonic_ms)
        expires = min(ends.expires_ms - now_ms, ends.expires_mono_ms - monotonic_ms)
        return max(0, min(fresh, expires)), max(0, min(sealed, expires))

    def check(self, policy: VerifiedPolicy, *, now_ms: int, monotonic_ms: int, resumed: bool = False) -> bool:
        """Return whether `policy` is news; False when exactly this (or its lease) is already in force.

        Cheap: asked before the expensive activation, and again by `offer`.

        Raises:
            StateError: POLICY_ROLLBACK or POLICY_EXPIRED. A resumed policy may have expired: it is
                adopted, in the state EXPIRED, so that refusals name the true reason.
        """
        for role, floor in self._floors(policy).items():
            version = policy.versions.get(role, floor)
            if version < floor:
                raise StateError(
                    Reason.POLICY_ROLLBACK,
                    f"{role} version {version} was offered, version {floor} was already accepted",
                )
        held = self._held
        if held is not None:
            _check_same_content(held.policy, policy)
            same = _content_versions(held.policy) == _content_versions(policy)
            if same and all(
                policy.versions.get(o) == held.policy.versions.get(o) for o in (_ROOT, _TIMESTAMP)
            ):
                return False
        now = self.trusted_now_ms(now_ms, monotonic_ms)
        if not resumed and now >= policy.expires_ms:
            raise StateError(
                Reason.POLICY_EXPIRED,
                f"policy version {policy.base.version} expired {(now - policy.expires_ms) // 1000} s ago; "
                "the approvers must sign a new version",
            )
        return True

    def offer(
        self,
        policy: VerifiedPolicy,
        engine: Decider,
        *,
        now_ms: int,
        monotonic_ms: int,
        resumed: bool = False,
    ) -> list[Effect]:
        """Adopt a verified, self-tested policy if it moves forward; the effects must run in order.

        The same content with a newer timestamp renews the lease; the very same metadata changes nothing,
        so a replayed announcement cannot lengthen a lease. With `resumed` the lease continues where
        the persisted record left it.

        Raises:
            StateError: POLICY_ROLLBACK or POLICY_EXPIRED; the state is unchanged.
        """
        if not self.check(policy, now_ms=now_ms, monotonic_ms=monotonic_ms, resumed=resumed):
            return self.tick(now_ms=now_ms, monotonic_ms=monotonic_ms)
        settings = engine.mesh.lease
        record = self._next_record(policy, settings, now_ms, monotonic_ms, resumed=resumed)
        before = self._held
        swap = before is None or _content_versions(before.policy) != _content_versions(policy)
        self._record = record
        self._floor_ms, self._floor_mono_ms = record.floor_ms, monotonic_ms
        self._held = InForce(policy, engine if swap or before is None else before.engine)
        self._ends = _deadlines(record, settings, policy.expires_ms, now_ms, monotonic_ms)
        effects: list[Effect] = [Persist(record)]
        if swap:
            effects.append(Swap(self._held))
        return [*effects, *self.tick(now_ms=now_ms, monotonic_ms=monotonic_ms)]

    def tick(self, *, now_ms: int, monotonic_ms: int) -> list[Effect]:
        """Notice that the lease has turned since the last event."""
        old, self._lease = self._lease, self.lease(now_ms, monotonic_ms)
        return [Turned(old, self._lease)] if old is not self._lease else []

    def checkpoint(self, monotonic_ms: int) -> Persist:
        """Return the record with the time floor moved on; persisted now and then, restarts add up."""
        floor_ms = self._floor_ms + (monotonic_ms - self._floor_mono_ms) if self._held is not None else 0
        record = self._record
        return Persist(
            Record(
                floor_ms=max(record.floor_ms, floor_ms),
                lease_expires_ms=record.lease_expires_ms,
                fresh_until_ms=record.fresh_until_ms,
                versions=record.versions,
            )
        )

    def _next_record(
        self,
        policy: VerifiedPolicy,
        settings: LeaseSettings,
        now_ms: int,
        monotonic_ms: int,
        *,
        resumed: bool,
    ) -> Record:
        now = self.trusted_now_ms(now_ms, monotonic_ms)
        fresh_until_ms = min(policy.lease_expires_ms, now + settings.ttl_s * 1000)
        if resumed and policy.lease_expires_ms == self._record.lease_expires_ms:
            fresh_until_ms = min(fresh_until_ms, self._record.fresh_until_ms)
        # Timestamp metadata tells its end, not its beginning: ttl_s earlier is an estimate. Never ahead of our
        # own time, or one lease signed for too long would push this node's time ahead for good.
        signed_ms = min(policy.lease_expires_ms - settings.ttl_s * 1000, now)
        elapsed_floor_ms = self._floor_ms + (monotonic_ms - self._floor_mono_ms) if self._floor_ms else 0
        versions = {**self._floors(policy), **policy.versions}
        return Record(max(elapsed_floor_ms, signed_ms), policy.lease_expires_ms, fresh_until_ms, versions)

    def _floors(self, policy: VerifiedPolicy) -> dict[str, int]:
        """Return the lowest acceptable version of every role that was ever accepted.

        A newer root may have replaced the online keys, whose versions then start again (TUF's recovery from a
        fast-forward attack); the roles that approvers sign never do.
        """
        floors = dict(self._record.versions)
        if policy.versions.get(_ROOT, 0) > floors.get(_ROOT, 0):
            for role in (_TIMESTAMP, _SNAPSHOT):
                floors.pop(role, None)
        return floors


def _content_versions(policy: VerifiedPolicy) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Return what identifies the enforced content in signed terms: versions of base and namespaces."""
    return policy.base.version, tuple(sorted((name, t.version) for name, t in policy.namespaces.items()))


def _check_same_content(held: VerifiedPolicy, policy: VerifiedPolicy) -> None:
    """Refuse other content under the version of a bundle that is in force, whatever else of the policy is newer."""
    for role, before in {BASE_ROLE: held.base, **held.namespaces}.items():
        now = policy.target(role)
        if now is not None and now.version == before.version and now.sha256 != before.sha256:
            raise StateError(
                Reason.POLICY_ROLLBACK, f"other content under version {now.version} of {role}, already held"
            )


def _deadlines(
    record: Record, settings: LeaseSettings, expires_ms: int, now_ms: int, monotonic_ms: int
) -> _Deadlines:
    """Put every trusted-time end on both clocks; the floor decides where monotonic time starts to count."""
    start_ms = max(now_ms, record.floor_ms)
    grace_ms = settings.grace_s * 1000
    fresh_mono_ms = monotonic_ms + (record.fresh_until_ms - start_ms)
    return _Deadlines(
        fresh_ms=record.fresh_until_ms,
        fresh_mono_ms=fresh_mono_ms,
        sealed_ms=record.fresh_until_ms + grace_ms,
        sealed_mono_ms=fresh_mono_ms + grace_ms,
        expires_ms=expires_ms,
        expires_mono_ms=monotonic_ms + (expires_ms - start_ms),
    )
