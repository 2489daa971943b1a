"""What a refused caller is told in one sentence, where neither policy nor denial says it."""

from typing import Final

from sidecar.core.call import Attempt
from trust.errors import Reason
from trust.policy.types import Verdict

_DETAIL: Final = {
    Reason.POLICY_MISSING: "this sidecar has not activated any policy yet; see its readiness",
    Reason.POLICY_STALE: "the policy lease and its grace are over; the control plane must renew it",
    Reason.POLICY_EXPIRED: "the signed policy has expired; the approvers must sign a new version",
    Reason.NODE_NOT_ATTESTED: "too few of the signed policy's witnesses vouch for this node now; see its status",
    Reason.CALLER_UNIDENTIFIED: "the caller has no verified identity",
    Reason.CALLER_AMBIGUOUS: "the caller's certificate must carry exactly one SPIFFE ID",
    Reason.CALLER_CERTIFICATE_EXPIRED: "the caller's certificate has expired",
    Reason.CALLER_TOKEN_INVALID: "the caller's token does not verify",
    Reason.OBLIGATION_UNSUPPORTED: "the determining policy carries an obligation that this version lacks",
    Reason.POLICY_ERROR: "a policy failed to evaluate, which denies",
    Reason.REQUEST_UNREPRESENTABLE: "the request cannot be decoded or shown to the policies",
    Reason.LIMIT_EXCEEDED: "this sidecar has as many open streams as it will hold; close some or try later",
}


def detail(attempt: Attempt, reason: Reason, verdict: Verdict) -> str:
    """Say in one sentence what was refused (or would have been); safe to show the caller."""
    if reason not in {Reason.POLICY_DENIED, Reason.NO_POLICY_PERMITS}:
        return verdict.detail or _DETAIL.get(reason, "")
    who = attempt.principal or "an anonymous caller"
    if reason is Reason.POLICY_DENIED:
        return f"a policy forbids {who} to call {attempt.method} on {attempt.service}"
    return f"no policy permits {who} to call {attempt.method} on {attempt.service}"
