"""What is known of an evidence file while it is verified: each part adds what it proved for the parts after it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from trust.checkpoint import Checkpoint
from trust.errors import MeshError, Reason
from trust.evidence import Evidence
from trust.evidence_report import Approved, Attested, Finding, Permitted, Section
from trust.node_key import NodeKey
from trust.record import Intent, Record
from trust.verified import VerifiedPolicy


@dataclass(slots=True)
class Case:
    """The file, what the reader trusts, and what was found so far."""

    evidence: Evidence
    trusted_root: bytes
    anchors_pem: bytes | None
    trust_domain: str | None  # as the trusted root says
    findings: list[Finding] = field(default_factory=list)
    approved: list[Approved] = field(default_factory=list)
    permits: list[Permitted] = field(default_factory=list)
    records: dict[tuple[str, int], Record] = field(default_factory=dict)  # by node and index
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    keys: dict[str, NodeKey] = field(default_factory=dict)  # by node, vouched for
    policies: dict[bytes, tuple[str, VerifiedPolicy]] = field(default_factory=dict)  # by digest of the base
    signers: dict[str, NodeKey] = field(default_factory=dict)  # by place of the permit that it signed
    attested: list[Attested] = field(default_factory=list)
    believed: bytes | None = None  # CA certificates (PEM), once they are found to be usable

    def wrong(
        self, section: Section, where: str, error: MeshError | str, reason: Reason | None = None
    ) -> None:
        """Note a contradiction."""
        if isinstance(error, MeshError):
            self.findings.append(Finding(section, where, error.detail, error.reason))
        else:
            self.findings.append(Finding(section, where, error, reason or Reason.PROOF_INVALID))

    def open(self, section: Section, where: str, what: str) -> None:
        """Note what could not be told."""
        self.findings.append(Finding(section, where, what, None))

    def intents(self) -> Iterator[tuple[str, Intent]]:
        """Yield every readable intent with its place, in the order of the file."""
        for number, part in enumerate(self.evidence.records):
            record = self.records.get((part.node, part.index))
            if isinstance(record, Intent):
                yield f"records[{number}].record", record
