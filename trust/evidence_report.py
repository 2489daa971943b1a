"""What is told about an evidence file: four sections, each established, contradicted or open, and why."""

import enum
from dataclasses import dataclass
from typing import Final

from trust.errors import Reason
from trust.evidence import Content

NOT_PROVED: Final = (
    "decision: it is what the node recorded under that policy; the policy is not evaluated again",
    "namespaces: a record names the base bundle it was decided under, not the versions of the namespaces beside it",
    "certificate: a permit binds the caller's certificate by digest (cnf); the certificate is not in the file",
    "attestation: witnesses checked what a node said of its software; without hardware that measures, it is its word",
    "continuity: the checkpoint of a node continues what its witnesses saw before the permit; whether anybody saw what "
    "came after, and the ledgers of nodes that are not in the file, it does not show",
    "request and response: the records hold digests; compare them with the bytes if you have them",
    "time: every time is from the clock of a node; no independent party saw the checkpoint",
    "completeness: a node can keep whole executions to itself; the file proves those it contains, and not what "
    "caused them unless the parent is there, too",
    "truth: a node proves what it recorded, not that its sidecar and its host were honest",
)


@enum.unique
class Section(enum.StrEnum):
    """What is established separately."""

    INTEGRITY = "integrity"
    AUTHORITY = "authority"
    IDENTITY = "identity"
    TIME = "time"


@enum.unique
class Verdict(enum.StrEnum):
    """What a section comes to; the first that applies."""

    CONTRADICTED = "contradicted"
    UNKNOWN = "could not tell"
    ESTABLISHED = "established"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that contradicts (`reason` is set) or could not be told. `where` is a place in the file."""

    section: Section
    where: str
    what: str
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Approved:
    """Who approved the bundle of one role of one policy."""

    where: str
    role: str
    version: int
    sha256: str
    threshold: int
    approvers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Permitted:
    """What a permit in the records says; `verified`: the key of its issuer signed it, and is vouched for."""

    where: str
    execution: str
    issuer: str
    subject: str
    audience: str
    method: str
    issued_s: int
    expires_s: int
    verified: bool


@dataclass(frozen=True, slots=True)
class Attested:
    """Who vouched for a node: those of the roster of a policy whose cosignatures in a trust credential verify."""

    where: str  # the credential
    node: str
    sha256: str  # of the credential: `att` in permits
    policy: str  # place of the policy whose roster it is
    witnesses: tuple[str, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class Report:
    """The result. All but `findings` says what the file is about, and holds as far as the findings allow."""

    contents: tuple[Content, ...]
    approved: tuple[Approved, ...]
    nodes: tuple[str, ...]  # SPIFFE IDs whose keys are vouched for
    findings: tuple[Finding, ...]
    permits: tuple[Permitted, ...] = ()
    attested: tuple[Attested, ...] = ()

    def verdict(self, section: Section | None = None) -> Verdict:
        """Return what `section`, or the whole file, comes to."""
        found = [f for f in self.findings if section in {None, f.section}]
        if any(f.reason is not None for f in found):
            return Verdict.CONTRADICTED
        return Verdict.UNKNOWN if found else Verdict.ESTABLISHED
