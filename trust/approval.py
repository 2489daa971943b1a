"""Whether enough approvers signed *this* request: tickets, signed approvals, and what they add up to.

A ticket says which call waits for approvers. Its id is the SHA-256 of its text, nine lines:

    egm/ticket/v1
    TRUST DOMAIN
    CALLER              SPIFFE ID
    SERVICE
    METHOD              package.Service/Method
    REQUEST             SHA-256 of the request (hex) | none (a stream that sends nothing) | method (a stream,
                        whatever it sends) | any (in a window)
    POLICIES            ids of the policies that permit the call, or -
    NEEDS               2 of ops; 1 of finance, window 600s
    SERIAL              32 hexadecimal digits, drawn when the ticket was opened

An approval is a signed note (C2SP) with exactly one signature, by a key named `TRUST DOMAIN/approver/NAME`. Its text is
the ticket's last eight lines within six of its own:

    egm/approval/v1
    TICKET              the id
    approve | deny
    ... (from TRUST DOMAIN to SERIAL)
    ISSUED              Unix seconds
    UNTIL               Unix seconds
    REASON              1..200 printable characters, or -

Whoever holds the signed policy verifies it offline, so a control plane can withhold an approval and never make one.
"""

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from google.protobuf.message import DecodeError

from egm.v1 import approvals_pb2
from trust import limits
from trust.approval_rule import Groups, Requirement, members_of, window_s
from trust.errors import EvidenceError, MeshError, Reason
from trust.note import Sign, Verifier, open_note, read_unverified, sign_note
from trust.permit_claims import NO_MESSAGE
from trust.record_rules import plain
from trust.spiffe import SpiffeId, check_name, check_trust_domain

APPROVAL_KEY: Final = "egm-approval-bin"  # request metadata from the caller's sidecar to the callee's
TICKET_FORMAT: Final = "egm/ticket/v1"
FORMAT: Final = "egm/approval/v1"
NOTHING_SENT: Final = "none"
METHOD_ALONE: Final = "method"
ANY_REQUEST: Final = "any"
NO_TEXT: Final = "-"
_TICKET_LINES: Final = 9
_LINES: Final = 14
_MAX_TIME_S: Final = 2**40 - 1
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,12})\Z", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_SERIAL: Final = re.compile(r"[0-9a-f]{32}\Z")
_WORDS: Final = frozenset({NOTHING_SENT, METHOD_ALONE, ANY_REQUEST})


@enum.unique
class Verdict(enum.StrEnum):
    """What an approver says."""

    APPROVE = "approve"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A call that waits for approvers. Every field is one line of printable text; see the module."""

    trust_domain: str
    caller: str
    service: str
    method: str
    request: str
    policies: str
    needs: str
    serial: str

    def __post_init__(self) -> None:
        """Refuse what no ticket may say.

        Raises:
            EvidenceError: APPROVAL_INVALID.
        """
        try:
            check_trust_domain(self.trust_domain)
            SpiffeId.parse(self.caller)
        except EvidenceError as error:
            raise _invalid(error.detail) from None
        if self.request not in _WORDS and not _SHA256.match(self.request):
            raise _invalid("its request is no SHA-256 in hexadecimal digits")
        if not _SERIAL.match(self.serial):
            raise _invalid("its serial is not 32 hexadecimal digits")
        for line in (self.service, self.method, self.policies, self.needs):
            if not line or plain(line) != line:
                raise _invalid("a line is empty, too long or not printable")

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that an approval repeats."""
        return (
            self.trust_domain,
            self.caller,
            self.service,
            self.method,
            self.request,
            self.policies,
            self.needs,
            self.serial,
        )

    def body(self) -> bytes:
        """Return the text whose SHA-256 is the id."""
        return "".join(f"{line}\n" for line in (TICKET_FORMAT, *self.lines)).encode()

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(self.body()).hexdigest()

    @property
    def call(self) -> tuple[str, ...]:
        """What two tickets for the same call have in common: everything but the serial."""
        return self.lines[:-1]

    @property
    def call_sha256(self) -> str:
        """The SHA-256 (hex) of `call`."""
        return hashlib.sha256("".join(f"{line}\n" for line in self.call).encode()).hexdigest()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the ticket of a text. Total over arbitrary bytes.

        Raises:
            EvidenceError: APPROVAL_INVALID, for anything that `body` would not write.
        """
        lines = _lines(body, _TICKET_LINES, TICKET_FORMAT)
        return cls(*lines[1:])


def ticket_for(
    *,
    trust_domain: str,
    caller: str,
    service: str,
    method: str,
    request_sha256: bytes,
    policies: Iterable[str],
    needs: str,
    window: bool,
    serial: str,
) -> Ticket:
    """Return the ticket of a call; text that others chose is made fit for a line.

    Args:
        trust_domain: of the mesh.
        caller: SPIFFE ID.
        service: logical name.
        method: as called.
        request_sha256: of the request or opening message (32 bytes), NO_MESSAGE, or empty when none is bound.
        policies: ids of the permits that determined the call.
        needs: `trust.approval_rule.needs_of`.
        window: whether it covers further calls, whatever they ask.
        serial: 32 hexadecimal digits.
    """
    if window:
        request = ANY_REQUEST
    elif request_sha256 == NO_MESSAGE:
        request = NOTHING_SENT
    else:
        request = request_sha256.hex() or METHOD_ALONE
    named = plain(", ".join(sorted(policies))) or NO_TEXT
    return Ticket(
        trust_domain,
        caller,
        plain(service) or NO_TEXT,
        plain(method) or NO_TEXT,
        request,
        named,
        plain(needs),
        serial,
    )


@dataclass(frozen=True, slots=True)
class Approval:
    """What one approver says of one ticket, from `issued_s` until `until_s`."""

    ticket: Ticket
    verdict: Verdict
    issued_s: int
    until_s: int
    reason: str = NO_TEXT

    def __post_init__(self) -> None:
        """Refuse what no approval may say.

        Raises:
            EvidenceError: APPROVAL_INVALID.
        """
        if not 0 <= self.issued_s < self.until_s <= _MAX_TIME_S:
            raise _invalid("it must end after it begins, at times in Unix seconds")
        if self.until_s - self.issued_s > limits.MAX_APPROVAL_LIFETIME_S:
            raise _invalid(f"it lasts longer than {limits.MAX_APPROVAL_LIFETIME_S} s")
        if not 0 < len(self.reason) <= limits.MAX_APPROVAL_REASON_CHARS or not self.reason.isprintable():
            raise _invalid(f"its reason must be 1 to {limits.MAX_APPROVAL_REASON_CHARS} printable characters")

    def body(self) -> bytes:
        """Return the text that is signed."""
        lines = (
            FORMAT,
            self.ticket.id,
            self.verdict,
            *self.ticket.lines,
            self.issued_s,
            self.until_s,
            self.reason,
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the approval of a note's text, unverified. Total over arbitrary bytes.

        Raises:
            EvidenceError: APPROVAL_INVALID, for anything that `body` would not write.
        """
        lines = _lines(body, _LINES, FORMAT)
        if lines[2] not in set(Verdict):
            raise _invalid(f"its verdict is {lines[2][:20]!r}, neither approve nor deny")
        if not _DECIMAL.match(lines[11]) or not _DECIMAL.match(lines[12]):
            raise _invalid("its times must be decimal numbers")
        ticket = Ticket(*lines[3:11])
        if ticket.id != lines[1]:
            raise _invalid("its ticket id is not that of the call it names")
        return cls(ticket, Verdict(lines[2]), int(lines[11]), int(lines[12]), lines[13])


