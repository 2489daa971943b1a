"""SPIFFE IDs: parsed strictly, one canonical form (SPIFFE-ID specification, sections 2.1 to 2.3)."""

import re
from dataclasses import dataclass
from typing import Final, Self

from trust.errors import EvidenceError, Reason

MAX_SPIFFE_ID_BYTES: Final = 2048
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}\Z")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+\Z")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`spiffe://<trust_domain>/<path>`; `path` has no leading slash and may not be empty here.

    The mesh names its members by kind: `workload/NAME`, `node/NAME`, `control-plane/NAME`, `operator/NAME`.
    """

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse one SPIFFE ID; anything not already canonical is refused.

        Raises:
            EvidenceError: IDENTITY_INVALID.
        """
        if not text.startswith("spiffe://"):
            raise EvidenceError(Reason.IDENTITY_INVALID, "not a SPIFFE ID: it must start with spiffe://")
        if len(text) > MAX_SPIFFE_ID_BYTES:  # in characters: what passes below is ASCII
            raise EvidenceError(
                Reason.IDENTITY_INVALID, f"SPIFFE ID is longer than {MAX_SPIFFE_ID_BYTES} bytes"
            )
        domain, _, path = text.removeprefix("spiffe://").partition("/")
        check_trust_domain(domain)
        segments = path.split("/")
        if not all(_SEGMENT.match(segment) and segment not in {".", ".."} for segment in segments):
            raise EvidenceError(Reason.IDENTITY_INVALID, "SPIFFE ID path has an empty or forbidden segment")
        return cls(domain, path)

    @classmethod
    def of(cls, trust_domain: str, kind: str, name: str) -> Self:
        """Return the ID of a member, for example `of("mesh.local", "workload", "alice")`."""
        check_trust_domain(trust_domain)
        return cls(trust_domain, f"{kind}/{check_name(name)}")

    @property
    def kind(self) -> str:
        """The first path segment."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """What follows the kind; empty when there is only one segment."""
        return self.path.partition("/")[2]

    @property
    def dns_name(self) -> str:
        """The DNS SAN that stands for this ID, because gRPC clients cannot check a server's URI SAN."""
        return ".".join([*reversed(self.path.split("/")), self.trust_domain])

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.path}"


def check_trust_domain(text: str) -> str:
    """Return `text` if it is a trust domain name, else raise EvidenceError IDENTITY_INVALID."""
    if not _TRUST_DOMAIN.match(text):
        raise EvidenceError(Reason.IDENTITY_INVALID, "trust domain must be 1 to 255 of a-z 0-9 . _ -")
    return text


def check_name(text: str) -> str:
    """Return `text` if it can name a node, workload or service (an RFC 1123 label), else raise."""
    if not _NAME.match(text):
        raise EvidenceError(
            Reason.IDENTITY_INVALID, f"{text[:80]!r} is not a name: use 1 to 63 of a-z 0-9 -, not at the ends"
        )
    return text
