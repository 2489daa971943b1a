"""Adoption, lease and restart of the policy in force."""

from dataclasses import replace

import pytest

from sidecar.core.bundle_state import BundleState, Lease, Persist, Record, Swap, Turned
from tests.support.sidecar_core import ManualClock, RuleDecider, mesh, verified
from trust.errors import StateError
from trust.verified import VerifiedPolicy

T0 = 1_000_000_000


class Node:
    """A state on a manual clock, with the record it last persisted."""

    def __init__(self, record: Record | None = None, *, wall: int = T0, mono: int = 5_000) -> None:
        self.clock = ManualClock(wall, mono)
        self.record = record or Record()
        self.state = BundleState(self.record, monotonic_ms=mono)
        self.decider = RuleDecider(mesh(ttl_s=60, grace_s=120))

    def offer(self, policy: VerifiedPolicy, *, resumed: bool = False) -> list[object]:
        effects = self.state.offer(
            policy, self.decider, now_ms=self.clock.wall, monotonic_ms=self.clock.mono, resumed=resumed
        )
        for effect in effects:
            if isinstance(effect, Persist):
                self.record = effect.record
        return list(effects)

    def lease(self) -> Lease:
        return self.state.lease(self.clock.wall, self.clock.mono)


def fresh(version: int = 1, *, timestamp: int = 1, at: int = T0, ttl_s: int = 60) -> VerifiedPolicy:
    return verified(version, timestamp=timestamp, lease_expires_ms=at + ttl_s * 1000)


def test_first_policy_is_persisted_before_it_decides() -> None:
    """A crash between the two must not leave a policy in use that a restart would not know of."""
    effects = Node().offer(fresh())
    assert [type(e) for e in effects] == [Persist, Swap, Turned]
    assert effects[2] == Turned(Lease.NONE, Lease.FRESH)


def test_lease_goes_stale_then_sealed_at_the_signed_times() -> None:
    """60 s of lease and 120 s of grace, to the millisecond."""
    node = Node()
    node.offer(fresh())
    for ms, lease in [(59_999, Lease.FRESH), (1, Lease.STALE), (119_999, Lease.STALE), (1, Lease.SEALED)]:
        node.clock.pass_ms(ms)
        assert node.lease() is lease


def test_local_ttl_caps_a_lease_signed_for_longer() -> None:
    """A timestamp key that signs a week cannot lengthen what the quorum signed."""
    node = Node()
    node.offer(fresh(ttl_s=7 * 24 * 3600))
    node.clock.pass_ms(60_000)
    assert node.lease() is Lease.STALE


def test_renewal_lengthens_and_keeps_the_engine() -> None:
    """The same content under a newer timestamp costs no activation."""
    node = Node()
    node.offer(fresh())
    node.clock.pass_ms(50_000)
    assert [type(e) for e in node.offer(fresh(timestamp=2, at=node.clock.wall))] == [Persist]
    node.clock.pass_ms(50_000)
    assert node.lease() is Lease.FRESH


def test_replayed_timestamp_does_not_lengthen_the_lease() -> None:
    """A broker that repeats the last announcement must not keep a node fresh."""
    node = Node()
    node.offer(fresh(ttl_s=600))
    for _ in range(6):
        node.clock.pass_ms(15_000)
        node.offer(fresh(ttl_s=600))
    assert node.lease() is Lease.STALE


def test_older_version_is_refused_and_state_kept() -> None:
    """A source that serves yesterday's policy must not loosen it."""
    node = Node()
    node.offer(fresh(version=2, timestamp=2))
    with pytest.raises(StateError, match="POLICY_ROLLBACK"):
        node.offer(fresh(version=1, timestamp=3))
    assert node.state.in_force is not None
    assert node.state.in_force.version == 2


def test_older_timestamp_of_the_same_content_is_refused() -> None:
    """Versions of every role only grow."""
    node = Node()
    node.offer(fresh(timestamp=5))
    with pytest.raises(StateError, match="timestamp version 4"):
        node.offer(fresh(timestamp=4))


def test_replaced_online_key_may_start_its_versions_again() -> None:
    """TUF's recovery from a fast-forward attack needs a newer root, which the root quorum signed."""
    node = Node()
    node.offer(fresh(timestamp=900))
    recovered = fresh(timestamp=1)
    with pytest.raises(StateError, match="POLICY_ROLLBACK"):
        node.offer(recovered)
    node.offer(replace(recovered, versions={**recovered.versions, "root": 2}))
    assert node.record.versions["timestamp"] == 1