@dataclass(frozen=True, slots=True)
class SignedApproval:
    """An approval whose signature verified, the approver who signed it, and the bytes that were verified."""

    approval: Approval
    name: str
    data: bytes

    @property
    def sha256(self) -> str:
        """Of the text that was signed, in hexadecimal digits: what records name it by."""
        return hashlib.sha256(self.approval.body()).hexdigest()


def verifier_name(trust_domain: str, name: str) -> str:
    """Return the name under which an approver signs."""
    return f"{trust_domain}/approver/{check_name(name)}"


def sign_approval(approval: Approval, name: str, sign: Sign, *, public_key: bytes) -> bytes:
    """Return the signed note of an approval.

    Args:
        approval: what to say.
        name: of the approver in `approver_groups`.
        sign: makes the Ed25519 signature (64 bytes) of the holder of `public_key`.
        public_key: 32 bytes.

    Raises:
        EvidenceError: KEY_UNSAFE or SIGNATURE_INVALID: the key cannot sign it.
    """
    full = verifier_name(approval.ticket.trust_domain, name)
    return sign_note(approval.body(), full, sign, public_key=public_key)


def open_approval(data: bytes, keys: Mapping[str, bytes], *, trust_domain: str) -> SignedApproval:
    """Return the approval if one of `keys` signed it. Whether it is in time, and for which call, `judge` says.

    Args:
        data: as received.
        keys: approvers of the policy in force, name -> 32 bytes Ed25519.
        trust_domain: of this mesh.

    Raises:
        EvidenceError: APPROVAL_INVALID, saying what is wrong.
    """
    if len(data) > limits.MAX_APPROVAL_BYTES:
        raise _invalid(f"it has {len(data)} bytes, at most {limits.MAX_APPROVAL_BYTES} are read")
    names = {verifier_name(trust_domain, name): name for name in keys}
    try:
        note = open_note(data, [Verifier(full, keys[name]) for full, name in names.items()])
    except EvidenceError as error:
        if error.reason is Reason.SIGNATURE_INVALID:
            known = ", ".join(sorted(keys)) or "none"
            raise _invalid(
                f"no approver that policy asks for signed it (they are: {known}): {error.detail}"
            ) from None
        raise _invalid(error.detail) from None
    if len(note.verified) != 1 or note.unknown or data.count(b"\n", len(note.text)) != 2:
        raise _invalid("it must carry exactly one signature")
    approval = Approval.parse(note.text)
    if approval.ticket.trust_domain != trust_domain:
        raise _invalid(f"it is for the trust domain {approval.ticket.trust_domain}, this is {trust_domain}")
    return SignedApproval(approval, names[note.verified[0].name], data)


