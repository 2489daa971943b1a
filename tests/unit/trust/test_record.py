"""Execution records: one accepted encoding, bounded, and total over what others choose."""

import hashlib
from dataclasses import fields, replace
from typing import Any

import pytest

from egm.v1 import record_pb2 as pb
from tests.support.records import callee_side, child, digest, execution_id, intent, outcome, refusal
from trust import limits
from trust.errors import EvidenceError, Reason
from trust.record import (
    Ending,
    Intent,
    Link,
    Outcome,
    Side,
    build_record,
    interrupted,
    parse_record,
    record_digest,
)
from trust.record_rules import plain, trace_of

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FULL = intent(
    2,
    root_id=execution_id(1),
    parent_id=execution_id(1),
    parent_permit_sha256=digest("p"),
    link=Link.VERIFIED,
    obligations=(("audit", "payload"),),
    obligations_omitted=1,
    policies_omitted=2,
    would_deny="POLICY_STALE",
    traceparent=TRACE,
    span_id=b"12345678",
    sealed_request=b"sealed",
    permit=b"the.permit.itself",
    permit_sha256=hashlib.sha256(b"the.permit.itself").digest(),
)
ENDED = outcome(FULL, ending=Ending.CUT, reason="AUTHORIZATION_WITHDRAWN", sealed_response=b"sealed")


def refused(data: bytes) -> str:
    """Expect `data` to be no record; return why."""
    with pytest.raises(EvidenceError) as caught:
        parse_record(data)
    assert caught.value.reason is Reason.RECORD_MALFORMED
    return caught.value.detail


@pytest.mark.parametrize(
    "record", [intent(), refusal(), FULL, callee_side(FULL, "b"), outcome(intent()), ENDED]
)
def test_a_record_says_what_was_put_in(record: Intent | Outcome) -> None:
    """Every field survives, and the bytes are the same every time."""
    data = build_record(record)
    assert parse_record(data) == record
    assert build_record(parse_record(data)) == data


def test_no_field_is_forgotten_on_the_way() -> None:
    """The two full examples set every field, so the round trip above covers all of them."""
    for full in (FULL, ENDED):
        empty = [f.name for f in fields(full) if getattr(full, f.name) in ("", b"", (), 0)]
        assert empty == []
    assert len(fields(FULL)) == len(pb.Intent.DESCRIPTOR.fields)
    assert len(fields(ENDED)) == len(pb.Outcome.DESCRIPTOR.fields)


