"""What an evidence file proves: integrity, authority, identity and time, each by itself, and what stays open.

Nothing in the file is believed because it is there. What the reader brings is the root metadata and the CA
certificates; everything else must lead to one of the two, or to the signed checkpoint of a node that does.
"""

from trust.chain import verify_roots
from trust.evidence import parse_evidence
from trust.evidence_case import Case
from trust.evidence_credentials import check_credentials
from trust.evidence_identity import check_identity
from trust.evidence_links import check_links
from trust.evidence_permits import check_permits
from trust.evidence_policy import check_authority, check_policies
from trust.evidence_records import check_contents, check_nodes, check_records
from trust.evidence_report import (
    NOT_PROVED,
    Approved,
    Attested,
    Finding,
    Permitted,
    Report,
    Section,
    Verdict,
)
from trust.evidence_time import check_time
from trust.metadata import trust_domain_of

__all__ = [
    "NOT_PROVED",
    "Approved",
    "Attested",
    "Finding",
    "Permitted",
    "Report",
    "Section",
    "Verdict",
    "verify_evidence",
]


def verify_evidence(data: bytes, trusted_root: bytes, anchors_pem: bytes | None = None) -> Report:
    """Return what the file proves to a reader who trusts `trusted_root` and `anchors_pem`.

    Args:
        data: the file.
        trusted_root: root metadata known from elsewhere; the oldest that the reader has leads furthest.
        anchors_pem: CA certificates known from elsewhere; without them the file's own are used, and who the nodes
            are stays open.

    Raises:
        EvidenceError: PROOF_INVALID, if the file is malformed; METADATA_INVALID, METADATA_UNSAFE, QUORUM_NOT_MET,
            KEY_UNSAFE, if `trusted_root` is not usable.
        CapacityError: LIMIT_EXCEEDED.
    """
    root = verify_roots(trusted_root, ())
    case = Case(parse_evidence(data), trusted_root, anchors_pem, trust_domain_of(root))
    check_nodes(case)
    check_records(case)
    check_contents(case)
    check_policies(case)
    check_authority(case)
    check_identity(case)
    check_permits(case)
    check_credentials(case)
    check_links(case)
    check_time(case)
    return Report(
        case.evidence.contents,
        tuple(case.approved),
        tuple(str(key.node) for key in case.keys.values()),
        tuple(case.findings),
        tuple(case.permits),
        tuple(case.attested),
    )
