"""What one emergency key may take away at once: a signed directive that denies or restricts, for a bounded time.

It never allows.

A directive is a signed note (C2SP) with exactly one signature. Its text has seven lines:

    egm/revocation/v1
    TRUST DOMAIN
    SEQUENCE            of its key, 1..2^53-1: a later directive has a greater one
    KIND VALUE          workload NAME | node NAME | key SHA256 | method package.Service/Method (or /* for all)
                        throttle NAME COUNT/UNIT | approval NAME K of GROUP
    ISSUED              Unix seconds
    UNTIL               Unix seconds
    REASON              1..200 printable characters

It is known by the SHA-256 of this text, never by its signature. The signing key is named
`TRUST DOMAIN/emergency/NAME`, which keeps it apart from every other key that signs notes.
"""

import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from trust import limits
from trust.errors import EvidenceError, InputError, MeshError, Reason
from trust.lines import lines_of
from trust.note import Sign, Verifier, open_note, read_unverified, sign_note
from trust.spiffe import SpiffeId, check_name, check_trust_domain

FORMAT: Final = "egm/revocation/v1"
MAX_SEQUENCE: Final = 2**53 - 1
_LINES: Final = 7
_MAX_TIME_S: Final = 2**40 - 1
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_RATE: Final = re.compile(r"[1-9][0-9]{0,8}/[smhd]\Z", re.ASCII)
_APPROVAL: Final = re.compile(r"([1-9][0-9]?) of (\S+)\Z", re.ASCII)
_METHOD: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*/(?:[A-Za-z_]\w*|\*)\Z", re.ASCII)


@enum.unique
class Kind(enum.StrEnum):
    """What a directive takes the rights of."""

    WORKLOAD = "workload"  # calls by it, and calls to what it serves
    NODE = "node"  # permits that it minted, its part in the mesh, and everything that it decides itself
    KEY = "key"  # SHA-256 (hex) of a public key's DER SubjectPublicKeyInfo: of a certificate, or of a node
    METHOD = "method"  # one method, or every method of a gRPC service
    # these do not deny: they restrict what the calls of a workload must meet
    THROTTLE = "throttle"  # "NAME RATE": at most so many calls, for example "alice 10/m"
    APPROVAL = "approval"  # "NAME K of GROUP": each call needs approvers, for example "alice 1 of ops"


