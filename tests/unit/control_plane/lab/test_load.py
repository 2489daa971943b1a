"""What counts as a wrong answer while things break."""

from typing import Any

import pytest

from control_plane.lab.calls import Messages, Outcome
from control_plane.lab.load import Call, fits, judge_by
from trust.errors import InputError

CALL = Call("a", "egm.sample.v1.Accounts/GetBalance")


@pytest.mark.parametrize(
    ("outcome", "wrong"),
    [
        (Outcome(True, "OK", reply={"account": "1", "amount": "2"}), False),
        (Outcome(True, "OK", reply={"account": "other"}), True),
        (Outcome(True, "OK", reply=b"\0"), True),
        (Outcome(False, "UNAVAILABLE", "POLICY_STALE"), False),
        (Outcome(False, "DEADLINE_EXCEEDED"), False),
        (Outcome(False, "PERMISSION_DENIED", "NO_POLICY_PERMITS"), True),
        (Outcome(False, "ALREADY_EXISTS", "PERMIT_REPLAYED"), True),
        (Outcome(False, "INTERNAL"), True),
    ],
)
def test_an_allowed_call_is_answered_rightly_or_by_nobody(outcome: Outcome, wrong: bool) -> None:
    """A partition may cost answers, never change them."""
    assert bool(judge_by(ok=True, reply={"account": "1"})(CALL, outcome)) is wrong


def test_a_forbidden_call_that_is_executed_is_wrong_however_it_is_refused_otherwise() -> None:
    """Fail closed."""
    judge = judge_by(ok=False)
    assert judge(CALL, Outcome(True, "OK", reply={}))
    assert not judge(CALL, Outcome(False, "PERMISSION_DENIED"))
    assert not judge(CALL, Outcome(False, "UNAVAILABLE"))


@pytest.mark.parametrize(
    ("wanted", "reply", "fit"),
    [
        (None, {"x": 1}, True),
        ({}, {"x": 1}, True),
        ({"x": {"y": 1}}, {"x": {"y": 1, "z": 2}}, True),
        ({"x": 1}, {"x": 2}, False),
        ({"x": 1}, {}, False),
        ({"x": 1}, b"", False),
        (b"a", b"a", True),
    ],
)
def test_a_wanted_mapping_names_the_fields_that_matter(wanted: Any, reply: Any, fit: bool) -> None:
    """Others may be anything."""
    assert fits(wanted, reply) is fit


def test_requests_are_written_and_replies_read_by_descriptor() -> None:
    """A mapping in, a mapping with every field out."""
    messages = Messages(None)
    data = messages.encode(CALL.method, {"account": "42"})
    assert messages.encode(CALL.method, data) == data
    assert messages.decode(CALL.method, b"") == {"account": "", "amount": "0"}
    assert messages.decode("no.such.Service/Method", b"\1") == b"\1"


@pytest.mark.parametrize(
    ("method", "payload", "word"),
    [("no.such.Service/Method", {"a": 1}, "descriptor"), (CALL.method, {"colour": 1}, "colour")],
)
def test_a_request_that_cannot_be_written_says_why(method: str, payload: dict[str, Any], word: str) -> None:
    """An unknown method or field is the test's mistake, not a refusal of the mesh."""
    with pytest.raises(InputError, match=word):
        Messages(None).encode(method, payload)
