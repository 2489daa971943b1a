"""Whether the approvers accept what a node says that it runs: its measurement, and a TPM's quote where one is pinned.

Asked by witnesses before they vouch, and again by whoever relies on a credential.
"""

from trust.attestation.measurement import ReferenceValues
from trust.attestation.statement import Statement, quoted_digest


def check_accepted(references: ReferenceValues | None, said: Statement) -> None:
    """Accept what the statement says of the node's software and machine.

    Args:
        references: of the policy in force; None accepts anything.
        said: the statement; that the node signed it, the caller has checked.

    Raises:
        EvidenceError: MEASUREMENT_REFUSED, naming the part.
    """
    if references is None:
        return
    node = said.node.name
    references.check(node, said.measurement)
    wanted = references.tpm.get(node)
    if wanted is not None:
        wanted.check(node, said.quote, quoted_digest(said))
