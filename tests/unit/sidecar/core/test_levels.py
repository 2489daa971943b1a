"""The level table, situation by situation."""

from itertools import product

import pytest

from sidecar.core.bundle_state import Lease
from sidecar.core.levels import (
    EFFECTS,
    REFUSE_UNLISTED,
    Effect,
    Finding,
    check_local_level,
    effect_of,
    finding_of,
    level_in_force,
)
from tests.support.sidecar_core import ALLOW, BROKEN, FORBID, OBLIGED, mesh
from trust.errors import InputError, Reason
from trust.mesh import SUPPORTED_LEVELS
from trust.policy.types import Verdict

LIVE = [Lease.FRESH, Lease.STALE]
OVER = [Lease.SEALED, Lease.EXPIRED]
BY_POLICY = set(Finding) - {
    Finding.REVOKED,
    Finding.QUARANTINED,
    Finding.UNATTESTED,
}  # what the engine can find
SITUATIONS = list(product(sorted(SUPPORTED_LEVELS), Lease, (True, False), Finding))


def test_table_is_total() -> None:
    """Every situation that can be expressed has an effect."""
    assert set(EFFECTS) == set(SITUATIONS)


def test_unsupported_level_is_refused() -> None:
    """A level the table does not know must not fall through to a pass."""
    for level in (6, -1, 99):
        assert effect_of(level, Lease.FRESH, True, Finding.ALLOWED) is REFUSE_UNLISTED
    assert not REFUSE_UNLISTED.allow


def test_without_any_policy_every_level_refuses() -> None:
    """Nothing signed says that a lower level is meant."""
    for level, finding in product(SUPPORTED_LEVELS, Finding):
        effect = effect_of(level, Lease.NONE, True, finding)
        assert (effect.allow, effect.reason) == (False, Reason.POLICY_MISSING)


def test_level_4_allows_only_an_identified_caller_with_an_explicit_allow_under_a_live_lease() -> None:
    """One combination passes; every other is refused with a reason that is not ALLOWED."""
    for lease, identified, finding in product(Lease, (True, False), Finding):
        effect = effect_of(4, lease, identified, finding)
        expected = identified and lease in LIVE and finding is Finding.ALLOWED
        assert effect.allow is expected
        assert (effect.reason is Reason.ALLOWED) is expected
        assert effect.would_deny is None


@pytest.mark.parametrize(
    ("lease", "reason"),
    [(Lease.SEALED, Reason.POLICY_STALE), (Lease.EXPIRED, Reason.POLICY_EXPIRED)],
)
def test_level_4_names_why_the_lease_is_over(lease: Lease, reason: Reason) -> None:
    """Stale and expired are different things to mend."""
    assert effect_of(4, lease, True, Finding.ALLOWED).reason is reason


def test_level_3_refuses_forbids_errors_and_default_deny_where_a_policy_governs() -> None:
    """Policy is enforced where one exists."""
    refused = {
        Finding.DENIED: Reason.POLICY_DENIED,
        Finding.ERROR: Reason.POLICY_ERROR,
        Finding.UNPERMITTED: Reason.NO_POLICY_PERMITS,
        Finding.UNREPRESENTABLE: Reason.REQUEST_UNREPRESENTABLE,
        Finding.OBLIGED: Reason.OBLIGATION_UNSUPPORTED,
        Finding.UNATTESTED: Reason.NODE_NOT_ATTESTED,
        Finding.REVOKED: Reason.REVOKED,
        Finding.QUARANTINED: Reason.NODE_QUARANTINED,
    }
    for lease, identified, finding in product(LIVE, (True, False), Finding):
        effect = effect_of(3, lease, identified, finding)
        assert effect.allow is (finding not in refused)
        if finding in refused:
            assert effect.reason is refused[finding]


def test_level_3_continues_where_no_policy_governs_and_says_what_level_4_would_do() -> None:
    """The way up the ladder must be visible."""
    effect = effect_of(3, Lease.FRESH, True, Finding.UNGOVERNED)
    assert (effect.allow, effect.reason) == (True, Reason.PASSED_UNGOVERNED)
    assert effect.would_deny is Reason.NO_POLICY_PERMITS


def test_level_3_continues_without_governance_and_says_so() -> None:
    """A control plane that is away must not stop a level-3 service."""
    for lease, finding in product(OVER, BY_POLICY):
        effect = effect_of(3, lease, True, finding)
        assert (effect.allow, effect.reason) == (True, Reason.GOVERNANCE_UNAVAILABLE)
        assert effect.would_deny in {Reason.POLICY_STALE, Reason.POLICY_EXPIRED}


def test_what_was_revoked_or_quarantined_stays_denied_at_level_3_when_the_lease_is_over() -> None:
    """A partition must not bring a revoked right back: the node already knows that it is gone."""
    for lease, identified in product([*LIVE, *OVER], (True, False)):
        assert effect_of(3, lease, identified, Finding.REVOKED) == Effect(False, Reason.REVOKED)
        assert effect_of(3, lease, identified, Finding.QUARANTINED) == Effect(False, Reason.NODE_QUARANTINED)


