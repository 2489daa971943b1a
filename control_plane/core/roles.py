"""Who may call what: one total table from RPC to the kinds of caller; what is not listed is refused."""

import enum
from collections.abc import Mapping
from typing import Final

from trust.errors import EvidenceError, Reason
from trust.spiffe import SpiffeId


@enum.unique
class Kind(enum.StrEnum):
    """The first path segment of a SPIFFE ID (docs/architecture.md, Identities)."""

    OPERATOR = "operator"
    NODE = "node"
    CONTROL_PLANE = "control-plane"
    WORKLOAD = "workload"


_PEOPLE: Final = frozenset({Kind.OPERATOR})
_NODES: Final = frozenset({Kind.NODE})
_PEERS: Final = frozenset({Kind.NODE, Kind.CONTROL_PLANE})
_READERS: Final = frozenset({Kind.OPERATOR, Kind.NODE, Kind.CONTROL_PLANE})
NOBODY: Final[frozenset[Kind]] = frozenset()

ALLOWED: Final[Mapping[str, frozenset[Kind]]] = {
    "/egm.v1.Operator/Propose": _PEOPLE,
    "/egm.v1.Operator/ListProposals": _PEOPLE,
    "/egm.v1.Operator/GetProposal": _PEOPLE,
    "/egm.v1.Operator/AddSignature": _PEOPLE,
    "/egm.v1.Operator/Publish": _PEOPLE,
    "/egm.v1.Operator/Withdraw": _PEOPLE,
    "/egm.v1.Operator/CreateJoinToken": _PEOPLE,
    "/egm.v1.Operator/ListNodes": _PEOPLE,
    "/egm.v1.Operator/ForgetNode": _PEOPLE,
    "/egm.v1.Operator/GetStatus": _PEOPLE,
    "/egm.v1.Operator/ListAudit": _PEOPLE,
    "/egm.v1.Operator/GetExecution": _PEOPLE,
    "/egm.v1.Operator/ListExecutions": _PEOPLE,
    "/egm.v1.Operator/GetTree": _PEOPLE,
    "/egm.v1.Analytics/Query": _PEOPLE,
    "/egm.v1.Alerts/ListAlerts": _PEOPLE,
    "/egm.v1.Alerts/GetAlert": _PEOPLE,
    "/egm.v1.Alerts/AckAlert": _PEOPLE,
    "/egm.v1.Alerts/TestAlert": _PEOPLE,
    "/egm.v1.Incidents/ListIncidents": _PEOPLE,
    "/egm.v1.Incidents/GetIncident": _PEOPLE,
    "/egm.v1.Incidents/ResolveIncident": _PEOPLE,
    "/egm.v1.Distribution/GetFile": _READERS,
    "/egm.v1.Distribution/Watch": _READERS,
    "/egm.v1.Fleet/Report": _NODES,
    "/egm.v1.Records/Position": _NODES,
    "/egm.v1.Records/Ship": _NODES,
    "/egm.v1.Join/Renew": _NODES,
    "/egm.v1.Gossip/Exchange": _PEERS,
    "/egm.v1.Gossip/Watch": _PEERS,
    "/egm.v1.Gossip/GetBlob": _PEERS,
    # What is handed in is signed: the emergency key, or the proof itself, decides.
    "/egm.v1.Emergency/Revoke": _READERS,
    "/egm.v1.Emergency/Accuse": _READERS,
    "/egm.v1.Emergency/ListDenials": _READERS,
    "/egm.v1.Shadow/Report": _NODES,
    "/egm.v1.Shadow/Fetch": _NODES,
    "/egm.v1.ShadowRuns/Start": _PEOPLE,
    "/egm.v1.ShadowRuns/Stop": _PEOPLE,
    "/egm.v1.ShadowRuns/Get": _PEOPLE,
    "/egm.v1.Approvals/Open": _NODES,
    "/egm.v1.Approvals/Collect": _NODES,
    "/egm.v1.Approvals/Spent": _NODES,
    # Who approves is the key that signed.
    "/egm.v1.ApprovalDesk/List": _PEOPLE,
    "/egm.v1.ApprovalDesk/Get": _PEOPLE,
    "/egm.v1.ApprovalDesk/Decide": _PEOPLE,
    # Enrolment has a listener of its own, where a token and no certificate proves the right.
    "/egm.v1.Join/Enrol": NOBODY,
    "/grpc.health.v1.Health/Check": _READERS,
    "/grpc.health.v1.Health/Watch": _READERS,
    "/grpc.health.v1.Health/List": _READERS,
}


def check_allowed(caller: SpiffeId, rpc: str, *, trust_domain: str) -> None:
    """Decide whether `caller` may call `rpc` ("/package.Service/Method") of this control plane.

    Raises:
        EvidenceError: NOT_AUTHORIZED.
    """
    if caller.trust_domain != trust_domain:
        raise EvidenceError(Reason.NOT_AUTHORIZED, f"{caller} is not a member of trust domain {trust_domain}")
    allowed = ALLOWED.get(rpc, NOBODY)
    # `spiffe://td/operator` and `spiffe://td/operator/a/b` name no operator: a kind needs exactly one name.
    if caller.kind not in allowed or not caller.name or "/" in caller.name:
        who = " or ".join(sorted(allowed)) or "nobody here"
        raise EvidenceError(Reason.NOT_AUTHORIZED, f"{caller} may not call {rpc.lstrip('/')}; allowed: {who}")
