"""What about a policy's attestation is allowed and yet suspicious: sentences for `egm policy lint`."""

from collections.abc import Set as AbstractSet
from typing import Final

from trust.attestation.roster import AttestationSettings

_CRYPTOGRAPHIC: Final = 5


def doubts(
    settings: AttestationSettings | None, levels: AbstractSet[int], *, references: bool
) -> list[tuple[str, str]]:
    """Return (what, what to do) for everything that a person should look at before signing.

    Args:
        settings: `attestation` of the policy.
        levels: every level that the policy asks for.
        references: whether the bundle has reference values.
    """
    if settings is None:
        if _CRYPTOGRAPHIC not in levels:
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
