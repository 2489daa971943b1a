"""What about a policy's attestation is allowed and yet suspicious: sentences for `egm policy lint`."""

from collections.abc import Set as AbstractSet
from typing import Final

from trust.attestation.measurement import ReferenceValues, parse_reference_values
from trust.attestation.roster import AttestationSettings
from trust.errors import EvidenceError
from trust.levels import CRYPTOGRAPHIC

_RESETTABLE: Final = {16, 23}  # PCRs that any program may reset (TCG PC Client Platform TPM Profile)


def doubts(
    settings: AttestationSettings | None,
    levels: AbstractSet[int],
    *,
    references: ReferenceValues | bytes | None,
) -> list[tuple[str, str]]:
    """Return (what, what to do) for everything that a person should look at before signing.

    Args:
        settings: `attestation` of the policy.
        levels: every level that the policy asks for.
        references: those of the bundle, or their file, which may be malformed (then it is an error elsewhere).
    """
    values = references
    if isinstance(values, bytes):
        try:
            values = parse_reference_values(values)
        except EvidenceError:
            values = None
    found = _roster_doubts(settings, levels, references=references is not None)
    return found + _tpm_doubts(values, attested=settings is not None)


def _roster_doubts(
    settings: AttestationSettings | None, levels: AbstractSet[int], *, references: bool
) -> list[tuple[str, str]]:
    if settings is None:
        if CRYPTOGRAPHIC not in levels:
            return []
        what = "level 5 without attestation: no witnesses are named, so nodes do not vouch for each other"
        return [(what, "name them: attestation: witnesses: (docs/trust.md)")]
    found = []
    count = len(settings.witnesses)
    if count < 3:
        what = f"a roster of {count}: " + (
            "a node vouches for itself" if count == 1 else "the loss of one stops all"
        )
        found.append((what, "name three witnesses or more"))
    if settings.allow_split_quorum is not None and 2 * settings.needed <= count:
        what = f"two sides of a partition can both hold quorum {settings.needed} of {count}"
        found.append((what, f"accepted because: {settings.allow_split_quorum}"))
    if not references:
        what = "what nodes run is not compared with anything: there are no reference values"
        found.append((what, "add reference_values.json (docs/trust.md)"))
    return found


def _tpm_doubts(references: ReferenceValues | None, *, attested: bool) -> list[tuple[str, str]]:
    """Return what to look at where pinned TPMs prove less than they seem to."""
    if references is None or not references.tpm:
        return []
    found = []
    if not attested:
        what = "TPMs are pinned, and nobody asks for their quotes: no witnesses are named"
        found.append((what, "name them: attestation: witnesses: (docs/trust.md)"))
    holders: dict[str, list[str]] = {}
    for node, one in references.tpm.items():
        for key in one.keys:
            holders.setdefault(key, []).append(node)
        if _RESETTABLE.issuperset(one.selected):
            what = f"the TPM of {node} is pinned with PCRs alone that any program can reset"
            found.append((what, "name PCRs of the boot as well, 0 to 7"))
    for nodes in sorted({tuple(sorted(set(nodes))) for nodes in holders.values()}):
        if len(nodes) > 1:
            what = f"nodes {', '.join(nodes)} share an attestation key: one machine can quote for all of them"
            found.append((what, "measure each on its own machine: egm sidecar measure"))
    return found
