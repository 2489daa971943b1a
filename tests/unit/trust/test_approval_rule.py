"""What policy asks of approvers, as annotations, obligations and groups."""

import pytest

from tests.support.approvers import ANN, BEN, GROUPS
from trust import limits
from trust.approval_rule import (
    Requirement,
    check_groups,
    is_requirement,
    needs_of,
    obligation_of,
    parse_requirement,
    requirements_in,
    requirements_of,
    why_unmeetable,
    window_s,
)
from trust.errors import EvidenceError, Reason


def test_annotations_of_one_permit_become_one_obligation() -> None:
    """So that a window of one permit never widens another."""
    asked = {"id": "x", "require_approval": "2 of ops", "approval_wait": "30s", "approval_window": "10m"}
    obligation = obligation_of(asked)
    assert obligation == ("require_approval", "2 of ops, wait 30s, window 10m")
    assert parse_requirement(obligation[1]) == Requirement(2, "ops", 30, 600)
    assert obligation_of({"approval_wait": "30s"}) is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "2",
        "of ops",
        "0 of ops",
        "100 of ops",
        "2 of Ops",
        "2 of ops, wait 0s",
        "2 of ops, wait 301s",
        "2 of ops, window 2d",
        "2 of ops, window 1w",
        "2  of ops",
        "2 of ops,wait 3s",
        "2 of ops, wait 3s, wait 3s",
        "two of ops",
        "2 of ops\n",
    ],
)
def test_what_cannot_be_read_is_no_requirement(value: str) -> None:
    """Such a call is refused (OBLIGATION_UNSUPPORTED), never let through."""
    with pytest.raises(EvidenceError) as caught:
        parse_requirement(value)
    assert caught.value.reason is Reason.APPROVAL_INVALID
    assert not is_requirement(("require_approval", value))
    assert not is_requirement(("rate", "2 of ops"))


def test_several_requirements_stand_together_and_the_shortest_window_counts() -> None:
    """One without a window makes every call ask."""
    both = requirements_of(
        [
            ("require_approval", "2 of ops, window 10m"),
            ("require_approval", "1 of finance, window 1m"),
            ("rate", "1/s"),
        ]
    )
    assert needs_of(both) == "1 of finance, window 60s; 2 of ops, window 600s"
    assert requirements_in(needs_of(both)) == both
    assert window_s(both) == 60
    assert window_s((*both, Requirement(1, "ops"))) == 0


@pytest.mark.parametrize(
    "groups",
    [
        {"ops": {}},
        {"Ops": {"ann": ANN.public.hex()}},
        {"ops": {"Ann": ANN.public.hex()}},
        {"ops": {"ann": ANN.public.hex(), "ben": ANN.public.hex()}},
        {"ops": {"ann": ANN.public.hex()}, "finance": {"ann": BEN.public.hex()}},
        {"ops": {"ann": ANN.public.hex()}, "finance": {"anna": ANN.public.hex()}},
        {"ops": {"ann": "00" * 32}},
        {"ops": {"ann": (2**255 - 19).to_bytes(32, "little").hex()}},
        {f"g{number}": {"ann": ANN.public.hex()} for number in range(limits.MAX_APPROVER_GROUPS + 1)},
    ],
    ids=["empty", "group name", "name", "one key twice", "two keys of one", "one key, two names over groups",
         "small order", "not canonical", "too many"],
)  # fmt: skip
def test_groups_in_which_one_person_could_count_twice_are_refused(groups: dict[str, dict[str, str]]) -> None:
    """Distinct means distinct key material, over all groups."""
    with pytest.raises(EvidenceError):
        check_groups(groups)


def test_groups_may_share_members() -> None:
    """Somebody may be in operations and in finance."""
    check_groups(GROUPS)


def test_what_nobody_could_ever_meet_is_said() -> None:
    """Lint shows it to approvers of policy, and a sidecar to who calls."""
    assert why_unmeetable(Requirement(3, "ops"), GROUPS) == ""
    assert "fewer than 4" in why_unmeetable(Requirement(4, "ops"), GROUPS)
    assert "there are: finance, ops" in why_unmeetable(Requirement(1, "boss"), GROUPS)