RESTRICTIONS: Final = frozenset({Kind.THROTTLE, Kind.APPROVAL})
_OBLIGATION: Final[Mapping[Kind, str]] = {Kind.THROTTLE: "rate", Kind.APPROVAL: "require_approval"}


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom or what a denial is about; `value` has one spelling."""

    kind: Kind
    value: str

    def __post_init__(self) -> None:
        """Refuse a value that is not spelled the one way.

        Raises:
            EvidenceError: REVOCATION_INVALID, saying how to write it.
        """
        if not _is_value(self.kind, self.value):
            raise _invalid(f"{self.value[:80]!r} is not a {self.kind}; write {_EXAMPLE[self.kind]}")

    def __str__(self) -> str:
        """As a person reads it."""
        return f"{self.kind} {self.value}"

    @property
    def restricts(self) -> bool:
        """Whether it only restricts calls, and denies none by itself."""
        return self.kind in RESTRICTIONS

    @property
    def obligation(self) -> tuple[str, str]:
        """What the calls of a restricted workload must meet, as a policy's annotation would say it.

        ("rate", "10/m") or ("require_approval", "1 of ops"); only where `restricts`.
        """
        return _OBLIGATION[self.kind], self.value.partition(" ")[2]

    def spiffe_id(self, trust_domain: str) -> str:
        """Return the SPIFFE ID of a workload (also a restricted one) or node."""
        if self.restricts:
            return str(SpiffeId.of(trust_domain, Kind.WORKLOAD, self.value.partition(" ")[0]))
        return str(SpiffeId.of(trust_domain, self.kind, self.value))


@dataclass(frozen=True, slots=True)
class Directive:
    """What an emergency key says: this subject is denied from now until `until_s`."""

    trust_domain: str
    sequence: int
    subject: Subject
    issued_s: int
    until_s: int
    reason: str

    def __post_init__(self) -> None:
        """Refuse what no directive may say.

        Raises:
            EvidenceError: REVOCATION_INVALID.
        """
        if not 1 <= self.sequence <= MAX_SEQUENCE:
            raise _invalid("its sequence is not 1..2^53-1")
        if not 0 <= self.issued_s < self.until_s <= _MAX_TIME_S:
            raise _invalid("it must end after it begins, at times in Unix seconds")
        if self.until_s - self.issued_s > limits.MAX_REVOCATION_TTL_S:
            raise _invalid(f"it lasts longer than {limits.MAX_REVOCATION_TTL_S} s")
        if not 0 < len(self.reason) <= limits.MAX_REVOCATION_REASON_CHARS or not self.reason.isprintable():
            raise _invalid(
                f"its reason must be 1 to {limits.MAX_REVOCATION_REASON_CHARS} printable characters"
            )

    def body(self) -> bytes:
        """Return the text that is signed."""
        lines = (
            FORMAT,
            self.trust_domain,
            self.sequence,
            self.subject,
            self.issued_s,
            self.until_s,
            self.reason,
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def id(self) -> str:
        """SHA-256 of the text, 64 hexadecimal digits."""
        return hashlib.sha256(self.body()).hexdigest()

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the directive of a note's text, unverified.

        Raises:
            EvidenceError: REVOCATION_INVALID, for anything that `body` would not write.
        """
        lines = lines_of(body, _LINES, FORMAT, _invalid)
        if not all(_DECIMAL.match(lines[number]) for number in (2, 4, 5)):
            raise _invalid("sequence and times must be decimal numbers")
        kind, _, value = lines[3].partition(" ")
        if kind not in set(Kind):
            raise _invalid(f"it revokes a {kind[:40]!r}, which this version does not know")
        try:
            check_trust_domain(lines[1])
        except EvidenceError as error:
            raise _invalid(error.detail) from None
        directive = cls(
            lines[1], int(lines[2]), Subject(Kind(kind), value), int(lines[4]), int(lines[5]), lines[6]
        )
        if directive.body() != body:
            raise _invalid("it is not in canonical form")
        return directive


@dataclass(frozen=True, slots=True)
class SignedDirective:
    """A directive whose signature verified, who signed it, and the bytes that were verified."""

    directive: Directive
    key_name: str  # the emergency key's name, without trust domain
    data: bytes


def verifier_name(trust_domain: str, name: str) -> str:
    """Return the name under which an emergency key signs."""
    return f"{trust_domain}/emergency/{check_name(name)}"


def sign_directive(directive: Directive, name: str, sign: Sign, *, public_key: bytes) -> bytes:
    """Return the signed note of a directive.

    Args:
        directive: what to deny.
        name: of the emergency key in `mesh.json`.
        sign: makes the Ed25519 signature (64 bytes) of the holder of `public_key`.
        public_key: 32 bytes.

    Raises:
        EvidenceError: KEY_UNSAFE or SIGNATURE_INVALID: the key cannot sign it.
    """
    return sign_note(
        directive.body(), verifier_name(directive.trust_domain, name), sign, public_key=public_key
    )


