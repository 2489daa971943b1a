"""What a node writes down about an execution, as bytes: one accepted encoding, everything bounded.

An execution has two records on each node it passes: an `Intent` before it is forwarded (or instead), and an
`Outcome` when it is over. A ledger's leaf is the digest of the bytes that `build_record` returned; readers keep and
digest those bytes, and never serialise a record again.
"""

import enum
import hashlib
from dataclasses import replace
from typing import Final

from google.protobuf.message import DecodeError

from egm.v1 import record_pb2 as pb
from trust import limits
from trust.per_call import per_call
from trust.record_rules import check_intent, check_outcome, is_simple, malformed, plain, trace_of
from trust.record_wire import intent_bytes, outcome_bytes

FORMAT: Final = 1
FORMAT_WITH_PERMIT: Final = 2  # a reader that knows only the first says that it must be upgraded


@enum.unique
class Side(enum.IntEnum):
    """Which of an execution's two sidecars wrote a record; one node may be both."""

    OUTBOUND = pb.DIRECTION_OUTBOUND
    INBOUND = pb.DIRECTION_INBOUND


@enum.unique
class Link(enum.IntEnum):
    """How the parent is known; a greater value is the stronger claim."""

    NONE = pb.PARENT_LINK_NONE
    UNVERIFIED = pb.PARENT_LINK_UNVERIFIED  # by traceparent
    VERIFIED = pb.PARENT_LINK_VERIFIED  # by a permit that the node verified


@enum.unique
class Ending(enum.IntEnum):
    """How an execution ended."""

    COMPLETED = pb.OUTCOME_KIND_COMPLETED
    CUT = pb.OUTCOME_KIND_CUT
    INTERRUPTED = pb.OUTCOME_KIND_INTERRUPTED


@per_call(kw_only=True)
class Intent:
    """What was asked and decided; the fields of egm.v1.Intent. Ids are 16 bytes, digests 32, empty when absent."""

    execution_id: bytes
    root_id: bytes
    link: Link
    side: Side
    service: str
    method: str
    allowed: bool
    reason: str
    level: int
    node: str
    boot_id: str
    wall_ms: int
    monotonic_ms: int
    parent_id: bytes = b""
    parent_permit_sha256: bytes = b""
    caller: str = ""
    authn: str = ""
    callee: str = ""
    request_sha256: bytes = b""
    policy_version: int = 0
    policy_sha256: bytes = b""
    policies: tuple[str, ...] = ()
    policies_omitted: int = 0
    would_deny: str = ""
    obligations: tuple[tuple[str, str], ...] = ()
    obligations_omitted: int = 0
    permit_sha256: bytes = b""
    traceparent: str = ""
    span_id: bytes = b""
    decision_id: str = ""
    sealed_request: bytes = b""
    permit: bytes = b""  # the token itself; records of format 1 hold its digest alone

    @property
    def trace_id(self) -> bytes:
        """The trace that the caller claimed to be part of, 16 bytes; empty when it claimed none."""
        return trace_of(self.traceparent)[0]


@per_call(kw_only=True)
class Outcome:
    """How it ended; the fields of egm.v1.Outcome. `status` is a gRPC status code's name."""

    execution_id: bytes
    side: Side
    ending: Ending
    node: str
    boot_id: str
    wall_ms: int
    monotonic_ms: int
    status: str = ""
    reason: str = ""
    response_sha256: bytes = b""
    request_messages: int = 0
    request_bytes: int = 0
    response_messages: int = 0
    response_bytes: int = 0
    duration_us: int = 0
    sealed_response: bytes = b""


Record = Intent | Outcome


def record_digest(data: bytes) -> bytes:
    """Return the SHA-256 of a record's bytes: the entry in the ledger."""
    return hashlib.sha256(data).digest()


