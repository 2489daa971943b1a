"""The bytes of an ordinary record, without the generated code: what many records share is checked and encoded once.

Only a shortcut. `intent_bytes` and `outcome_bytes` return None for whatever is not plainly a good record, and
`trust.record.build_record` then goes the long way, which says what is wrong. What they do return is what the long way
would have returned (tests hold them equal). What is kept between records are encodings of values that were checked,
found by these values; nothing that varies from call to call is left unchecked.
"""

import functools
import hashlib
from typing import TYPE_CHECKING, Final

from egm.v1 import record_pb2 as pb
from trust import limits
from trust.record_rules import REASON, STATUS_NAMES

if TYPE_CHECKING:
    from trust.record import Intent, Outcome

_KEPT: Final = 1_024  # encodings of one kind
_MAX_INT: Final = 2**63 - 1
_ONE_BYTE: Final = tuple(bytes([n]) for n in range(128))
_AND_MORE: Final = tuple(bytes([n | 128]) for n in range(128))  # of a varint: another byte follows
_DIGESTS: Final = (0, 32)


def intent_bytes(r: "Intent") -> bytes | None:
    """Return the record of `r`; None when it takes a closer look."""
    about = _about_call(r.side, r.caller, r.authn, r.service, r.callee, r.method)
    decided = _about_decision(
        r.policy_version,
        r.policy_sha256,
        r.policies,
        r.policies_omitted,
        r.allowed,
        r.reason,
        r.would_deny,
        r.level,
    )
    where = _about_node(r.node, r.boot_id)
    if about is None or decided is None or where is None:
        return None
    if r.sealed_request or r.obligations or r.obligations_omitted or r.span_id:
        return None
    ids = _ids(r)
    if ids is None or not (_is_plain(r.traceparent) and _is_plain(r.decision_id)):
        return None
    if not (0 <= r.wall_ms <= _MAX_INT and 0 <= r.monotonic_ms <= _MAX_INT):
        return None
    request, sha256, permit = r.request_sha256, r.permit_sha256, r.permit
    if len(request) not in _DIGESTS or len(sha256) not in _DIGESTS:
        return None
    head, last = b"\x08\x01\x12", b""
    if permit:
        if len(permit) > limits.MAX_PERMIT_BYTES or hashlib.sha256(permit).digest() != sha256:
            return None
        head, last = b"\x08\x02\x12", b"".join((b"\x8a\x02", _varint(len(permit)), permit))
    body = b"".join(
        (
            ids,
            about,
            b"\x62\x20" + request if request else b"",
            decided,
            b"\xb2\x01\x20" + sha256 if sha256 else b"",
            where,
            _number(b"\xc8\x01", r.wall_ms),
            _number(b"\xd0\x01", r.monotonic_ms),
            _text(b"\xda\x01", r.traceparent),
            _text(b"\xea\x01", r.decision_id),
            last,
        )
    )
    return b"".join((head, _varint(len(body)), body))


def outcome_bytes(r: "Outcome") -> bytes | None:
    """Return the record of `r`; None when it takes a closer look."""
    ended, where = (
        _about_ending(r.side, r.ending, r.status, r.reason),
        _about_node_of_outcome(r.node, r.boot_id),
    )
    if ended is None or where is None or r.sealed_response or not _is_id(r.execution_id):
        return None
    numbers = (r.request_messages, r.request_bytes, r.response_messages, r.response_bytes, r.duration_us)
    if min(numbers) < 0 or max(numbers) > _MAX_INT or len(r.response_sha256) not in _DIGESTS:
        return None
    if not (0 <= r.wall_ms <= _MAX_INT and 0 <= r.monotonic_ms <= _MAX_INT):
        return None
    body = b"".join(
        (
            b"\x0a\x10",
            r.execution_id,
            ended,
            b"\x32\x20" + r.response_sha256 if r.response_sha256 else b"",
            _number(b"\x38", r.request_messages),
            _number(b"\x40", r.request_bytes),
            _number(b"\x48", r.response_messages),
            _number(b"\x50", r.response_bytes),
            _number(b"\x58", r.duration_us),
            where,
            _number(b"\x70", r.wall_ms),
            _number(b"\x78", r.monotonic_ms),
        )
    )
    return b"".join((b"\x08\x01\x1a", _varint(len(body)), body))


