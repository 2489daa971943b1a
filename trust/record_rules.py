"""What one execution record may hold: sizes, characters, and which values go together.

Works on the values of `trust.record`, where the fields are explained.
"""

import hashlib
import re
from typing import TYPE_CHECKING, Final

from egm.v1 import record_pb2 as pb
from trust import limits
from trust.errors import EvidenceError, Reason

if TYPE_CHECKING:
    from trust.record import Intent, Outcome

ID_BYTES: Final = 16
_DIGESTS: Final = (0, 32)
_IDS: Final = (0, ID_BYTES)
_SPANS: Final = (0, 8)
_MAX_LEVEL: Final = 5
_MAX_INT: Final = 2**63 - 1
_MAX_UINT32: Final = 2**32 - 1
# C0 and C1 controls, line separators, and what reorders text: none may reach a terminal or a database.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?\Z")
STATUS_NAMES: Final = frozenset(
    {
        *(
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
        ),
        *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
        *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
    }
)


def trace_of(traceparent: str) -> tuple[bytes, bytes]:
    """Return (trace id, parent span id) of a W3C traceparent; two empty values when it is none."""
    found = _TRACEPARENT.match(traceparent)
    if found is None or found[1] == "0" * 32 or found[2] == "0" * 16 or traceparent.startswith("ff"):
        return b"", b""
    return bytes.fromhex(found[1]), bytes.fromhex(found[2])


def plain(text: str, max_bytes: int = limits.MAX_RECORD_TEXT_BYTES) -> str:
    """Return `text` if a record may hold it; else as much as it may, then "~" and 16 hex digits of its SHA-256."""
    if len(text) <= max_bytes and text.isascii() and text.isprintable():
        return text  # nearly always
    raw = text.encode(errors="surrogatepass")
    if len(raw) <= max_bytes and not _UNPRINTABLE.search(text):
        return text
    mark = f"~{hashlib.sha256(raw).hexdigest()[:16]}"
    room = _UNPRINTABLE.sub("?", text).encode()[: max_bytes - len(mark)]
    return room.decode(errors="ignore") + mark


def texts_of(record: "Intent | Outcome") -> tuple[str, ...]:
    """Return every free text of a record."""
    r = record
    if hasattr(r, "ending"):
        return (r.node, r.boot_id)
    flat = (r.caller, r.authn, r.service, r.callee, r.method, r.traceparent, r.decision_id, r.node, r.boot_id)
    return (*flat, *r.policies, *(part for pair in r.obligations for part in pair))


def is_simple(record: "Intent | Outcome") -> bool:
    """Whether all texts together are short printable ASCII, so that none needs a closer look: nearly always."""
    joined = "".join(texts_of(record))
    return len(joined) <= limits.MAX_RECORD_TEXT_BYTES and joined.isascii() and joined.isprintable()


def check_intent(r: "Intent") -> None:
    """Refuse an intent that no record may hold.

    Raises:
        EvidenceError: RECORD_MALFORMED, naming the field.
    """
    _execution_id("execution_id", r.execution_id)
    _execution_id("root_id", r.root_id)
    _size("parent_id", r.parent_id, _IDS)
    _size("span_id", r.span_id, _SPANS)
    _size("parent_permit_sha256", r.parent_permit_sha256, _DIGESTS)
    _size("request_sha256", r.request_sha256, _DIGESTS)
    _size("policy_sha256", r.policy_sha256, _DIGESTS)
    _size("permit_sha256", r.permit_sha256, _DIGESTS)
    _number("level", r.level, _MAX_LEVEL)
    _number("policy_version", r.policy_version)
    _number("wall_ms", r.wall_ms)
    _number("monotonic_ms", r.monotonic_ms)
    if not is_simple(r):
        _text("caller", r.caller, limits.MAX_RECORD_NAME_BYTES)
        _text("callee", r.callee, limits.MAX_RECORD_NAME_BYTES)
        for name in ("authn", "service", "method", "traceparent", "decision_id", "node", "boot_id"):
            _text(name, getattr(r, name))
        for text in (*r.policies, *(part for pair in r.obligations for part in pair)):
            _text("policies and obligations", text)
    if not r.node or not r.boot_id:
        raise malformed("node or boot_id is empty")
    _reason("reason", r.reason)
    if r.would_deny:
        _reason("would_deny", r.would_deny)
        if not r.allowed:
            raise malformed("would_deny on a refusal")
    if len(r.policies) > limits.MAX_RECORD_POLICIES or len(r.obligations) > limits.MAX_RECORD_OBLIGATIONS:
        raise malformed("more policies or obligations than a record lists")
    if len(r.policies) > 1 and list(r.policies) != sorted(set(r.policies)):
        raise malformed("policies are not in ascending order, each once")
    _number("policies_omitted", r.policies_omitted, _MAX_UINT32)
    _number("obligations_omitted", r.obligations_omitted, _MAX_UINT32)
    _size_up_to("sealed_request", r.sealed_request, limits.MAX_SEALED_PAYLOAD_BYTES)
    if r.permit:
        _check_permit(r.permit, r.permit_sha256)
    _check_chain(r)


