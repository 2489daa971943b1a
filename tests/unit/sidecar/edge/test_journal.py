"""Logs are JSON, decisions are told without their requests, and what needs a person becomes an alarm."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sidecar.core.call import Decision
from sidecar.core.readiness import Alarms
from sidecar.edge.journal import DECISION_ALARMS, LogJournal
from tests.support.sidecar_core import attempt
from trust.edge.logs import JsonFormatter, RateLimit
from trust.errors import Reason


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything logged, as the process would write it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(RateLimit(monotonic=lambda: 0.0))
    logger = logging.getLogger("egm.decisions")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)  # not `level =`: a logger remembers what an earlier test found disabled
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_refusal_is_one_json_line_with_everything_to_ask_why(lines: io.StringIO) -> None:
    """A newline in a method name must not forge a second line."""
    decision = Decision("boot-1", False, Reason.POLICY_DENIED, 4, 7, ("never",), detail="no\nway")
    LogJournal(Alarms()).notable(attempt(method='a.B/C\n{"level": "info"}'), decision)
    (line,) = lines.getvalue().splitlines()
    told = json.loads(line)
    assert (told["message"], told["reason"], told["policies"]) == ("refused", "POLICY_DENIED", ["never"])
    assert told["decision_id"] == "boot-1"
    assert {"caller", "service", "method", "policy_version", "level"} <= set(told)


@pytest.mark.parametrize("reason", [Reason.POLICY_ERROR, Reason.GOVERNANCE_UNAVAILABLE])
def test_broken_policy_and_lost_governance_become_alarms(reason: Reason) -> None:
    """Counts alone would hide them."""
    alarms = Alarms()
    allowed = reason is Reason.GOVERNANCE_UNAVAILABLE
    LogJournal(alarms).notable(attempt(), Decision("b-1", allowed, reason, 3, 7, errors=("broken",)))
    (text,) = alarms.texts()
    assert reason in text
    alarms.clear(*DECISION_ALARMS)
    assert alarms.texts() == ()


def test_a_call_that_incident_response_restricts_becomes_an_alarm() -> None:
    """A person should know that a response bites; a limit of policy is ordinary."""
    alarms = Alarms()
    refused = Decision("b-1", False, Reason.RATE_EXCEEDED, 2, 7)
    LogJournal(alarms).notable(attempt(), refused)
    assert alarms.texts() == ()
    LogJournal(alarms).notable(attempt(), replace(refused, restrictions=(("rate", "10/m"),)))
    (text,) = alarms.texts()
    assert "restricts spiffe://mesh.local/workload/alice (rate 10/m)" in text
    alarms.clear(*DECISION_ALARMS)
    assert alarms.texts() == ()


def test_flood_of_one_caller_is_bounded_and_hides_nobody_else(lines: io.StringIO) -> None:
    """A million refusals a second must neither fill the disk nor push another caller's refusal out."""
    journal = LogJournal(Alarms())
    for number in range(1000):
        journal.notable(attempt(), Decision(f"b-{number}", False, Reason.NO_POLICY_PERMITS, 4, 7))
    journal.notable(attempt(principal=None), Decision("b-other", False, Reason.CALLER_UNIDENTIFIED, 4, 7))
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert len(told) == 51
    assert told[-1]["decision_id"] == "b-other"