def build_record(record: Record) -> bytes:
    """Return the bytes of `record`. They are the record from now on.

    Text that others choose (method, service, traceparent, policy ids, …) never makes this fail: what is too long or
    unprintable is replaced, with a mark (`plain`), and policies and obligations beyond
    what one record lists are counted. Everything else is the node's own doing:

    Raises:
        EvidenceError: RECORD_MALFORMED, naming the field.
    """
    ordinary = intent_bytes(record) if isinstance(record, Intent) else outcome_bytes(record)
    if ordinary is not None:
        return ordinary
    if isinstance(record, Intent):
        record = _written(record)
        check_intent(record)
        number = FORMAT_WITH_PERMIT if record.permit else FORMAT
        message = pb.ExecutionRecord(format=number, intent=_intent_to_wire(record))
    else:
        check_outcome(record)
        message = pb.ExecutionRecord(format=FORMAT, outcome=_outcome_to_wire(record))
    data: bytes = message.SerializeToString(deterministic=True)
    if len(data) > limits.MAX_RECORD_BYTES:
        raise malformed(f"{len(data)} bytes, the limit is {limits.MAX_RECORD_BYTES}")
    return data


def parse_record(data: bytes) -> Record:
    """Return what `data` says, if it is the one encoding of a record. Total over arbitrary bytes.

    Raises:
        EvidenceError: RECORD_MALFORMED: not a record, another format, unknown or repeated fields, another encoding
            of the same values, or a value outside its bounds; the detail names the field.
    """
    if len(data) > limits.MAX_RECORD_BYTES:
        raise malformed(f"{len(data)} bytes, the limit is {limits.MAX_RECORD_BYTES}")
    message = pb.ExecutionRecord()
    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise malformed("not an egm.v1.ExecutionRecord") from None
    if message.format not in {FORMAT, FORMAT_WITH_PERMIT}:
        raise malformed(
            f"format {message.format}; this version reads formats {FORMAT} and {FORMAT_WITH_PERMIT}, "
            "upgrade to read newer"
        )
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != data:
        raise malformed("unknown fields, or not the shortest encoding in field order")
    kind = message.WhichOneof("kind")
    if (message.format == FORMAT_WITH_PERMIT) is not bool(message.intent.permit):
        raise malformed(f"format {FORMAT_WITH_PERMIT} is for records with a permit, and for those alone")
    try:
        if kind == "intent":
            intent = _intent_from_wire(message.intent)
            check_intent(intent)
            return intent
        if kind == "outcome":
            outcome = _outcome_from_wire(message.outcome)
            check_outcome(outcome)
            return outcome
    except ValueError as error:  # a number that Side, Link or Ending does not have
        raise malformed(str(error)) from None
    raise malformed("neither an intent nor an outcome")


def interrupted(intent: Intent, *, boot_id: str, wall_ms: int, monotonic_ms: int) -> Outcome:
    """Return the outcome of an intent that a crash left open: nobody knows how it ended."""
    return Outcome(
        execution_id=intent.execution_id,
        side=intent.side,
        ending=Ending.INTERRUPTED,
        node=intent.node,
        boot_id=boot_id,
        wall_ms=wall_ms,
        monotonic_ms=monotonic_ms,
    )


def _written(r: Intent) -> Intent:
    """Return `r` with everything that others choose made fit for a record."""
    most_p, most_o = limits.MAX_RECORD_POLICIES, limits.MAX_RECORD_OBLIGATIONS
    if len(r.policies) <= most_p and len(r.obligations) <= most_o and is_simple(r):
        return r if len(r.policies) < 2 else replace(r, policies=tuple(sorted(set(r.policies))))
    return replace(
        r,
        service=plain(r.service),
        method=plain(r.method),
        traceparent=plain(r.traceparent),
        policies=tuple(sorted({plain(name) for name in r.policies[:most_p]})),
        policies_omitted=r.policies_omitted + len(r.policies[most_p:]),
        obligations=tuple((plain(name), plain(value)) for name, value in r.obligations[:most_o]),
        obligations_omitted=r.obligations_omitted + len(r.obligations[most_o:]),
    )


