"""No answer, however odd, raises a grade above what the checks that hold allow; no file makes the reader fail oddly."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from control_plane.assess.answers import (
    PERMIT_ATTEMPTS,
    UNREACHED,
    Answer,
    stranger,
    unidentified,
    with_permit,
)
from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.model import Basis, Outcome, Verdict, grade
from control_plane.assess.report_json import dump, parse
from tests.support.assessments import assessment
from tests.support.breakages import GOOD, SERVICE
from trust.errors import InputError, Reason

CATALOGUE = load_catalogue()
GOOD_CHECKS = GOOD.checks()
REPORT = dump(CATALOGUE, assessment())
CODES = st.sampled_from(
    ["OK", "UNAVAILABLE", "PERMISSION_DENIED", "UNIMPLEMENTED", "UNAUTHENTICATED", UNREACHED]
)
REASONS = st.sampled_from(["", *(reason.value for reason in Reason)])
ANSWERS = st.builds(
    Answer,
    CODES,
    REASONS,
    st.text(max_size=20),
    st.booleans(),
    level=st.sampled_from(["", "0", "3", "4", "5"]),
)
CHANGES = st.dictionaries(
    st.integers(0, len(GOOD_CHECKS) - 1),
    st.tuples(st.sampled_from(Outcome), st.sampled_from(Basis)),
    max_size=8,
)


@given(CHANGES)
def test_a_level_has_only_characteristics_whose_every_check_held_by_probe_or_observation(
    changes: dict[int, tuple[Outcome, Basis]],
) -> None:
    """The definition of the grade, for any mixture of outcomes."""
    checks = [
        replace(check, outcome=changes[n][0], basis=changes[n][1]) if n in changes else check
        for n, check in enumerate(GOOD_CHECKS)
    ]
    graded = grade(CATALOGUE, SERVICE, checks)
    good = {
        name
        for name in CATALOGUE.checks
        if all(
            check.outcome is Outcome.HELD and check.basis is not Basis.DECLARED
            for check in checks
            if check.id == name
        )
    }

    for one in CATALOGUE.characteristics:
        met = graded.result(one.id).verdict in {Verdict.MET, Verdict.OVERCOME}
        assert met == (set(one.tests) <= good)
    for level in range(1, 6):
        reached = all(set(one.tests) <= good for n in range(1, level + 1) for one in CATALOGUE.of_level(n))
        assert (graded.level >= level) == reached


@given(ANSWERS)
def test_what_was_let_through_never_counts_as_refused(answer: Answer) -> None:
    """Whatever reason or code comes beside it."""
    let_in = replace(answer, replied=True, reason="")
    checks = [
        stranger(SERVICE, let_in),
        unidentified("unauthenticated-refused", SERVICE, "tried", (let_in,), answer),
        *(with_permit(name, SERVICE, "tried", let_in) for name in PERMIT_ATTEMPTS),
    ]

    assert {check.outcome for check in checks} == {Outcome.FAILED}


@given(ANSWERS)
def test_nothing_that_is_not_a_refusal_of_the_mesh_for_the_right_reason_holds(answer: Answer) -> None:
    """A dead port, another server or an unrelated refusal proves nothing."""
    for name, right in PERMIT_ATTEMPTS.items():
        check = with_permit(name, SERVICE, "tried", answer)
        assert (check.outcome is Outcome.HELD) == (answer.reason in right)
    anonymous = unidentified("impostor-refused", SERVICE, "tried", (Answer(UNREACHED),), answer)
    assert (anonymous.outcome is Outcome.HELD) == answer.alive


@given(st.integers(0, len(REPORT) - 1), st.binary(max_size=3), st.integers(0, 40))
def test_a_damaged_report_is_read_or_refused_with_a_reason(place: int, data: bytes, cut: int) -> None:
    """No other exception, whatever the bytes."""
    damaged = REPORT[:place] + data + REPORT[place + cut :]
    try:
        parse(damaged)
    except InputError as error:
        assert error.reason is Reason.INPUT_INVALID
