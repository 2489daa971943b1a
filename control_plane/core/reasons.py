"""What a recorded refusal says, and about whom: the tables that detection reads reasons by."""

from typing import Final

from trust.errors import Reason

# Policy answered, and it is the caller that asked for what it may not have.
FOR_THE_CALLER: Final = frozenset(
    {Reason.POLICY_DENIED.value, Reason.NO_POLICY_PERMITS.value, Reason.UNKNOWN_SERVICE.value}
)
REPLAYED: Final = frozenset({Reason.PERMIT_REPLAYED.value})
FORGED: Final = frozenset(
    {Reason.PERMIT_INVALID.value, Reason.PERMIT_MISMATCH.value, Reason.ATTESTATION_INVALID.value}
)
UNIDENTIFIED: Final = frozenset(
    {
        Reason.CALLER_UNIDENTIFIED.value,
        Reason.CALLER_AMBIGUOUS.value,
        Reason.CALLER_CERTIFICATE_EXPIRED.value,
        Reason.CALLER_TOKEN_INVALID.value,
    }
)
REVOKED: Final = frozenset({Reason.REVOKED.value, Reason.NODE_QUARANTINED.value})
WITHOUT_PERMIT: Final = frozenset({Reason.PERMIT_MISSING.value})
UNATTESTED: Final = frozenset(
    {
        Reason.ATTESTATION_MISSING.value,
        Reason.ATTESTATION_UNKNOWN.value,
        Reason.ATTESTATION_EXPIRED.value,
    }
)
# What a node's alarm names when it was offered policy that does not verify.
TAMPERED: Final = frozenset(
    {
        Reason.QUORUM_NOT_MET.value,
        Reason.POLICY_ROLLBACK.value,
        Reason.METADATA_INVALID.value,
        Reason.METADATA_UNSAFE.value,
        Reason.DIGEST_MISMATCH.value,
        Reason.BUNDLE_MALFORMED.value,
        Reason.BUNDLE_UNSAFE_PATH.value,
        Reason.SIGNATURE_INVALID.value,
    }
)
