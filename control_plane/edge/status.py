"""How this control plane is: what works, what does not, and since when the mesh would notice."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from control_plane.config import ControlPlaneConfig
from control_plane.edge.ca import CertificateAuthority
from control_plane.edge.own_identity import OwnIdentity
from control_plane.edge.publisher import Publisher
from control_plane.edge.store import proposals
from control_plane.edge.store.database import Database
from egm.v1 import operator_pb2
from trust.edge.mqtt import MqttAnnouncer
from trust.errors import StateError
from trust.ports import Clock

CA_WARNING_MS: Final = 30 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class StatusSource:
    """Everything that a status is made of."""

    config: ControlPlaneConfig
    database: Database
    publisher: Publisher
    announcer: MqttAnnouncer
    identity: OwnIdentity
    ca: CertificateAuthority
    clock: Clock
    others: list[Callable[[], list[str]]] = field(default_factory=list)  # what else has problems to tell of

    async def current(self) -> operator_pb2.ControlPlaneStatus:
        """Return the status now; with the store away it still answers, and says so."""
        problems = self.problems()
        try:
            async with self.database.read() as connection:
                open_proposals = await proposals.count_open(connection)
        except StateError as error:
            open_proposals = 0
            problems.append(error.detail)
        return operator_pb2.ControlPlaneStatus(
            name=self.config.name,
            trust_domain=self.config.trust_domain,
            role_versions=self.publisher.state.versions(),
            lease_expires_ms=self.publisher.lease_expires_ms(),
            lease_ttl_s=self.publisher.lease_ttl_s,
            broker_connected=self.announcer.connected,
            broker=str(self.announcer.url) if self.announcer.url.enabled else "",
            store=self.database.kind,
            open_proposals=open_proposals,
            problems=problems,
            ca_not_after_ms=self.ca.not_after_ms,
            now_ms=self.clock.now_ms(),
        )

    def problems(self) -> list[str]:
        """Return everything that somebody should look at."""
        found = [*self.unhealthy()]
        if self.publisher.problem is not None:
            found.append(self.publisher.problem)
        if self.announcer.url.enabled and not self.announcer.connected:
            why = f": {self.announcer.last_error}" if self.announcer.last_error else ""
            found.append(f"broker {self.announcer.url} is not connected{why}; nodes poll instead")
        if self.identity.problem is not None:
            found.append(self.identity.problem)
        if self.ca.not_after_ms - self.clock.now_ms() < CA_WARNING_MS:
            found.append("the CA certificate ends within 30 days: rotate it")
        return [*found, *(problem for other in self.others for problem in other())]

    def unhealthy(self) -> list[str]:
        """Return why this control plane does not do its work; empty when it serves."""
        found = []
        lease_expires_ms = self.publisher.lease_expires_ms()
        if 0 < lease_expires_ms <= self.clock.now_ms():
            found.append("the lease has expired: nodes become STALE, then SEALED")
        if self.identity.not_after_ms <= self.clock.now_ms():
            found.append("the certificate of this control plane has expired: nodes cannot connect")
        return found
