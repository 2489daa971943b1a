"""Who serves a service: by the signed policy or, without a word there, as this node is configured."""

from collections.abc import Callable

from sidecar.config import SidecarConfig
from sidecar.core.bundle_state import InForce


class Callees:
    """Names the workloads that serve; policy in force wins. Not thread-safe: owned by the event loop."""

    def __init__(self, config: SidecarConfig, in_force: Callable[[], InForce | None]) -> None:
        """Take the configuration, and what returns the policy in force."""
        self._config, self._in_force = config, in_force
        self._known: dict[str, str] = {}  # by service, under one policy; every call asks, several times
        self._under: InForce | None = None

    def signed_workload(self, service: str) -> str | None:
        """Return who may serve `service` by the signed policy; None when it does not speak of the service."""
        held = self._in_force()
        if held is None or service not in held.engine.mesh.services:
            return None
        return held.engine.mesh.workload_of(service)

    def callee(self, service: str) -> str:
        """Return who serves `service`, a SPIFFE ID: by the signed policy or, without a word there, as configured."""
        held = self._in_force()
        if held is not self._under:
            self._under, self._known = held, {}
        known = self._known.get(service)
        if known is None:
            name = self.signed_workload(service) or self._config.workload_of(service)
            known = self._known[service] = str(self._config.spiffe_id("workload", name))
        return known

    def notes(self) -> tuple[str, ...]:
        """Return which services we serve under a name that the signed policy, and so every caller, refuses."""
        return tuple(
            f"service {one.service} is served as workload {ours}, but the signed policy says {signed}: callers "
            f"refuse it; set services.{one.service}.workload"
            for one in self._config.inbound
            if (signed := self.signed_workload(one.service)) is not None
            and signed != (ours := self._config.workload_of(one.service))
        )