def _check_permit(permit: bytes, sha256: bytes) -> None:
    _size_up_to("permit", permit, limits.MAX_PERMIT_BYTES)
    if hashlib.sha256(permit).digest() != sha256:
        raise malformed("permit is not the one that permit_sha256 names")


def _check_chain(r: "Intent") -> None:
    verified = r.link.value == pb.PARENT_LINK_VERIFIED
    # No unverified record may place itself in somebody else's chain.
    if r.root_id != r.execution_id and not verified:
        raise malformed("root_id of another execution without a verified parent")
    if r.parent_permit_sha256 and not verified:
        raise malformed("parent_permit_sha256 without a verified parent")
    if verified and (r.root_id == r.execution_id or not (r.parent_id or r.parent_permit_sha256)):
        raise malformed("a verified parent needs its id or permit, and a root above this execution")
    if r.parent_id and (r.parent_id == r.execution_id or r.link.value == pb.PARENT_LINK_NONE):
        raise malformed("parent_id names the execution itself, or there is no link to it")


def check_outcome(r: "Outcome") -> None:
    """Refuse an outcome that no record may hold. Raises as `check_intent`."""
    _execution_id("execution_id", r.execution_id)
    _size("response_sha256", r.response_sha256, _DIGESTS)
    _number("duration_us", r.duration_us)
    _number("wall_ms", r.wall_ms)
    _number("monotonic_ms", r.monotonic_ms)
    for name in ("request_messages", "request_bytes", "response_messages", "response_bytes"):
        _number(name, getattr(r, name))
    if not is_simple(r):
        _text("node", r.node)
        _text("boot_id", r.boot_id)
    if not r.node or not r.boot_id:
        raise malformed("node or boot_id is empty")
    if r.reason or r.ending.value == pb.OUTCOME_KIND_CUT:
        _reason("reason", r.reason)
    _size_up_to("sealed_response", r.sealed_response, limits.MAX_SEALED_PAYLOAD_BYTES)
    known = r.ending.value != pb.OUTCOME_KIND_INTERRUPTED
    if (r.status in STATUS_NAMES) is not known or (r.status and not known):
        raise malformed("status is not the name of a gRPC status code, or an interrupted execution has one")


def _execution_id(name: str, value: bytes) -> None:
    # version 7, variant 10: other ids would not sort by time
    if len(value) != ID_BYTES or value[6] >> 4 != 7 or value[8] >> 6 != 2:
        raise malformed(f"{name} is not a UUIDv7 of {ID_BYTES} bytes")


def _size(name: str, value: bytes, sizes: tuple[int, ...]) -> None:
    if len(value) not in sizes:
        raise malformed(f"{name} has {len(value)} bytes; allowed: {' or '.join(map(str, sizes))}")


def _size_up_to(name: str, value: bytes, most: int) -> None:
    if len(value) > most:
        raise malformed(f"{name} has {len(value)} bytes, the limit is {most}")


def _number(name: str, value: int, most: int = _MAX_INT) -> None:
    if not 0 <= value <= most:
        raise malformed(f"{name} is {value}, outside of 0 to {most}")


def _text(name: str, value: str, most: int = limits.MAX_RECORD_TEXT_BYTES) -> None:
    if len(value.encode(errors="surrogatepass")) > most:
        raise malformed(f"{name} is longer than {most} bytes")
    if _UNPRINTABLE.search(value):
        raise malformed(f"{name} has unprintable characters")


def _reason(name: str, value: str) -> None:
    if not REASON.match(value):
        raise malformed(f"{name} is not a reason such as POLICY_DENIED")


def malformed(what: str) -> EvidenceError:
    """Return the error that says `what` is wrong with a record."""
    return EvidenceError(Reason.RECORD_MALFORMED, f"execution record: {what}")