def test_level_1_blocks_nothing_and_reports_exactly_what_level_4_refuses() -> None:
    """`would_deny` must be the level-4 reason, not an approximation of it."""
    for lease, identified, finding in product([*LIVE, *OVER], (True, False), Finding):
        watched = effect_of(1, lease, identified, finding)
        governed = effect_of(4, lease, identified, finding)
        assert watched.allow
        assert watched.would_deny == (None if governed.allow else governed.reason)


def test_level_2_blocks_nothing_by_policy_and_says_what_level_4_refuses() -> None:
    """Policy is not enforced before level 3: for policy, level 2 is level 1."""
    for lease, identified, finding in product(
        [*LIVE, *OVER], (True, False), BY_POLICY | {Finding.UNATTESTED}
    ):
        assert effect_of(2, lease, identified, finding) == effect_of(1, lease, identified, finding)


def test_at_level_2_what_incident_response_takes_away_is_gone() -> None:
    """Revoked and quarantined are refused, also when the lease is over and whoever calls."""
    for lease, identified in product([*LIVE, *OVER], (True, False)):
        assert effect_of(2, lease, identified, Finding.REVOKED) == Effect(False, Reason.REVOKED)
        assert effect_of(2, lease, identified, Finding.QUARANTINED) == Effect(False, Reason.NODE_QUARANTINED)


def test_level_0_passes_everything_under_a_policy() -> None:
    """Level 0 is untrusted by signature of the approvers."""
    for lease, identified, finding in product([*LIVE, *OVER], (True, False), Finding):
        effect = effect_of(0, lease, identified, finding)
        assert (effect.allow, effect.reason) == (True, Reason.PASSED_UNGOVERNED)


def test_finding_is_independent_of_policies_when_identity_or_lease_already_decide() -> None:
    """The pipeline skips the engine in these situations; the table must not care."""
    for level, lease, identified in product(SUPPORTED_LEVELS, Lease, (True, False)):
        skipped = lease not in LIVE or level == 0 or (level == 4 and not identified)
        if skipped:
            assert len({effect_of(level, lease, identified, finding) for finding in BY_POLICY}) == 1


@pytest.mark.parametrize(
    ("verdict", "governs", "finding"),
    [
        (ALLOW, True, Finding.ALLOWED),
        (OBLIGED, True, Finding.OBLIGED),
        (FORBID, True, Finding.DENIED),
        (FORBID, False, Finding.DENIED),
        (BROKEN, True, Finding.ERROR),
        (Verdict(False, Reason.NO_POLICY_PERMITS, ()), True, Finding.UNPERMITTED),
        (Verdict(False, Reason.NO_POLICY_PERMITS, ()), False, Finding.UNGOVERNED),
        (Verdict(False, Reason.REQUEST_UNREPRESENTABLE, ()), False, Finding.UNGOVERNED),
        (Verdict(False, Reason.REQUEST_UNREPRESENTABLE, ()), True, Finding.UNREPRESENTABLE),
        (Verdict(False, Reason.ALLOWED, ()), True, Finding.ERROR),
        (Verdict(True, Reason.ALLOWED, ("p",), errors=("q",)), True, Finding.ERROR),
        (Verdict(True, Reason.POLICY_DENIED, ()), True, Finding.ERROR),
        (Verdict(False, Reason.INTERNAL, ()), True, Finding.ERROR),
    ],
)
def test_verdict_becomes_finding(verdict: Verdict, governs: bool, finding: Finding) -> None:
    """A verdict that contradicts itself is an error, which denies."""
    assert finding_of(verdict, governs=governs) is finding


def test_every_reason_as_verdict_gives_a_finding() -> None:
    """An engine that invents a reason must not be allowed by accident."""
    for reason in Reason:
        assert finding_of(Verdict(False, reason, ()), governs=True) is not Finding.ALLOWED


def test_local_level_raises_and_never_lowers() -> None:
    """The signed level wins unless the local one is higher."""
    signed = mesh(level=3, quiet=1)
    assert level_in_force(signed, None, "payments") == 3
    assert level_in_force(signed, 4, "payments") == 4
    assert level_in_force(signed, 1, "payments") == 3
    assert level_in_force(signed, 3, "quiet") == 3
    assert level_in_force(None, 0, "payments") == 4


def test_lower_local_level_is_named_as_a_configuration_error() -> None:
    """Silently ignoring it would let a person believe in a level that is not in force."""
    with pytest.raises(InputError, match="level: 1 is lower than 4") as caught:
        check_local_level(mesh(level=4), 1)
    assert caught.value.reason is Reason.CONFIG_INVALID
    check_local_level(mesh(level=1), 3)
    check_local_level(mesh(level=4), None)
