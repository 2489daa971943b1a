"""The short way to a record's bytes gives what the long way gives, or nothing."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.test_records import intents, outcomes
from tests.support.records import digest, execution_id, intent, outcome
from trust.errors import EvidenceError
from trust.record import Ending, Intent, Link, Outcome, Side, parse_record, record_digest
from trust.record_wire import intent_bytes, outcome_bytes

PERMIT = b"header.claims.signature"
SAMPLES: tuple[Any, ...] = (
    *("x", "", "OK", "POLICY_DENIED", "line\n", "\udfff", "ü", "x" * 513),
    *(b"", b"\x01", digest(1), execution_id(9), execution_id(1), record_digest(PERMIT), PERMIT, b"x" * 5_000),
    *(0, 1, 5, 6, 127, 128, 300, 2**32, 2**63 - 1, 2**63, -1, True, False),
    *((), ("b", "a", "a"), ("\x1b",), tuple(f"p{n}" for n in range(65)), (("name", "value"),)),
    *Side,
    *Link,
    *Ending,
)


def agrees(record: Intent | Outcome) -> bool:
    """Whether the short way takes `record`; then its bytes are the one encoding of exactly these values."""
    data = intent_bytes(record) if isinstance(record, Intent) else outcome_bytes(record)
    if data is None:
        return False
    if isinstance(record, Intent):
        record = dataclasses.replace(record, policies=tuple(sorted(set(record.policies))))
    assert parse_record(data) == record
    return True


@given(st.one_of(intents(), outcomes()))
def test_what_the_short_way_returns_is_the_one_encoding(record: Intent | Outcome) -> None:
    """Whatever others choose; and again, when parts of it are kept."""
    assert agrees(record) == agrees(record)


ORDINARY: tuple[Intent | Outcome, ...] = (
    intent(1),
    intent(1, permit=PERMIT, permit_sha256=record_digest(PERMIT), traceparent="00-1", policies=("b", "a")),
    intent(
        1,
        link=Link.VERIFIED,
        root_id=execution_id(2),
        parent_id=execution_id(3),
        parent_permit_sha256=digest(1),
    ),
    intent(1, link=Link.UNVERIFIED, allowed=False, reason="POLICY_DENIED", side=Side.INBOUND, caller=""),
    intent(1, would_deny="NO_POLICY_PERMITS", level=1, request_sha256=b"", permit_sha256=b""),
    outcome(intent(1), response_sha256=digest(2), request_bytes=300, response_messages=1, duration_us=2**62),
    outcome(intent(1), ending=Ending.CUT, reason="POLICY_STALE", status="UNAVAILABLE"),
)


@pytest.mark.parametrize("record", ORDINARY)
def test_ordinary_records_go_the_short_way(record: Intent | Outcome) -> None:
    """Else it saves nothing."""
    assert agrees(record)


@pytest.mark.parametrize("record", ORDINARY)
def test_no_field_is_overlooked_or_left_unchecked(record: Intent | Outcome) -> None:
    """Any value in any field, good or bad, is in the bytes as it is, or the short way is not taken."""
    for field in dataclasses.fields(record):
        for value in SAMPLES:
            pairs = value == (("name", "value"),)
            if isinstance(value, type(getattr(record, field.name))) and pairs is (
                field.name == "obligations"
            ):
                changed: Any = dataclasses.replace(record, **{field.name: value})
                try:
                    agrees(changed)
                except EvidenceError as error:
                    raise AssertionError(f"{field.name} = {value!r}: {error}") from error
