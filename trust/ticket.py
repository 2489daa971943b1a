"""Which call waits for approvers: a ticket, known by the SHA-256 of its text.

The text has nine lines:

    egm/ticket/v1
    TRUST DOMAIN
    CALLER              SPIFFE ID
    SERVICE
    METHOD              package.Service/Method
    REQUEST             SHA-256 of the request (hex) | none (a stream that sends nothing) | method (a stream,
                        whatever it sends) | any (in a window)
    POLICIES            ids of the policies that permit the call, or -
    NEEDS               2 of ops; 1 of finance, window 600s
    SERIAL              32 hexadecimal digits, drawn when the ticket was opened: a second call gets another ticket
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from trust.errors import EvidenceError, Reason
from trust.lines import lines_of
from trust.permit_claims import NO_MESSAGE
from trust.record_rules import plain
from trust.spiffe import SpiffeId, check_trust_domain

FORMAT: Final = "egm/ticket/v1"
NOTHING_SENT: Final = "none"
METHOD_ALONE: Final = "method"
ANY_REQUEST: Final = "any"
NO_TEXT: Final = "-"
_LINES: Final = 9
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_SERIAL: Final = re.compile(r"[0-9a-f]{32}\Z")
_WORDS: Final = frozenset({NOTHING_SENT, METHOD_ALONE, ANY_REQUEST})


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
            raise invalid(error.detail) from None
        if self.request not in _WORDS and not _SHA256.match(self.request):
            raise invalid("its request is no SHA-256 in hexadecimal digits")
        if not _SERIAL.match(self.serial):
            raise invalid("its serial is not 32 hexadecimal digits")
        for line in (self.service, self.method, self.policies, self.needs):
            if not line or plain(line) != line:
                raise invalid("a line is empty, too long or not printable")

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
        return "".join(f"{line}\n" for line in (FORMAT, *self.lines)).encode()

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
        lines = lines_of(body, _LINES, FORMAT, invalid)
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


def invalid(what: str) -> EvidenceError:
    """Return the error that says `what` is wrong with an approval."""
    return EvidenceError(Reason.APPROVAL_INVALID, f"not a valid approval: {what}")