def read_approval(data: bytes) -> Approval:
    """Return what a note says without verifying it: only to show it.

    Raises:
        EvidenceError: APPROVAL_INVALID.
    """
    try:
        note = read_unverified(data)
    except MeshError as error:
        raise _invalid(error.detail) from None
    return Approval.parse(note.text)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a ticket stands: who approved, who denied, and what is missing."""

    approved: tuple[SignedApproval, ...]  # in time, by approvers that policy asks for; one per name
    denied: SignedApproval | None
    missing: tuple[str, ...]  # "1 more of ops (ben, cleo)"
    expired: bool  # some approvals came too late, or have ended
    until_s: int  # when the first of `approved` ends

    @property
    def met(self) -> bool:
        """Whether the call may go on."""
        return self.denied is None and not self.missing


def judge(
    signed: Iterable[SignedApproval],
    ticket: Ticket,
    requirements: Iterable[Requirement],
    groups: Groups,
    now_ms: int,
) -> Standing:
    """Return what signed approvals add up to. One denial by anybody whom policy asks is enough to refuse.

    A name counts once, and stands for one key (`trust.approval_rule.check_groups`).

    Args:
        signed: verified by `open_approval`; those of other tickets do not count.
        ticket: of the call.
        requirements: every one must be met.
        groups: of the policy in force.
        now_ms: Unix time, ms.
    """
    wanted = tuple(requirements)
    asked, ticket_id = members_of(groups, wanted), ticket.id
    longest_s = window_s(wanted) or limits.MAX_APPROVAL_LIFETIME_S
    denied: SignedApproval | None = None
    expired, ends_s = False, _MAX_TIME_S
    approved: dict[str, SignedApproval] = {}
    for one in signed:
        said = one.approval
        if said.ticket.id != ticket_id or one.name not in asked:
            continue
        end_s = said.until_s if said.verdict is Verdict.DENY else min(said.until_s, said.issued_s + longest_s)
        if not said.issued_s * 1000 <= now_ms + limits.MAX_CLOCK_SKEW_MS or now_ms >= end_s * 1000:
            expired = expired or said.verdict is Verdict.APPROVE
        elif said.verdict is Verdict.DENY:
            denied = denied or one
        else:
            approved.setdefault(one.name, one)
            ends_s = min(ends_s, end_s)
    return Standing(
        tuple(approved[name] for name in sorted(approved)),
        denied,
        _missing(approved, wanted, groups),
        expired,
        ends_s,
    )


def _missing(
    approved: Mapping[str, object], wanted: tuple[Requirement, ...], groups: Groups
) -> tuple[str, ...]:
    missing: dict[str, None] = {}
    for one in wanted:
        members = groups.get(one.group, {})
        more = one.needed - sum(1 for name in members if name in approved)
        if more > 0:
            who = ", ".join(sorted(name for name in members if name not in approved)) or "nobody is in it"
            missing.setdefault(f"{more} more of {one.group} ({who})")
    return tuple(missing)


def pack(notes: Iterable[bytes]) -> bytes:
    """Return approvals as they travel with a call (`APPROVAL_KEY`).

    Raises:
        EvidenceError: LIMIT_EXCEEDED.
    """
    data: bytes = approvals_pb2.CarriedApprovals(notes=list(notes)).SerializeToString(deterministic=True)
    if len(data) > limits.MAX_CARRIED_APPROVALS_BYTES:
        raise EvidenceError(
            Reason.LIMIT_EXCEEDED,
            f"the approvals of this call have {len(data)} bytes, {limits.MAX_CARRIED_APPROVALS_BYTES} may travel with "
            "it; approvers must give shorter reasons",
        )
    return data


def unpack(data: bytes) -> tuple[bytes, ...]:
    """Return the approvals that came with a call. Total over arbitrary bytes.

    Raises:
        EvidenceError: APPROVAL_INVALID.
    """
    if len(data) > limits.MAX_CARRIED_APPROVALS_BYTES:
        raise _invalid(f"{len(data)} bytes came, at most {limits.MAX_CARRIED_APPROVALS_BYTES} are read")
    message = approvals_pb2.CarriedApprovals()
    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise _invalid(f"{APPROVAL_KEY} holds none") from None
    if not 0 < len(message.notes) <= limits.MAX_CARRIED_APPROVALS:
        raise _invalid(f"{len(message.notes)} came; 1 to {limits.MAX_CARRIED_APPROVALS} are read")
    return tuple(message.notes)


def _lines(body: bytes, count: int, first: str) -> list[str]:
    try:
        lines = body.decode().split("\n")
    except UnicodeDecodeError:
        raise _invalid("it is not UTF-8") from None
    if len(lines) != count + 1 or lines[-1] or lines[0] != first:
        raise _invalid(f"{count} lines are expected, the first one {first}")
    return lines[:-1]


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.APPROVAL_INVALID, f"not a valid approval: {what}")
