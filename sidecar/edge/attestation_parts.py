"""What attestation is made of: the parts of a node that its rounds and its witness use."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from sidecar.config import SidecarConfig
from sidecar.core.bundle_state import BundleState, InForce
from sidecar.core.readiness import Alarms
from sidecar.core.trust_state import TrustState
from sidecar.edge.node_signer import NodeSigner
from trust.attestation.credential import Credential
from trust.attestation.measurement import Measurer, ReferenceValues
from trust.attestation.tpm import Quoter
from trust.attestation.witness import ContradictionError
from trust.edge.ledger import Ledger
from trust.edge.tls import Channels
from trust.gossip import Head
from trust.identity import IdentitySource
from trust.policy.engine import Engine
from trust.ports import Clock
from trust.spiffe import SpiffeId


@dataclass(frozen=True, slots=True)
class Parts:
    """What attestation is made of."""

    config: SidecarConfig
    identity: IdentitySource
    channels: Channels
    state: BundleState
    trust: TrustState
    ledger: Ledger | None  # None: it cannot be used, and nobody vouches for such a node
    signer: NodeSigner
    boot_id: str  # hex
    clock: Clock
    alarms: Alarms
    turned: Callable[[], None]  # told when this node becomes, or is no longer, attested
    addresses: Callable[[], Mapping[str, str]]  # of other nodes' admin listeners: NAME -> HOST:PORT
    gained: Callable[[Credential], None] = lambda _credential: None
    accused: Callable[[ContradictionError], bool] = lambda _error: False
    witnessed: Callable[[Head], None] = lambda _head: (
        None
    )  # told of tree heads of others that are vouched for here
    quarantined: Callable[[], AbstractSet[str]] = frozenset
    measurer: Measurer | None = None
    quoter: Quoter | None = None  # default: the TPM that the configuration names, if any

    @property
    def node(self) -> SpiffeId:
        """This node."""
        return self.config.spiffe_id("node", self.config.node)

    def now_ms(self) -> int:
        """Return the wall time, never behind signed time, Unix ms."""
        return self.state.trusted_now_ms(self.clock.now_ms(), self.clock.monotonic_ms())


def accepted_builds(held: InForce | None) -> ReferenceValues | None:
    """Return the measurements that the policy in force accepts; None for any."""
    engine = None if held is None else held.engine
    return engine.reference_values if isinstance(engine, Engine) else None
