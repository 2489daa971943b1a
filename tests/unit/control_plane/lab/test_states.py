"""What a test can wait for."""

from typing import Any

import pytest

from control_plane.lab.states import UNREACHABLE, expand, missing
from trust.errors import InputError

NODES = ("a", "b")
STATUS: dict[str, Any] = {
    "state": "READY",
    "lease": "FRESH",
    "policy_version": 3,
    "alarms": ["the policy lease is over; serving until its grace ends"],
}


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ("SEALED", {"a": {"lease": "SEALED"}, "b": {"lease": "SEALED"}}),
        ("READY", {"a": {"state": "READY"}, "b": {"state": "READY"}}),
        ({"a": "STALE"}, {"a": {"lease": "STALE"}}),
        ({"policy_version_at_least": 2}, {name: {"policy_version_at_least": 2} for name in NODES}),
        ({"b": {"lease": "FRESH", "state": "READY"}}, {"b": {"lease": "FRESH", "state": "READY"}}),
    ],
)
def test_a_wish_is_about_all_nodes_or_the_named_ones(wanted: Any, fields: dict[str, Any]) -> None:
    """A lease, a state, or any field of a node's status."""
    assert expand(wanted, NODES) == fields


@pytest.mark.parametrize("wanted", ["ASLEEP", {}, "", {"c": "FRESH"}, {"colour": "red"}, {"a": "ASLEEP"}])
def test_what_no_node_can_be_is_refused_at_once(wanted: Any) -> None:
    """Waiting for it would end in a timeout that explains nothing."""
    with pytest.raises(InputError):
        expand(wanted, NODES)


def test_what_is_missing_is_named() -> None:
    """So that a timeout says why."""
    assert missing({"lease": "FRESH", "policy_version_at_least": 3}, STATUS) == ""
    assert "policy_version_at_least 4 (is 3)" in missing({"policy_version_at_least": 4}, STATUS)
    assert "is 'READY'" in missing({"state": "DRAINING"}, STATUS)


def test_lists_are_searched() -> None:
    """An alarm or a reason is found by a part of its text."""
    assert missing({"alarms": "lease is over"}, STATUS) == ""
    assert missing({"alarms": "ledger"}, STATUS)


def test_parts_of_a_field_can_be_waited_for() -> None:
    """How a node stands, who vouches for it; other parts may be as they like."""
    status = {"attestation": {"standing": "ATTESTED", "quorum": 2, "vouched": ["a", "b"]}}
    assert missing({"attestation": {"standing": "ATTESTED", "vouched": "b"}}, status) == ""
    assert "attestation" in missing({"attestation": {"standing": "NOT_ATTESTED"}}, status)
    assert "attestation" in missing({"attestation": {"standing": "ATTESTED"}}, UNREACHABLE)


def test_a_node_that_does_not_answer_has_no_fields() -> None:
    """It is UNREACHABLE, and nothing else."""
    assert missing({"state": "UNREACHABLE"}, UNREACHABLE) == ""
    assert missing({"policy_version_at_least": 0}, UNREACHABLE)
