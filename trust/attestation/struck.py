"""Whose word as a witness does not count: that of a node, or under a key, which is revoked or convicted by a proof.

It stops counting at once and for what it said before as well: a witness that lied may have lied earlier, too. Nothing
here can make a quorum easier: the number that must agree stays what the approvers signed.
"""

from collections.abc import Container

from trust.attestation.roster import Roster
from trust.node_key import ed25519_spki_sha256
from trust.revocation import Kind, Subject


def struck(roster: Roster, denied: Container[Subject]) -> frozenset[str]:
    """Return the names of the witnesses and log witnesses of `roster` that are among what is denied.

    Args:
        roster: of the policy in force.
        denied: nodes (`node NAME`) and keys (`key SHA-256`, of a DER SubjectPublicKeyInfo); others mean nothing here.
    """
    everybody = (*roster.witnesses.values(), *roster.log_witnesses.values())
    keys = {
        one.name
        for one in everybody
        if Subject(Kind.KEY, ed25519_spki_sha256(one.key.public_key).hex()) in denied
    }
    return frozenset(keys | {name for name in roster.witnesses if Subject(Kind.NODE, name) in denied})
