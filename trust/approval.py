"""Whether enough approvers signed *this* request: signed approvals, and what they add up to.

An approval is a signed note (C2SP) with exactly one signature, by a key named `TRUST DOMAIN/approver/NAME`. Its text
has fourteen lines, among them those of the ticket (`trust.ticket`):

    egm/approval/v1
    TICKET              the id
    approve | deny
    ... (from TRUST DOMAIN to SERIAL, as in the ticket)
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
from trust.lines import lines_of
from trust.note import Sign, Verifier, open_note, read_unverified, sign_note
from trust.spiffe import check_name
from trust.ticket import NO_TEXT, Ticket, invalid

APPROVAL_KEY: Final = "egm-approval-bin"  # request metadata from the caller's sidecar to the callee's
FORMAT: Final = "egm/approval/v1"
_LINES: Final = 14
_MAX_TIME_S: Final = 2**40 - 1
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,12})\Z", re.ASCII)


@enum.unique
class Verdict(enum.StrEnum):
    """What an approver says."""

    APPROVE = "approve"
    DENY = "deny"


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
            raise invalid("it must end after it begins, at times in Unix seconds")
        if self.until_s - self.issued_s > limits.MAX_APPROVAL_LIFETIME_S:
            raise invalid(f"it lasts longer than {limits.MAX_APPROVAL_LIFETIME_S} s")
        if not 0 < len(self.reason) <= limits.MAX_APPROVAL_REASON_CHARS or not self.reason.isprintable():
            raise invalid(f"its reason must be 1 to {limits.MAX_APPROVAL_REASON_CHARS} printable characters")

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
        lines = lines_of(body, _LINES, FORMAT, invalid)
        if lines[2] not in set(Verdict):
            raise invalid(f"its verdict is {lines[2][:20]!r}, neither approve nor deny")
        if not _DECIMAL.match(lines[11]) or not _DECIMAL.match(lines[12]):
            raise invalid("its times must be decimal numbers")
        ticket = Ticket(*lines[3:11])
        if ticket.id != lines[1]:
            raise invalid("its ticket id is not that of the call it names")
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
        raise invalid(f"it has {len(data)} bytes, at most {limits.MAX_APPROVAL_BYTES} are read")
    names = {verifier_name(trust_domain, name): name for name in keys}
    try:
        note = open_note(data, [Verifier(full, keys[name]) for full, name in names.items()])
    except EvidenceError as error:
        if error.reason is Reason.SIGNATURE_INVALID:
            known = ", ".join(sorted(keys)) or "none"
            raise invalid(
                f"no approver that policy asks for signed it (they are: {known}): {error.detail}"
            ) from None
        raise invalid(error.detail) from None
    if len(note.verified) != 1 or note.unknown or data.count(b"\n", len(note.text)) != 2:
        raise invalid("it must carry exactly one signature")
    approval = Approval.parse(note.text)
    if approval.ticket.trust_domain != trust_domain:
        raise invalid(f"it is for the trust domain {approval.ticket.trust_domain}, this is {trust_domain}")
    return SignedApproval(approval, names[note.verified[0].name], data)


def read_approval(data: bytes) -> Approval:
    """Return what a note says without verifying it: only to show it.

    Raises:
        EvidenceError: APPROVAL_INVALID.
    """
    try:
        note = read_unverified(data)
    except MeshError as error:
        raise invalid(error.detail) from None
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


def enough(
    standing: Standing, requirements: Iterable[Requirement], groups: Groups
) -> tuple[SignedApproval, ...]:
    """Return of a ticket that is met as many approvals as are needed, by name: more would only cost room."""
    chosen: dict[str, SignedApproval] = {}
    for one in requirements:
        members = groups.get(one.group, {})
        able = [said for said in standing.approved if said.name in members]
        chosen |= {said.name: said for said in able[: one.needed]}
    return tuple(chosen[name] for name in sorted(chosen))


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
        raise invalid(f"{len(data)} bytes came, at most {limits.MAX_CARRIED_APPROVALS_BYTES} are read")
    message = approvals_pb2.CarriedApprovals()
    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise invalid(f"{APPROVAL_KEY} holds none") from None
    if not 0 < len(message.notes) <= limits.MAX_CARRIED_APPROVALS:
        raise invalid(f"{len(message.notes)} came; 1 to {limits.MAX_CARRIED_APPROVALS} are read")
    return tuple(message.notes)
