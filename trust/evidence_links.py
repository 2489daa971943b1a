"""Whether the ledger in an evidence file is the one that witnesses saw (integrity).

Each node's checkpoint must continue the tree heads in its trust credentials. Without this a node could have shown its
witnesses one history, and the reader of the file another.
"""

from dataclasses import dataclass

from trust.attestation.credential import log_verifier
from trust.attestation.statement import open_evidence
from trust.checkpoint import Checkpoint, open_checkpoint
from trust.compact import parse_object, write_object
from trust.errors import MeshError
from trust.evidence import LinkPart
from trust.evidence_case import Case
from trust.evidence_report import Section
from trust.merkle import check_consistency


@dataclass(frozen=True, slots=True)
class WitnessedHead:
    """The tree head that a trust credential has, and of whose ledger it is."""

    node: str
    checkpoint: Checkpoint


def witnessed_head(credential: bytes) -> WitnessedHead | None:
    """Return the tree head in a credential, signed by its node; None for bytes that have none.

    The witnesses' signatures are not looked at.
    """
    try:
        evidence = open_evidence(write_object(parse_object(credential)["evidence"]))
        head = open_checkpoint(evidence.statement.checkpoint, log_verifier(evidence)).checkpoint
    except (MeshError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return WitnessedHead(evidence.statement.node.name, head)


def check_links(case: Case) -> None:
    """Integrity: every tree head in a credential of a node in the file is one that its checkpoint continues."""
    links = {(one.node, one.size): (number, one) for number, one in enumerate(case.evidence.links)}
    used: set[tuple[str, int]] = set()
    for number, data in enumerate(case.evidence.credentials):
        head = witnessed_head(data)
        held = None if head is None else case.checkpoints.get(head.node)
        if head is None or held is None or held.origin != head.checkpoint.origin:
            continue  # not a credential, which is told elsewhere, or of a node whose ledger is not here
        where = f"credentials[{number}]"
        key = (head.node, head.checkpoint.size)
        if 0 < head.checkpoint.size < held.size:
            used.add(key)
        _check(case, where, head, held, links.get(key))
    for key, (number, _) in links.items():
        if key not in used:
            case.wrong(
                Section.INTEGRITY, f"links[{number}]", "no trust credential in the file has this tree head"
            )


def _check(
    case: Case, where: str, head: WitnessedHead, held: Checkpoint, link: tuple[int, LinkPart] | None
) -> None:
    seen = head.checkpoint
    if seen.size > held.size or (link is None and 0 < seen.size < held.size):
        what = (
            f"whether the ledger of {head.node} in the file continues the {seen.size} records that its witnesses saw: "
            "there is no consistency proof"
        )
        case.open(Section.INTEGRITY, where, what)
        return
    proof = () if link is None else link[1].proof
    try:
        check_consistency(seen.size, seen.root, held.size, held.root, proof)
    except MeshError as error:
        what = f"the ledger of {head.node} in the file does not continue the one that its witnesses saw: {error.detail}"
        case.wrong(Section.INTEGRITY, where if link is None else f"links[{link[0]}]", what)
