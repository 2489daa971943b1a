"""Every way the mesh can fail to decide. (A *deny* is a decision, not an error.)

MeshError
  EvidenceError   bytes do not verify; resending them cannot help
  StateError      evidence fine, our state says no; may heal with time
  CapacityError   a limit in trust.limits was reached; back off
  InputError      a person's input is wrong; the message says where and what to do
"""

import enum


@enum.unique
class Reason(enum.StrEnum):
    """Logged, signed and asserted on: never rename, never reuse. Explained in docs/reasons.md."""

    # decisions
    ALLOWED = "ALLOWED"
    PASSED_UNGOVERNED = "PASSED_UNGOVERNED"  # levels 0 to 2: nothing is blocked
    POLICY_DENIED = "POLICY_DENIED"  # a forbid policy determined it
    NO_POLICY_PERMITS = "NO_POLICY_PERMITS"  # default deny
    POLICY_ERROR = "POLICY_ERROR"  # a policy failed to evaluate: deny
    REQUEST_UNREPRESENTABLE = "REQUEST_UNREPRESENTABLE"  # cannot be decoded or expressed in Cedar
    OBLIGATION_UNSUPPORTED = "OBLIGATION_UNSUPPORTED"  # a determining policy asks what this node cannot do
    RATE_EXCEEDED = "RATE_EXCEEDED"  # the caller has used up what @rate, or a restriction, allows it
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"  # and what @budget allows it
    OBLIGATION_UNMET = "OBLIGATION_UNMET"  # a determining policy asks what cannot be done for this very call
    GOVERNANCE_UNAVAILABLE = "GOVERNANCE_UNAVAILABLE"  # level 3: continued without a decision
    # trust gate
    POLICY_MISSING = "POLICY_MISSING"
    POLICY_STALE = "POLICY_STALE"
    POLICY_EXPIRED = "POLICY_EXPIRED"
    # policy distribution
    QUORUM_NOT_MET = "QUORUM_NOT_MET"
    POLICY_ROLLBACK = "POLICY_ROLLBACK"
    METADATA_INVALID = "METADATA_INVALID"
    METADATA_UNSAFE = "METADATA_UNSAFE"  # verifies, but the linter refuses its shape
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    SOURCE_UNAVAILABLE = "SOURCE_UNAVAILABLE"
    DOWNLOAD_TOO_SLOW = "DOWNLOAD_TOO_SLOW"
    # bundles
    BUNDLE_MALFORMED = "BUNDLE_MALFORMED"
    BUNDLE_UNSAFE_PATH = "BUNDLE_UNSAFE_PATH"
    BUNDLE_TOO_LARGE = "BUNDLE_TOO_LARGE"
    BUNDLE_POLICY_INVALID = "BUNDLE_POLICY_INVALID"
    BUNDLE_OUT_OF_NAMESPACE = "BUNDLE_OUT_OF_NAMESPACE"
    BUNDLE_SELF_TEST_FAILED = "BUNDLE_SELF_TEST_FAILED"
    # identity
    CALLER_UNIDENTIFIED = "CALLER_UNIDENTIFIED"
    CALLER_AMBIGUOUS = "CALLER_AMBIGUOUS"  # more or fewer than one SPIFFE ID
    CALLER_CERTIFICATE_EXPIRED = "CALLER_CERTIFICATE_EXPIRED"
    CALLER_TOKEN_INVALID = "CALLER_TOKEN_INVALID"
    IDENTITY_UNAVAILABLE = "IDENTITY_UNAVAILABLE"
    IDENTITY_INVALID = "IDENTITY_INVALID"
    JOIN_TOKEN_INVALID = "JOIN_TOKEN_INVALID"
    NOT_AUTHORIZED = "NOT_AUTHORIZED"
    # keys
    KEY_UNSAFE = "KEY_UNSAFE"  # small order, duplicate, or of a kind we refuse
    KEY_UNREADABLE = "KEY_UNREADABLE"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    # proxying
    UNKNOWN_SERVICE = "UNKNOWN_SERVICE"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    AUTHORIZATION_WITHDRAWN = "AUTHORIZATION_WITHDRAWN"  # an open stream lost its right
    DRAINING = "DRAINING"
    INTERNAL = "INTERNAL"
    # execution records
    RECORD_MALFORMED = "RECORD_MALFORMED"
    PAYLOAD_INVALID = "PAYLOAD_INVALID"  # a sealed payload is malformed, changed, or of another record
    # configuration and requests
    CONFIG_INVALID = "CONFIG_INVALID"
    INPUT_INVALID = "INPUT_INVALID"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    # permits
    PERMIT_MISSING = "PERMIT_MISSING"
    PERMIT_INVALID = "PERMIT_INVALID"  # signature or shape
    PERMIT_MISMATCH = "PERMIT_MISMATCH"  # genuine, but for another call
    PERMIT_EXPIRED = "PERMIT_EXPIRED"  # outside its time
    PERMIT_REPLAYED = "PERMIT_REPLAYED"
    OPENING_MISSING = "OPENING_MISSING"  # the message that a stream's permit must bind did not come in time
    PERMIT_UNVERIFIABLE = "PERMIT_UNVERIFIABLE"  # we lack the key, the memory or the room to tell
    # ledger
    PROOF_INVALID = "PROOF_INVALID"  # a proof, note, checkpoint or tile is malformed or does not hold
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"  # the disk failed or is full: nothing more is acknowledged
    LEDGER_CONTRADICTED = "LEDGER_CONTRADICTED"  # what is on disk is not what was signed
    # attestation
    NODE_NOT_ATTESTED = "NODE_NOT_ATTESTED"  # level 5: too few witnesses vouch for this node now
    ATTESTATION_MISSING = "ATTESTATION_MISSING"  # the permit names no trust credential
    ATTESTATION_UNKNOWN = "ATTESTATION_UNKNOWN"  # the credential that a permit names is not here
    ATTESTATION_INVALID = "ATTESTATION_INVALID"  # a credential that does not verify, or is another node's
    ATTESTATION_EXPIRED = "ATTESTATION_EXPIRED"  # too few of its cosignatures are young enough
    EVIDENCE_INVALID = "EVIDENCE_INVALID"  # malformed, or not signed by the node it speaks of
    NONCE_UNKNOWN = "NONCE_UNKNOWN"  # the evidence answers no open challenge of this witness
    COUNTER_REGRESSED = "COUNTER_REGRESSED"  # the node signed a counter that is not above its last
    BOOT_RETURNED = "BOOT_RETURNED"  # an earlier boot of the node speaks again
    MEASUREMENT_REFUSED = "MEASUREMENT_REFUSED"  # not among the reference values of the policy
    POLICY_BEHIND = "POLICY_BEHIND"  # the node enforces older policy than the signed lag allows
    POLICY_CONFLICT = "POLICY_CONFLICT"  # two contents under one policy version
    LEVEL_TOO_LOW = "LEVEL_TOO_LOW"  # the node enforces less than its policy says
    CHECKPOINT_REGRESSED = "CHECKPOINT_REGRESSED"  # the node's ledger is shorter than it was
    CHECKPOINT_CONFLICT = "CHECKPOINT_CONFLICT"  # two ledgers under one name
    CLOCK_WRONG = "CLOCK_WRONG"  # the node's clock is not that of its witness
    WITNESS_NOT_LISTED = "WITNESS_NOT_LISTED"  # this node is no witness by the policy in force
    WITNESS_UNAVAILABLE = "WITNESS_UNAVAILABLE"  # the witness cannot remember what it would vouch for
    # revocation and misbehaviour
    REVOKED = "REVOKED"  # an emergency key or the quorum denies it
    NODE_QUARANTINED = "NODE_QUARANTINED"  # a misbehaviour proof accuses the node
    REVOCATION_INVALID = "REVOCATION_INVALID"  # a directive does not verify, or has ended
    MISBEHAVIOUR_UNPROVEN = "MISBEHAVIOUR_UNPROVEN"  # a proof does not prove what it claims
    # an order to try a proposed bundle is malformed, or has ended
    SHADOW_ORDER_INVALID = "SHADOW_ORDER_INVALID"
    # approvals
    APPROVAL_REQUIRED = "APPROVAL_REQUIRED"  # approvers must sign this request first
    APPROVAL_DENIED = "APPROVAL_DENIED"  # an approver refused this request
    APPROVAL_EXPIRED = "APPROVAL_EXPIRED"  # enough had approved, but not in time
    APPROVAL_SPENT = "APPROVAL_SPENT"  # the approval served a call already
    APPROVAL_INVALID = "APPROVAL_INVALID"  # does not verify, or is for another call
    APPROVAL_UNAVAILABLE = "APPROVAL_UNAVAILABLE"  # approvers cannot be asked now, or could never agree
    # capacity
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"


class MeshError(Exception):
    """A failure with a stable reason. `detail` is safe to show a peer, and so is `about` (name and value)."""

    about: tuple[tuple[str, str], ...] = ()

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class EvidenceError(MeshError):
    """The bytes do not verify; resending them cannot help."""


class StateError(MeshError):
    """The evidence is fine, our state says no; may heal with time."""


class CapacityError(MeshError):
    """A limit in `trust.limits` was reached; back off."""


class InputError(MeshError):
    """A person's input is wrong; `detail` says where and what to do."""
