"""Each probe accepts the reasons that show its control, and no other: a refusal for another reason proves nothing."""

import pytest

from control_plane.assess import answers
from control_plane.assess import bypass as past
from control_plane.assess.answers import UNREACHED, Answer
from control_plane.assess.model import Outcome, at, together
from tests.support.breakages import GOOD, LET_IN, held, refused
from trust.errors import Reason

EVERY = [UNREACHED, "LET_IN", "UNIMPLEMENTED", *sorted(Reason)]  # UNIMPLEMENTED: a service itself
DECISIONS = {"NO_POLICY_PERMITS", "POLICY_DENIED"}
CALLER = {
    "CALLER_UNIDENTIFIED",
    "CALLER_AMBIGUOUS",
    "CALLER_CERTIFICATE_EXPIRED",
    "CALLER_TOKEN_INVALID",
}
ATTESTATION = {"ATTESTATION_MISSING", "ATTESTATION_UNKNOWN", "ATTESTATION_INVALID", "ATTESTATION_EXPIRED"}
# What each attempt holds on; everything else must not be taken for it.
HOLDS = {
    "stranger-refused": DECISIONS | {"PERMIT_MISSING"},
    "stranger-with-permit": DECISIONS,
    "unauthenticated-refused": CALLER | {UNREACHED},
    "permit-genuine-recognised": DECISIONS | {"REVOKED", "NODE_QUARANTINED", "LET_IN"},
    "permit-missing-refused": {"PERMIT_MISSING"},
    "permit-forged-refused": {"PERMIT_INVALID"},
    "permit-replayed-refused": {"PERMIT_REPLAYED"},
    "permit-misdirected-refused": {"PERMIT_MISMATCH"},
    "permit-stolen-refused": {"PERMIT_MISMATCH"},
    "permit-expired-refused": {"PERMIT_EXPIRED"},
    "unattested-refused": ATTESTATION,
    "stale-refused": {"POLICY_STALE", "POLICY_EXPIRED"},
    "cut-off-decides": DECISIONS | {"LET_IN"},
    "forbidden-refused": DECISIONS,
    "bypass-closed": {UNREACHED, "PERMIT_MISSING"} | CALLER | DECISIONS,
}


def answer(said: str) -> Answer:
    if said == "LET_IN":
        return LET_IN
    if said in {UNREACHED, "UNIMPLEMENTED", "UNAUTHENTICATED"}:
        return Answer(said)
    return Answer("UNAVAILABLE", said, level="5")  # the code that a refusal for a passing reason has


def outcome(check: str, said: str) -> Outcome:
    """Return what the check makes of one answer."""
    got, control = answer(said), refused("NO_POLICY_PERMITS")
    match check:
        case "stranger-refused":
            return answers.stranger("shop", got).outcome
        case "stranger-with-permit":
            found = answers.stranger_with_permit("shop", got)
            return Outcome.UNKNOWN if found is None else found.outcome
        case "unauthenticated-refused":
            return answers.unidentified(check, "shop", "tried", (got,), control).outcome
        case "permit-genuine-recognised":
            return answers.genuine_permit("shop", got, "aa").outcome
        case "stale-refused":
            return answers.stale("shop", control, got, "SEALED", "moved").outcome
        case "cut-off-decides":
            return answers.cut_off("shop", got, got, "FRESH").outcome
        case "forbidden-refused":
            decided = [
                answers.Decided(one.node, one.request, said == "LET_IN", said, (), 3, 5)
                for one in GOOD.decided
            ]
            return answers.forbidden("shop", decided).outcome
        case "bypass-closed":
            return past.judge("shop", [past.Bypass("10.0.0.1:9", False, got)]).outcome
        case _:
            return answers.with_permit(check, "shop", "tried", got).outcome


@pytest.mark.parametrize("check", sorted(HOLDS))
def test_a_probe_holds_on_its_own_reasons_alone(check: str) -> None:
    """A sidecar that is down, stale, overloaded or refuses for something else has not shown the control."""
    said = {one for one in [*EVERY, "UNAUTHENTICATED"] if outcome(check, one) is Outcome.HELD}

    assert said == HOLDS[check]


@pytest.mark.parametrize("check", sorted(answers.PERMIT_ATTEMPTS))
def test_every_attempt_with_a_permit_is_in_the_table(check: str) -> None:
    """One that is added must say what it holds on."""
    assert check in HOLDS


def test_a_control_that_answers_for_another_reason_makes_no_listener_alive() -> None:
    """Nothing answered the genuine caller: a dead listener refuses everybody."""
    gone = Answer(UNREACHED)

    assert answers.unidentified("impostor-refused", "shop", "tried", (gone,), gone).outcome is Outcome.UNKNOWN


def test_replicas_are_as_good_as_the_worst_of_them() -> None:
    """The one that is broken is named, whatever the others answered."""
    good = at("a", answers.stranger("shop", refused("NO_POLICY_PERMITS")))
    bad = at("b", answers.stranger("shop", LET_IN))
    silent = at("c", answers.stranger("shop", Answer(UNREACHED)))

    assert together([good, good]).outcome is Outcome.HELD
    assert together([good, silent]).outcome is Outcome.UNKNOWN
    found = together([good, silent, bad])
    assert found.outcome is Outcome.FAILED
    assert found.answered.startswith("b: ") and "a.reason" in found.evidence
    assert together([held("x")]) == held("x")
