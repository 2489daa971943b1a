"""A policy that revokes its own witnesses says before it is signed what is left of the quorum."""

import pytest
import yaml

from tests.support.attestation import holders
from trust.policy.lint import lint
from trust.policy.problems import Severity


def warnings(*revoked: str, kind: str = "node") -> list[str]:
    """Return what is said of witnesses whose word does not count, of a folder with three and these revocations."""
    source: dict[str, object] = {
        "name": "t",
        "description": "d",
        "trust_domain": "mesh.local",
        "level": 5,
        "services": {"shop": {"grpc_services": ["shop.Orders"]}},
        "attestation": {"witnesses": {one.name: {"key": one.key.encode()} for one in holders("a", "b", "c")}},
        "revocations": [{"kind": kind, "value": value, "reason": "stolen"} for value in revoked],
    }
    found = lint({"bundle.yaml": yaml.safe_dump(source).encode()})
    about = [problem for problem in found if "does not count" in problem.message]
    assert all(problem.severity is Severity.WARNING for problem in about)
    return [problem.message for problem in about]


def test_one_of_three_revoked_leaves_no_room_for_another_loss() -> None:
    """The approvers read it before they sign."""
    (said,) = warnings("b")
    assert said.startswith("the word of b does not count")
    assert "2 witnesses are left, 2 must agree, so 0 may be out of reach" in said


def test_a_quorum_that_can_no_longer_be_made_is_said() -> None:
    """Level 5 would refuse everything."""
    (said,) = warnings("b", "c")
    assert "level 5 refuses everything" in said


@pytest.mark.parametrize("kind", ["node", "workload"])
def test_revocations_of_others_are_not_about_witnesses(kind: str) -> None:
    """A node that is no witness; a workload with the name of one."""
    assert warnings("x" if kind == "node" else "b", kind=kind) == []