def open_directive(
    data: bytes, keys: Mapping[str, bytes], *, trust_domain: str, max_ttl_s: int
) -> SignedDirective:
    """Return the directive if one emergency key signed it for this mesh, within the signed bound on its length.

    Whether it has ended is for `trust.denials` to say.

    Args:
        data: as received.
        keys: emergency keys in force, name -> 32 bytes Ed25519.
        trust_domain: of this mesh.
        max_ttl_s: the longest that a directive may last, by the signed policy.

    Raises:
        EvidenceError: REVOCATION_INVALID, saying what is wrong.
    """
    if len(data) > limits.MAX_REVOCATION_BYTES:
        raise _invalid(f"it has {len(data)} bytes, at most {limits.MAX_REVOCATION_BYTES} are read")
    verifiers = {verifier_name(trust_domain, name): name for name in keys}
    try:
        note = open_note(data, [Verifier(full, keys[name]) for full, name in verifiers.items()])
    except EvidenceError as error:
        if error.reason is Reason.SIGNATURE_INVALID:
            known = ", ".join(sorted(keys)) or "none"
            raise _invalid(
                f"no emergency key of the policy in force signed it (there are: {known}): {error.detail}"
            ) from None
        raise _invalid(error.detail) from None
    if len(note.verified) != 1 or note.unknown or data.count(b"\n", len(note.text)) != 2:
        raise _invalid("it must carry exactly one signature")
    directive = Directive.parse(note.text)
    if directive.trust_domain != trust_domain:
        raise _invalid(f"it is for the trust domain {directive.trust_domain}, this is {trust_domain}")
    if directive.until_s - directive.issued_s > max_ttl_s:
        raise _invalid(
            f"it lasts {directive.until_s - directive.issued_s} s; the signed policy allows {max_ttl_s} s "
            "(revocation_max_ttl_s), and the quorum can make it permanent (revocations)"
        )
    return SignedDirective(directive, verifiers[note.verified[0].name], data)


def read_directive(data: bytes) -> Directive:
    """Return what a note says without verifying it: only to show it.

    Raises:
        EvidenceError: REVOCATION_INVALID.
    """
    try:
        note = read_unverified(data)
    except EvidenceError as error:
        raise _invalid(error.detail) from None
    return Directive.parse(note.text)


def subject_of(kind: str, value: str, trust_domain: str) -> Subject:
    """Return the subject that a person means: also by SPIFFE ID, with "sha256:" or a leading slash.

    Raises:
        InputError: INPUT_INVALID, saying how to write it.
    """
    try:
        known = Kind(kind)
        if known in {Kind.WORKLOAD, Kind.NODE} and "://" in value:
            spiffe_id = SpiffeId.parse(value)
            if (spiffe_id.trust_domain, spiffe_id.kind) != (trust_domain, known.value):
                raise _invalid(f"{spiffe_id} is not a {known} of {trust_domain}")
            value = spiffe_id.name
        elif known is Kind.KEY:
            value = value.removeprefix("sha256:").replace(":", "").lower()
        elif known is Kind.METHOD:
            value = value.removeprefix("/")
        elif known in RESTRICTIONS:
            name, _, rest = value.partition(" ")
            value = f"{subject_of(Kind.WORKLOAD, name, trust_domain).value} {rest}"
        return Subject(known, value)
    except MeshError as error:
        raise InputError(Reason.INPUT_INVALID, error.detail) from None


_EXAMPLE: Final[Mapping[Kind, str]] = {
    Kind.WORKLOAD: "its name, for example alice",
    Kind.NODE: "its name, for example node-a",
    Kind.KEY: "the SHA-256 of its public key (DER SubjectPublicKeyInfo) as 64 hexadecimal digits",
    Kind.METHOD: "package.Service/Method, or package.Service/* for all of them",
    Kind.THROTTLE: "a workload's name and a rate (per s, m, h or d), for example alice 10/m",
    Kind.APPROVAL: "a workload's name, how many and a group of approvers, for example alice 1 of ops",
}


def _is_value(kind: Kind, value: str) -> bool:
    if kind is Kind.KEY:
        return _SHA256.match(value) is not None
    if kind is Kind.METHOD:
        return len(value) <= limits.MAX_REVOCATION_VALUE_CHARS and _METHOD.match(value) is not None
    names = [value]
    if kind in RESTRICTIONS:
        name, _, rest = value.partition(" ")
        approval = _APPROVAL.match(rest)
        if kind is Kind.THROTTLE and not _RATE.match(rest):
            return False
        if kind is Kind.APPROVAL and approval is None:
            return False
        names = [name] if approval is None else [name, approval[2]]
    try:
        for name in names:
            check_name(name)
    except EvidenceError:
        return False
    return True


def _invalid(what: str) -> EvidenceError:
    return EvidenceError(Reason.REVOCATION_INVALID, f"not a valid revocation: {what}")