def _ids(r: "Intent") -> bytes | None:
    """Return the fields 1 to 5, when they are those of a root, or of a child of a verified parent."""
    own, root, parent, permit = r.execution_id, r.root_id, r.parent_id, r.parent_permit_sha256
    link = r.link.value
    if not _is_id(own):
        return None
    if link != pb.PARENT_LINK_VERIFIED:
        if root != own or parent or permit:
            return None
        return b"".join((b"\x0a\x10", own, b"\x12\x10", own, b"\x20", _ONE_BYTE[link]))
    if own in {root, parent} or not (parent or permit) or not _is_id(root):
        return None
    if len(parent) not in (0, 16) or len(permit) not in _DIGESTS:
        return None
    return b"".join(
        (
            b"\x0a\x10",
            own,
            b"\x12\x10",
            root,
            b"\x1a\x10" + parent if parent else b"",
            b"\x20",
            _ONE_BYTE[link],
            b"\x2a\x20" + permit if permit else b"",
        )
    )


@functools.lru_cache(_KEPT)
def _about_call(  # noqa: PLR0917  # as the record has them
    side: int, caller: str, authn: str, service: str, callee: str, method: str
) -> bytes | None:
    """Return the fields 6 to 11."""
    texts = (caller, authn, service, callee, method)
    if not all(map(_is_plain, texts)):
        return None
    tags = (b"\x3a", b"\x42", b"\x4a", b"\x52", b"\x5a")
    return b"\x30" + _ONE_BYTE[side] + b"".join(map(_text, tags, texts))


@functools.lru_cache(_KEPT)
def _about_decision(  # noqa: PLR0917  # as the record has them
    version: int,
    sha256: bytes,
    policies: tuple[str, ...],
    omitted: int,
    allowed: bool,
    reason: str,
    would_deny: str,
    level: int,
) -> bytes | None:
    """Return the fields 13 to 20."""
    names = sorted(set(policies))
    reasons = (reason, would_deny) if would_deny else (reason,)
    if omitted or len(policies) > limits.MAX_RECORD_POLICIES or not all(map(_is_plain, names)):
        return None
    if not all(map(REASON.match, reasons)) or (would_deny and not allowed):
        return None
    if not 0 <= version <= _MAX_INT or len(sha256) not in _DIGESTS or not 0 <= level <= 5:
        return None
    return b"".join(
        (
            _number(b"\x68", version),
            b"\x72\x20" + sha256 if sha256 else b"",
            *(b"\x7a" + _varint(len(name)) + name.encode("ascii") for name in names),
            b"\x88\x01\x01" if allowed else b"",
            _text(b"\x92\x01", reason),
            _text(b"\x9a\x01", would_deny),
            _number(b"\xa0\x01", level),
        )
    )


@functools.lru_cache(_KEPT)
def _about_node(node: str, boot_id: str) -> bytes | None:
    """Return the fields 23 and 24 of an intent."""
    if not (node and boot_id and _is_plain(node) and _is_plain(boot_id)):
        return None
    return _text(b"\xba\x01", node) + _text(b"\xc2\x01", boot_id)


@functools.lru_cache(_KEPT)
def _about_node_of_outcome(node: str, boot_id: str) -> bytes | None:
    """Return the fields 12 and 13 of an outcome."""
    if not (node and boot_id and _is_plain(node) and _is_plain(boot_id)):
        return None
    return _text(b"\x62", node) + _text(b"\x6a", boot_id)


@functools.lru_cache(_KEPT)
def _about_ending(side: int, ending: int, status: str, reason: str) -> bytes | None:
    """Return the fields 2 to 5 of an outcome of which the status is known."""
    if status not in STATUS_NAMES or ending == pb.OUTCOME_KIND_INTERRUPTED:
        return None
    if (reason or ending == pb.OUTCOME_KIND_CUT) and not REASON.match(reason):
        return None
    return b"".join(
        (b"\x10", _ONE_BYTE[side], b"\x18", _ONE_BYTE[ending], _text(b"\x22", status), _text(b"\x2a", reason))
    )


def _is_id(value: bytes) -> bool:
    return len(value) == 16 and value[6] >> 4 == 7 and value[8] >> 6 == 2


def _is_plain(text: str) -> bool:
    return len(text) <= limits.MAX_RECORD_TEXT_BYTES and text.isascii() and text.isprintable()


def _text(tag: bytes, text: str) -> bytes:
    return b"".join((tag, _varint(len(text)), text.encode("ascii"))) if text else b""


def _number(tag: bytes, value: int) -> bytes:
    return tag + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    """Return a number of at least 0 as protobuf writes it, seven bits a byte, the lowest first."""
    if value < 128:
        return _ONE_BYTE[value]
    if value < 16384:
        return _AND_MORE[value & 127] + _ONE_BYTE[value >> 7]
    return _AND_MORE[value & 127] + _AND_MORE[value >> 7 & 127] + _varint(value >> 14)