def _intent_to_wire(r: Intent) -> pb.Intent:
    return pb.Intent(
        execution_id=r.execution_id,
        root_id=r.root_id,
        parent_id=r.parent_id,
        parent_link=r.link.value,
        parent_permit_sha256=r.parent_permit_sha256,
        direction=r.side.value,
        caller=r.caller,
        authn=r.authn,
        service=r.service,
        callee=r.callee,
        method=r.method,
        request_sha256=r.request_sha256,
        policy_version=r.policy_version,
        policy_sha256=r.policy_sha256,
        policies=r.policies,
        policies_omitted=r.policies_omitted,
        allowed=r.allowed,
        reason=r.reason,
        would_deny=r.would_deny,
        level=r.level,
        obligations=[pb.Obligation(name=name, value=value) for name, value in r.obligations],
        obligations_omitted=r.obligations_omitted,
        permit_sha256=r.permit_sha256,
        node=r.node,
        boot_id=r.boot_id,
        wall_ms=r.wall_ms,
        monotonic_ms=r.monotonic_ms,
        traceparent=r.traceparent,
        span_id=r.span_id,
        decision_id=r.decision_id,
        sealed_request=r.sealed_request,
        permit=r.permit,
    )


def _intent_from_wire(m: pb.Intent) -> Intent:
    return Intent(
        execution_id=m.execution_id,
        root_id=m.root_id,
        parent_id=m.parent_id,
        link=Link(m.parent_link),
        parent_permit_sha256=m.parent_permit_sha256,
        side=Side(m.direction),
        caller=m.caller,
        authn=m.authn,
        service=m.service,
        callee=m.callee,
        method=m.method,
        request_sha256=m.request_sha256,
        policy_version=m.policy_version,
        policy_sha256=m.policy_sha256,
        policies=tuple(m.policies),
        policies_omitted=m.policies_omitted,
        allowed=m.allowed,
        reason=m.reason,
        would_deny=m.would_deny,
        level=m.level,
        obligations=tuple((o.name, o.value) for o in m.obligations),
        obligations_omitted=m.obligations_omitted,
        permit_sha256=m.permit_sha256,
        node=m.node,
        boot_id=m.boot_id,
        wall_ms=m.wall_ms,
        monotonic_ms=m.monotonic_ms,
        traceparent=m.traceparent,
        span_id=m.span_id,
        decision_id=m.decision_id,
        sealed_request=m.sealed_request,
        permit=m.permit,
    )


def _outcome_to_wire(r: Outcome) -> pb.Outcome:
    return pb.Outcome(
        execution_id=r.execution_id,
        direction=r.side.value,
        kind=r.ending.value,
        status=r.status,
        reason=r.reason,
        response_sha256=r.response_sha256,
        request_messages=r.request_messages,
        request_bytes=r.request_bytes,
        response_messages=r.response_messages,
        response_bytes=r.response_bytes,
        duration_us=r.duration_us,
        node=r.node,
        boot_id=r.boot_id,
        wall_ms=r.wall_ms,
        monotonic_ms=r.monotonic_ms,
        sealed_response=r.sealed_response,
    )


def _outcome_from_wire(m: pb.Outcome) -> Outcome:
    return Outcome(
        execution_id=m.execution_id,
        side=Side(m.direction),
        ending=Ending(m.kind),
        status=m.status,
        reason=m.reason,
        response_sha256=m.response_sha256,
        request_messages=m.request_messages,
        request_bytes=m.request_bytes,
        response_messages=m.response_messages,
        response_bytes=m.response_bytes,
        duration_us=m.duration_us,
        node=m.node,
        boot_id=m.boot_id,
        wall_ms=m.wall_ms,
        monotonic_ms=m.monotonic_ms,
        sealed_response=m.sealed_response,
    )
