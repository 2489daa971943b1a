"""The assessor notices every broken control, and never reports a level that the breakage denies."""

import pytest

from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.model import MESH, Basis, Check, Outcome, Verdict, grade
from tests.support.breakages import BREAKAGES, GOOD, SERVICE, Breakage, World


def test_an_installation_in_which_everything_holds_is_graded_five() -> None:
    """Otherwise the breakages below would prove nothing."""
    graded = GOOD.grade()

    assert graded.level == 5
    assert {result.verdict for result in graded.results} == {Verdict.MET, Verdict.OVERCOME}
    assert all(result.basis in {Basis.PROBED, Basis.OBSERVED} for result in graded.results)


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda one: one.name.replace(" ", "-"))
def test_a_broken_control_is_noticed_and_lowers_the_grade(breakage: Breakage) -> None:
    """One thing wrong denies its characteristics and every level that needs them."""
    graded = breakage.world().grade()

    assert graded.level <= breakage.at_most
    for characteristic in breakage.denies:
        result = graded.result(characteristic)
        assert result.verdict not in {Verdict.MET, Verdict.OVERCOME}, characteristic
        assert result.why


def test_every_characteristic_has_a_breakage() -> None:
    """A characteristic that no breakage denies could be one that the assessor grants to everybody."""
    denied = {name for breakage in BREAKAGES for name in breakage.denies}
    wanted = {one.id for one in load_catalogue().characteristics if one.level}

    assert wanted <= denied


def test_every_check_of_the_catalogue_is_made() -> None:
    """A check that nobody makes would leave its characteristic open for ever."""
    assert {check.id for check in GOOD.checks()} == load_catalogue().checks.keys()


def test_checks_are_not_stronger_than_the_catalogue_says() -> None:
    """What is only observed must not be sold as probed."""
    for check in GOOD.checks():
        if load_catalogue().checks[check.id].basis == "OBSERVED":
            assert check.basis is Basis.OBSERVED, check.id


@pytest.mark.parametrize("check", sorted(load_catalogue().checks))
def test_without_any_one_check_the_grade_is_lower(check: str) -> None:
    """Every single check counts; what was not looked at is not established."""
    checks = [one for one in GOOD.checks() if one.id != check]
    graded = grade(load_catalogue(), SERVICE, checks)
    needing = [one for one in load_catalogue().characteristics if check in one.tests and one.level]

    for one in needing:
        assert graded.result(one.id).verdict is Verdict.NOT_ESTABLISHED
    assert graded.level < min((one.level for one in needing), default=6)


@pytest.mark.parametrize("check", sorted(load_catalogue().checks))
def test_a_declaration_never_raises_the_grade(check: str) -> None:
    """Somebody who says that a control is there has shown nothing."""
    scope = load_catalogue().checks[check].scope
    declared = Check(
        check, SERVICE if scope == "service" else MESH, Outcome.HELD, Basis.DECLARED, "asked", "they say so"
    )
    checks = [one for one in GOOD.checks() if one.id != check]
    without, with_it = (grade(load_catalogue(), SERVICE, found) for found in (checks, [*checks, declared]))

    assert with_it.level == without.level
    assert [r.verdict for r in with_it.results] == [r.verdict for r in without.results]


def test_a_failed_check_counts_though_another_of_its_kind_held() -> None:
    """Two looks at one control that disagree are no reason to believe the better one."""
    bad = Check("stranger-refused", SERVICE, Outcome.FAILED, Basis.PROBED, "tried", "let in")
    graded = grade(load_catalogue(), SERVICE, [*GOOD.checks(), bad])

    assert graded.level == 3
    assert graded.result("EGMM-L4-01").verdict is Verdict.NOT_MET


def test_nothing_known_is_level_zero() -> None:
    """An empty installation is not perfect because nothing contradicted it."""
    graded = grade(load_catalogue(), SERVICE, [])

    assert graded.level == 0
    assert {result.verdict for result in graded.results} == {Verdict.NOT_ESTABLISHED}


def test_checks_of_another_service_say_nothing_of_this_one() -> None:
    """One well-kept service must not lend its grade to its neighbours."""
    assert grade(load_catalogue(), "other", GOOD.checks()).level == 0


def test_decisions_made_when_the_lease_was_over_are_not_held_against_determinism() -> None:
    """A lease that runs out between two questions changes the answer by design."""
    from dataclasses import replace

    lapsed = tuple(replace(one, reason="POLICY_STALE", lease="SEALED") for one in GOOD.decided[:1])
    world: World = replace(GOOD, decided=(*GOOD.decided, *lapsed))

    assert world.grade().result("EGMM-L4-03").verdict is Verdict.MET