def test_the_digest_is_of_the_bytes() -> None:
    """SHA-256 and nothing else, so that a stranger computes the same."""
    assert record_digest(b"") == bytes.fromhex(
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_bytes_that_say_the_same_differently_are_refused() -> None:
    """Two encodings of one record would have two digests."""
    data = build_record(intent())
    assert "unknown fields" in refused(data + b"\xa0\x06\x01")  # field 100
    assert "shortest" in refused(b"\x08\x81\x00" + data[2:])  # format 1 in two bytes
    assert "shortest" in refused(data + data[:2])  # format twice
    assert "shortest" in refused(data[2:] + data[:2])  # another order
    inner = pb.Intent.FromString(data[5:]) if data[2:3] == b"\x12" else None
    assert inner is not None
    spoilt = pb.ExecutionRecord(
        format=1, intent=pb.Intent.FromString(inner.SerializeToString() + b"\xa0\x3f\x01")
    )
    assert "unknown fields" in refused(spoilt.SerializeToString())


def test_what_is_no_record_is_refused() -> None:
    """Empty, another format, no kind, two kinds, not protobuf, too large."""
    assert "format 0" in refused(b"")
    assert "format 3" in refused(pb.ExecutionRecord(format=3).SerializeToString())
    assert "for records with a permit" in refused(pb.ExecutionRecord(format=2).SerializeToString())
    assert "neither" in refused(pb.ExecutionRecord(format=1).SerializeToString())
    assert "not an egm" in refused(b"\xff\xff\xff")
    both = build_record(intent()) + build_record(outcome(intent()))
    assert "shortest" in refused(both)
    assert "limit" in refused(b"\0" * (limits.MAX_RECORD_BYTES + 1))


OTHER = execution_id(9)
BAD_INTENTS: list[tuple[str, dict[str, Any]]] = [
    ("execution_id", {"execution_id": b""}),
    ("execution_id", {"execution_id": b"\0" * 16}),  # not version 7
    ("execution_id", {"execution_id": execution_id(1)[:8] + b"\0" * 8}),  # not variant 10
    ("root_id", {"root_id": b"x"}),
    ("root_id of another", {"root_id": OTHER}),
    ("root_id of another", {"root_id": OTHER, "link": Link.UNVERIFIED, "parent_id": OTHER}),
    ("parent_permit_sha256 without", {"parent_permit_sha256": digest(1)}),
    ("needs its id", {"root_id": OTHER, "link": Link.VERIFIED}),
    ("root above", {"link": Link.VERIFIED, "parent_id": OTHER}),
    ("parent_id", {"parent_id": OTHER}),
    ("parent_id", {"parent_id": execution_id(1), "link": Link.UNVERIFIED}),
    ("parent_id", {"parent_id": b"short", "link": Link.UNVERIFIED}),
    ("request_sha256", {"request_sha256": b"short"}),
    ("policy_sha256", {"policy_sha256": b"short"}),
    ("permit_sha256", {"permit_sha256": b"short"}),
    ("span_id", {"span_id": b"short"}),
    ("level", {"level": 6}),
    ("level", {"level": -1}),
    ("wall_ms", {"wall_ms": -1}),
    ("policy_version", {"policy_version": -1}),
    ("reason", {"reason": ""}),
    ("reason", {"reason": "because"}),
    ("would_deny", {"would_deny": "because"}),
    ("would_deny", {"would_deny": "POLICY_STALE", "allowed": False}),
    ("node", {"node": ""}),
    ("boot_id", {"boot_id": ""}),
    ("caller", {"caller": "x" * (limits.MAX_RECORD_NAME_BYTES + 1)}),
    ("caller", {"caller": "spiffe://\x1b[2J"}),
    ("sealed_request", {"sealed_request": b"x" * (limits.MAX_SEALED_PAYLOAD_BYTES + 1)}),
]


@pytest.mark.parametrize(("where", "change"), BAD_INTENTS, ids=lambda value: str(value)[:40])
def test_an_intent_outside_its_bounds_cannot_be_built(where: str, change: dict[str, Any]) -> None:
    """The refusal names the field."""
    with pytest.raises(EvidenceError) as caught:
        build_record(intent(**({"root_id": execution_id(1)} | change)))
    assert caught.value.reason is Reason.RECORD_MALFORMED
    assert where in caught.value.detail


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("execution_id", {"execution_id": b"x"}),
        ("status", {"status": ""}),
        ("status", {"status": "FINE"}),
        ("status", {"ending": Ending.INTERRUPTED}),
        ("reason", {"ending": Ending.CUT}),
        ("response_sha256", {"response_sha256": b"x"}),
        ("duration_us", {"duration_us": -1}),
        ("sealed_response", {"sealed_response": b"x" * (limits.MAX_SEALED_PAYLOAD_BYTES + 1)}),
        ("node", {"node": ""}),
        ("boot_id", {"boot_id": "\x7f"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_outcome_outside_its_bounds_cannot_be_built(where: str, change: dict[str, Any]) -> None:
    """The refusal names the field."""
    with pytest.raises(EvidenceError) as caught:
        build_record(outcome(intent(), **change))
    assert where in caught.value.detail


def test_the_same_bounds_hold_for_bytes_of_others() -> None:
    """A hostile node does not use our builder."""
    for name, value in (
        ("parent_link", 0),
        ("parent_link", 4),
        ("direction", 3),
        ("policies", ["b", "a"]),
        ("policies", ["a", "a"]),
        ("policies", [f"{n:03}" for n in range(limits.MAX_RECORD_POLICIES + 1)]),
        ("obligations", [pb.Obligation(name="x")] * (limits.MAX_RECORD_OBLIGATIONS + 1)),
        ("obligations", [pb.Obligation(name="\n")]),
        ("method", "x" * (limits.MAX_RECORD_TEXT_BYTES + 1)),
        ("method", "shop.Payments/Pay\x00"),
        ("traceparent", "\u202e"),
    ):
        message = pb.ExecutionRecord.FromString(build_record(intent()))
        message.intent.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, list):
            getattr(message.intent, name).extend(value)
        else:
            setattr(message.intent, name, value)
        words = {"parent_link": "a valid Link", "direction": "a valid Side"}
        why = refused(message.SerializeToString(deterministic=True))
        assert words.get(name, name) in why, (name, value)


def test_text_that_a_caller_chooses_never_keeps_a_record_from_being_written() -> None:
    """A call with a hostile method name is refused like any other, and its refusal is recorded."""
    hostile = ("x" * 70_000, "a\x00b", "\x1b]0;owned\x07", "\u202eevil", "ä" * 400, "\ud800")
    seen = set()
    for name in hostile:
        parsed = parse_record(build_record(refusal(method=name, service=name, traceparent=name)))
        assert isinstance(parsed, Intent)
        assert len(parsed.method.encode()) <= limits.MAX_RECORD_TEXT_BYTES
        assert "~" in parsed.method
        assert parsed.method == parsed.service == plain(name)
        seen.add(parsed.method)
    assert len(seen) == len(hostile)
    assert plain("x" * 600) != plain("x" * 601)
    assert plain("shop.Payments/Pay") == "shop.Payments/Pay"
    assert plain("zahlung-für") == "zahlung-für"


def test_more_policies_and_obligations_than_a_record_lists_are_counted() -> None:
    """Ten thousand policies that all permit a call do not make its record too large."""
    many = tuple(f"p{n:05}" for n in range(10_000))
    record = intent(policies=many, obligations=tuple(("audit", p) for p in many))
    parsed = parse_record(build_record(record))
    assert isinstance(parsed, Intent)
    assert parsed.policies == many[: limits.MAX_RECORD_POLICIES]
    assert parsed.policies_omitted == len(many) - limits.MAX_RECORD_POLICIES
    assert parsed.obligations_omitted == len(many) - limits.MAX_RECORD_OBLIGATIONS


def test_an_interrupted_execution_has_no_status() -> None:
    """After a crash nobody knows how it ended, and nobody claims to."""
    closed = interrupted(FULL, boot_id="boot-2", wall_ms=5, monotonic_ms=1)
    assert parse_record(build_record(closed)) == closed
    assert (closed.ending, closed.status, closed.side) == (Ending.INTERRUPTED, "", Side.OUTBOUND)


@pytest.mark.parametrize(
    "text",
    ["", "00", TRACE.upper(), "ff" + TRACE[2:], TRACE.replace("b7ad6b7169203331", "0" * 16), TRACE + "x"],
)
def test_a_traceparent_that_is_none_links_nothing(text: str) -> None:
    """Invalid values are ignored, as the W3C recommendation says."""
    assert trace_of(text) == (b"", b"")
    assert trace_of(TRACE) == (bytes.fromhex(TRACE[3:35]), bytes.fromhex(TRACE[36:52]))


def test_a_child_links_to_the_permit_of_its_parent() -> None:
    """What the tree joins on."""
    parent = intent(1)
    built = parse_record(build_record(child(2, parent)))
    assert isinstance(built, Intent)
    assert (built.root_id, built.parent_permit_sha256) == (parent.execution_id, parent.permit_sha256)


def test_a_permit_that_is_not_the_one_of_the_digest_is_refused() -> None:
    """Else a node could show one permit to the callee and another to the auditor."""
    for false in (
        replace(FULL, permit=b"another.permit.here"),
        replace(FULL, permit_sha256=b""),
        replace(FULL, permit=b"x" * (limits.MAX_PERMIT_BYTES + 1)),
    ):
        with pytest.raises(EvidenceError, match="permit"):
            build_record(false)
    message = pb.ExecutionRecord.FromString(build_record(FULL))
    message.intent.permit = b"another.permit.here"
    assert "permit_sha256 names" in refused(message.SerializeToString(deterministic=True))


def test_records_from_before_permits_were_kept_are_read_and_stay_what_they_were() -> None:
    """Ledgers of yesterday hold the digest alone, as format 1; a permit under that number is refused."""
    old = replace(FULL, permit=b"")
    message = pb.ExecutionRecord.FromString(build_record(old))
    assert message.format == 1
    assert parse_record(build_record(old)) == old
    message.intent.permit = FULL.permit
    assert "for records with a permit" in refused(message.SerializeToString(deterministic=True))
