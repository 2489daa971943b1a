"""What a scenario's call may end in."""

import pytest

from control_plane.lab.calls import Outcome
from control_plane.lab.run_scenario import _unlike
from control_plane.lab.scenario import CallStep, Expected, LoadStep


@pytest.mark.parametrize(
    ("ok", "reason", "fine"),
    [(True, "", True), (False, "NODE_QUARANTINED", True), (False, "POLICY_STALE", False)],
    ids=["an answer", "the refusal that is as good", "another refusal"],
)
def test_a_refusal_that_is_as_good_is_accepted_and_no_other(ok: bool, reason: str, fine: bool) -> None:
    """A node may be convicted before its twin's call is answered; nothing else may happen to it."""
    outcome = Outcome(ok=ok, code="OK" if ok else "PERMISSION_DENIED", reason=reason)
    assert (_unlike(Expected(or_reason="NODE_QUARANTINED"), outcome) == "") is fine


def test_a_load_has_no_second_end() -> None:
    """It counts every refusal; a scenario that says otherwise is a mistake in the file."""
    call = {"from": "a", "method": "m", "expect": {"or_reason": "NODE_QUARANTINED"}}
    with pytest.raises(ValueError, match="for single calls"):
        LoadStep(calls=(CallStep.model_validate(call),))
