"""Restrictions: directives that ask more of a workload's calls, and deny none by themselves."""

from tests.support.emergency import FIRST, SECOND, TD, rules
from trust.denials import Changed, Denials, Rules
from trust.mesh import PermanentRevocation
from trust.revocation import Kind

NOW = 1_795_400_000_000
MONO = 10_000
ALICE = f"spiffe://{TD}/workload/alice"
BOB = f"spiffe://{TD}/workload/bob"


def governed(under: Rules | None = None) -> Denials:
    """Return denials under a policy with both keys."""
    denials = Denials(TD)
    denials.govern(under or rules(FIRST, SECOND), now_ms=NOW, monotonic_ms=MONO)
    return denials


def throttle(rate: str = "10/m", *, ttl_s: int = 3600) -> bytes:
    """Return a directive that throttles alice."""
    return FIRST.revoke(Kind.THROTTLE, f"alice {rate}", now_ms=NOW, ttl_s=ttl_s)


def test_restriction_denies_nothing_and_asks_of_its_workload_alone() -> None:
    """A throttled workload may still call; others are not touched."""
    denials = governed()
    effects = denials.offer(throttle(), now_ms=NOW, monotonic_ms=MONO)
    assert isinstance(effects[0], Changed)  # open streams are decided again
    assert not denials.any
    assert denials.check(workloads=(ALICE,), nodes=(), keys=(), method="a.B/C") is None
    assert denials.restrictions(ALICE, NOW) == (("rate", "10/m"),)
    assert denials.restrictions(BOB, NOW) == ()
    assert [str(one.subject) for one in denials.active] == ["throttle alice 10/m"]


def test_all_restrictions_of_a_workload_count() -> None:
    """The second key cannot loosen what the first has asked for."""
    denials = governed()
    denials.offer(throttle("10/m"), now_ms=NOW, monotonic_ms=MONO)
    denials.offer(throttle("900/m"), now_ms=NOW, monotonic_ms=MONO)
    approval = SECOND.revoke(Kind.APPROVAL, "alice 1 of ops", now_ms=NOW)
    denials.offer(approval, now_ms=NOW, monotonic_ms=MONO)
    assert denials.restrictions(ALICE, NOW) == (
        ("rate", "10/m"),
        ("rate", "900/m"),
        ("require_approval", "1 of ops"),
    )


def test_restriction_ends_by_the_monotonic_clock_not_by_a_wall_clock_set_forward() -> None:
    """Who moves a node's clock must not free itself."""
    denials = governed()
    denials.offer(throttle(ttl_s=60), now_ms=NOW, monotonic_ms=MONO)
    assert denials.restrictions(ALICE, NOW + 10**9)
    denials.tick(monotonic_ms=MONO + 59_999)
    assert denials.restrictions(ALICE, NOW)
    denials.tick(monotonic_ms=MONO + 60_000)
    assert not denials.restrictions(ALICE, NOW)


def test_quorum_can_restrict_without_an_end_and_end_a_restriction() -> None:
    """`egm revoke keep` and `egm revoke lift` serve restrictions as they serve denials."""
    permanent = PermanentRevocation(kind="approval", value="alice 2 of ops", reason="under investigation")
    denials = governed(rules(permanent=(permanent,)))
    assert denials.restrictions(ALICE, NOW) == (("require_approval", "2 of ops"),)
    assert "restricted approval alice 2 of ops" in denials.active[0].why
    denials.offer(throttle(), now_ms=NOW, monotonic_ms=MONO)
    ended = frozenset(denials.directives)
    denials.govern(rules(ended=ended), now_ms=NOW, monotonic_ms=MONO)
    assert not denials.restrictions(ALICE, NOW)


def test_denial_still_denies_beside_a_restriction() -> None:
    """A restriction must not hide a revocation of the same workload."""
    denials = governed()
    denials.offer(throttle(), now_ms=NOW, monotonic_ms=MONO)
    revoked = SECOND.revoke(Kind.WORKLOAD, "alice", now_ms=NOW)
    denials.offer(revoked, now_ms=NOW, monotonic_ms=MONO)
    assert denials.any
    assert denials.check(workloads=(ALICE,), nodes=(), keys=(), method="a.B/C") is not None
