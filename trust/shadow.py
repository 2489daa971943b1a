"""Whether nodes may try a proposed bundle beside the one in force: an order that one approver signs.

A shadow run decides nothing. It still costs every node the work of a second decision, so that a control plane alone
cannot start one: an approver of the role that is proposed signs, with the key that signs policy, a text of eight lines:

    egm/shadow/v1
    TRUST DOMAIN
    ROLE                targets, or a namespace
    PROPOSAL            SHA-256 of the proposed metadata's canonical bytes
    BUNDLE              SHA-256 of the proposed archive
    LENGTH              of the archive, bytes
    ISSUED              Unix seconds
    UNTIL               Unix seconds

An order is known by the SHA-256 of this text. On the wire it is one JSON object: {"order", "keyid", "sig"}.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer

from trust import limits
from trust.errors import EvidenceError, MeshError, Reason
from trust.lines import lines_of
from trust.spiffe import check_name, check_trust_domain

FORMAT: Final = "egm/shadow/v1"
ID_DIGITS: Final = 16  # of an order's digest, by which people and programs call it
_LINES: Final = 8
_MAX_TIME_S: Final = 2**40 - 1
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_MEMBERS: Final = {"order", "keyid", "sig"}


@dataclass(frozen=True, slots=True)
class Order:
    """Try this archive beside the policy in force, until `until_s`."""

    trust_domain: str
    role: str
    proposal_sha256: str  # hex
    bundle_sha256: str  # hex
    bundle_bytes: int
    issued_s: int
    until_s: int

    def __post_init__(self) -> None:
        """Refuse what no order may say.

        Raises:
            EvidenceError: SHADOW_ORDER_INVALID.
        """
        try:
            check_trust_domain(self.trust_domain)
            check_name(self.role)
        except MeshError as error:
            raise _invalid(error.detail) from None
        if not all(_SHA256.match(text) for text in (self.proposal_sha256, self.bundle_sha256)):
            raise _invalid("its digests must be 64 hexadecimal digits")
        if not 0 < self.bundle_bytes <= limits.MAX_BUNDLE_ARCHIVE_BYTES:
            raise _invalid(f"its bundle must have 1 to {limits.MAX_BUNDLE_ARCHIVE_BYTES} bytes")
        if not 0 <= self.issued_s < self.until_s <= _MAX_TIME_S:
            raise _invalid("it must end after it begins, at times in Unix seconds")
        if self.until_s - self.issued_s > limits.MAX_SHADOW_RUN_S:
            raise _invalid(f"it lasts longer than {limits.MAX_SHADOW_RUN_S} s")

    def body(self) -> bytes:
        """Return the text that is signed."""
        lines = (
            FORMAT,
            self.trust_domain,
            self.role,
            self.proposal_sha256,
            self.bundle_sha256,
            self.bundle_bytes,
            self.issued_s,
            self.until_s,
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def id(self) -> str:
        """The first `ID_DIGITS` hexadecimal digits of the text's SHA-256."""
        return hashlib.sha256(self.body()).hexdigest()[:ID_DIGITS]

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the order of a text, unverified.

        Raises:
            EvidenceError: SHADOW_ORDER_INVALID, for anything that `body` would not write.
        """
        lines = lines_of(body, _LINES, FORMAT, _invalid)
        if not all(_DECIMAL.match(text) for text in lines[5:_LINES]):
            raise _invalid("length and times must be decimal numbers")
        trust_domain, role, proposal, bundle = lines[1:5]
        length, issued, until = map(int, lines[5:_LINES])
        return cls(trust_domain, role, proposal, bundle, length, issued, until)


def sign_order(order: Order, signer: Signer) -> bytes:
    """Return `order` signed by an approver, as it travels."""
    signature = signer.sign(order.body())
    members = {"order": order.body().decode(), "keyid": signature.keyid, "sig": signature.signature}
    return json.dumps(members, sort_keys=True).encode()


def read_order(data: bytes) -> tuple[Order, Signature]:
    """Return what signed bytes say, unverified.

    Raises:
        EvidenceError: SHADOW_ORDER_INVALID.
    """
    if len(data) > limits.MAX_SHADOW_ORDER_BYTES:
        raise _invalid(f"it is larger than {limits.MAX_SHADOW_ORDER_BYTES} bytes")
    try:
        members = json.loads(data)
    except (ValueError, RecursionError):
        raise _invalid("it is not JSON") from None
    if not isinstance(members, dict) or members.keys() != _MEMBERS:
        raise _invalid(f"exactly the members {', '.join(sorted(_MEMBERS))} are expected")
    if not all(isinstance(value, str) for value in members.values()):
        raise _invalid("its members must be texts")
    try:
        return Order.parse(members["order"].encode()), Signature(members["keyid"], members["sig"])
    except UnicodeEncodeError:
        raise _invalid("it is not UTF-8") from None


def verify_order(data: bytes, keys: Mapping[str, Key], *, trust_domain: str, now_s: int) -> Order:
    """Return the order that one of the role's approvers signed, if its time is now.

    Args:
        data: as it travels.
        keys: key id -> key, of all who may sign the role of `read_order(data)`.
        trust_domain: ours.
        now_s: trusted time, Unix seconds; MAX_CLOCK_SKEW_MS early is forgiven.

    Raises:
        EvidenceError: SHADOW_ORDER_INVALID, NOT_AUTHORIZED (nobody's key), SIGNATURE_INVALID.
    """
    order, signature = read_order(data)
    if order.trust_domain != trust_domain:
        raise _invalid(f"it is for trust domain {order.trust_domain}, not {trust_domain}")
    if now_s >= order.until_s:
        raise _invalid("it has ended; an approver may sign another")
    # without this the bound on its length would bound nothing: it counts from now until its end
    if order.issued_s * 1000 > now_s * 1000 + limits.MAX_CLOCK_SKEW_MS:
        raise _invalid("it begins in the future; compare the clock of the approver's machine")
    key = keys.get(signature.keyid)
    if key is None:
        detail = f"key {signature.keyid[:12]!r} is not that of an approver of {order.role}"
        raise EvidenceError(Reason.NOT_AUTHORIZED, detail)
    try:
        key.verify_signature(signature, order.body())
    except UnverifiedSignatureError:
        raise EvidenceError(
            Reason.SIGNATURE_INVALID, "the shadow order's signature does not verify"
        ) from None
    return order


def _invalid(why: str) -> EvidenceError:
    return EvidenceError(Reason.SHADOW_ORDER_INVALID, f"not a shadow order: {why}")
