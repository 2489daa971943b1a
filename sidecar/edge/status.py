"""What a node says of itself: assembled in one place for operators, reports, health and metrics."""

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from egm.v1 import operator_pb2
from sidecar.core.bundle_state import BundleState, Lease
from sidecar.core.pipeline import Pipeline
from sidecar.core.readiness import Alarms, Facts, Readiness, assess
from sidecar.core.trust_state import Standing
from trust import limits
from trust.attestation.credential import Credential
from trust.errors import MeshError
from trust.identity import IdentitySource
from trust.ports import Clock
from trust.spiffe import SpiffeId

_VERSION: Final = importlib.metadata.version(
    "egmesh"
)  # from the disk: a millisecond, and every report says it


def lease_word(lease: Lease) -> str:
    """Return the lease as the protocol spells it; expired metadata is sealed, too (an alarm says why)."""
    return Lease.SEALED if lease is Lease.EXPIRED else lease


@dataclass
class NodeView:
    """The node as seen from outside. `listening`, `draining`, `identity` and `admin_address` are set while it runs."""

    node: str
    boot_id: str
    services: frozenset[str]
    members: tuple[SpiffeId, ...]  # every identity the node must hold
    state: BundleState
    pipeline: Pipeline
    alarms: Alarms
    clock: Clock
    identity: IdentitySource | None = None
    listening: bool = False
    draining: bool = False
    admin_address: str = ""
    notes: Callable[[], Iterable[str]] = field(default=lambda: ())
    attestation: Callable[[], operator_pb2.Attestation] = field(default=operator_pb2.Attestation)
    held: Callable[[], int] = field(default=lambda: 0)  # calls that wait for approvers
    archiving: Callable[[], tuple[float, float]] = field(default=lambda: (0.0, 0.0))  # segments, failing
    started_ms: int = 0
    _was_ready: bool = False

    def lease(self) -> Lease:
        """Return the lease now."""
        return self.state.lease(self.clock.now_ms(), self.clock.monotonic_ms())

    def remaining_ms(self) -> tuple[int, int]:
        """Return (fresh, until sealed), in ms."""
        return self.state.remaining_ms(self.clock.now_ms(), self.clock.monotonic_ms())

    def readiness(self) -> Readiness:
        """Assess now."""
        readiness = assess(
            Facts(
                lease=self.lease(),
                levels={name: self.pipeline.level(name) for name in self.services},
                listening=self.listening,
                draining=self.draining,
                identity_problem=self._identity_problem(),
                starting=not self._was_ready,
                not_attested=_why_not(self.attestation()),
            )
        )
        self._was_ready = self._was_ready or not readiness.not_ready
        return readiness

    def reported(self, own: Credential | None) -> operator_pb2.NodeStatus:
        """Return the status with what the control plane can verify of it: the node's own credential, if it fits."""
        status = self.status()
        if own is not None and status.ByteSize() + len(own.data) < limits.MAX_NODE_STATUS_BYTES - 64:
            status.credential = own.data
        return status

    def status(self) -> operator_pb2.NodeStatus:
        """Return everything in the protocol's form."""
        readiness, held = self.readiness(), self.state.in_force
        fresh_ms, sealed_ms = self.remaining_ms()
        policy = None if held is None else held.policy
        return operator_pb2.NodeStatus(
            node=self.node,
            state=readiness.state,
            not_ready=readiness.not_ready,
            policy_version=0 if policy is None else policy.base.version,
            policy_digest="" if policy is None else policy.digest,
            namespace_versions={}
            if policy is None
            else {name: target.version for name, target in policy.namespaces.items()},
            lease=lease_word(self.lease()),
            lease_remaining_ms=fresh_ms,
            grace_remaining_ms=max(0, sealed_ms - fresh_ms),
            levels={name: self.pipeline.level(name) for name in self.services},
            egm_version=_VERSION,
            boot_id=self.boot_id,
            started_ms=self.started_ms,
            decisions=self.pipeline.counters.decisions(),
            alarms=[*self.alarms.texts(), *self.notes()],
            admin_address=self.admin_address,
            attestation=self.attestation(),
        )

    def _identity_problem(self) -> str:
        if self.identity is None:
            return "no certificates yet; is the control plane reachable, is the join token valid?"
        for member in self.members:
            try:
                self.identity.svid(member)
            except MeshError as error:
                return error.detail
        return ""


def _why_not(attestation: operator_pb2.Attestation) -> str:
    """Return why too few witnesses vouch for this node; empty when enough do."""
    if attestation.standing != Standing.NOT_ATTESTED:
        return ""
    why = "; ".join(f"{name}: {reason}" for name, reason in sorted(attestation.not_vouched.items()))
    count = f"{attestation.quorum} of {len(attestation.witnesses)} witnesses must vouch for this node"
    return f"{count}; {why}" if why else f"{count}, and it is asking them"