def test_other_content_of_the_base_is_refused_although_a_namespace_is_newer() -> None:
    """Who holds back one of two signed contents of a version must not bring it in beside the next of a namespace."""
    node = Node()
    first = verified(3, timestamp=1, lease_expires_ms=T0 + 60_000, namespaces={"store": 1})
    node.offer(first)
    other = verified(3, timestamp=2, lease_expires_ms=T0 + 60_000, namespaces={"store": 2})
    with pytest.raises(StateError, match="other content under version 3 of targets"):
        node.offer(replace(other, base=replace(other.base, sha256="other")))
    assert node.state.in_force is not None and node.state.in_force.policy is first


def test_other_content_under_the_same_version_is_refused() -> None:
    """Two contents with one version are a split view."""
    node = Node()
    node.offer(verified(1, lease_expires_ms=T0 + 60_000, digest="a"))
    with pytest.raises(StateError, match="other content"):
        node.offer(verified(1, timestamp=2, lease_expires_ms=T0 + 60_000, digest="b"))


def test_expired_policy_is_refused_but_resumed_as_expired() -> None:
    """After a restart the refusals must name the true reason."""
    old = verified(1, lease_expires_ms=T0, expires_ms=T0 - 1)
    with pytest.raises(StateError, match="POLICY_EXPIRED"):
        Node().offer(old)
    node = Node()
    node.offer(old, resumed=True)
    assert node.lease() is Lease.EXPIRED


def test_policy_in_force_expires() -> None:
    """Expiry is enforced continuously, not at refresh only."""
    node = Node()
    node.offer(verified(1, lease_expires_ms=T0 + 60_000, expires_ms=T0 + 10_000))
    node.clock.pass_ms(10_000)
    assert node.lease() is Lease.EXPIRED


def test_clock_set_back_does_not_keep_a_lease_alive() -> None:
    """Lifetimes run on the monotonic clock."""
    node = Node()
    node.offer(fresh())
    node.clock.wall -= 3_600_000
    node.clock.mono += 60_000
    assert node.lease() is Lease.STALE
    node.clock.mono += 120_000
    assert node.lease() is Lease.SEALED


def test_clock_jump_forward_closes_early_and_opens_nothing() -> None:
    """A wrong clock may cost availability, never safety."""
    node = Node()
    node.offer(fresh())
    node.clock.wall += 3_600_000
    assert node.lease() is Lease.SEALED
    node.clock.wall -= 3_600_000
    assert node.lease() is Lease.FRESH
    node.clock.pass_ms(60_000)
    assert node.lease() is Lease.STALE


def test_restart_resumes_the_same_lease() -> None:
    """A restart neither renews nor loses a lease."""
    first = Node()
    policy = fresh(ttl_s=600)
    first.offer(policy)
    second = Node(first.record, wall=T0 + 40_000, mono=77)
    second.offer(policy, resumed=True)
    second.clock.pass_ms(19_999)
    assert second.lease() is Lease.FRESH
    second.clock.pass_ms(1)
    assert second.lease() is Lease.STALE


def test_restarts_with_the_clock_set_back_add_up() -> None:
    """Restarting again and again at an old wall time must still reach SEALED."""
    policy = fresh()
    node = Node()
    node.offer(policy)
    for _ in range(20):
        node.clock.pass_ms(10_000)
        node.record = node.state.checkpoint(node.clock.mono).record
        node = Node(node.record, wall=T0 - 3_600_000, mono=5_000)
        node.offer(policy, resumed=True)
    assert node.lease() is Lease.SEALED


def test_restored_disk_with_older_metadata_is_refused() -> None:
    """The record outlives the cache it speaks of."""
    node = Node()
    node.offer(fresh(version=3, timestamp=9))
    with pytest.raises(StateError, match="POLICY_ROLLBACK"):
        Node(node.record).offer(fresh(version=2, timestamp=8), resumed=True)


def test_clock_behind_signed_time_is_reported() -> None:
    """A person must be able to see why leases seem short."""
    node = Node()
    node.offer(fresh())
    node.clock.wall -= 500_000
    assert node.state.clock_behind_ms(node.clock.wall, node.clock.mono) == 500_000


def test_remaining_times() -> None:
    """What status and metrics show."""
    node = Node()
    assert node.state.remaining_ms(node.clock.wall, node.clock.mono) == (0, 0)
    node.offer(fresh())
    node.clock.pass_ms(70_000)
    assert node.state.remaining_ms(node.clock.wall, node.clock.mono) == (0, 110_000)
