"""What `egm check` says of limits and permits."""

import pytest

from control_plane.cli import check
from egm.v1 import node_pb2
from trust.errors import InputError, Reason


def test_limits_and_what_a_permit_binds_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """How much is left, where, and who set the limit; what a stream's permit binds."""
    limit = node_pb2.CheckResponse.Limit
    answer = node_pb2.CheckResponse(
        allowed=True,
        reason="ALLOWED",
        level=5,
        lease="FRESH",
        obligations=["rate 10/m", "rate 100/m"],
        limits=[
            limit(name="rate", value="100/m", policy="tellers", left="97"),
            limit(name="rate", value="10/m", left="3"),
        ],
        permit_binds="opening message",
    )
    check._print(answer, "node-a")
    shown = capsys.readouterr().out
    assert "limit     rate 100/m by policy tellers: 97 left on node-a" in shown
    assert "limit     rate 10/m by incident response: 3 left on node-a" in shown
    assert "permit    binds the opening message" in shown
    check._print(node_pb2.CheckResponse(reason="RATE_EXCEEDED"), "node-a")
    assert "limit" not in (shown := capsys.readouterr().out) and "permit " not in shown


@pytest.mark.parametrize("method", ["Transfer", "shop.v1.Payments/", "/Transfer"])
def test_a_method_without_its_service_is_a_mistake_and_no_refusal(method: str) -> None:
    """NO_POLICY_PERMITS would send people to look for policy."""
    with pytest.raises(InputError, match=r"write package\.Service/Method") as refused:
        check.check("alice", "shop", method)
    assert refused.value.reason is Reason.INPUT_INVALID
