"""What the sidecar asks of compiled policies. `trust.policy.engine.Engine` is the real one."""

from typing import Protocol

from trust.mesh import MeshSettings
from trust.policy.types import Call, Verdict


class MethodKind(Protocol):
    """How a method's messages come, as its descriptor says."""

    @property
    def client_streaming(self) -> bool:
        """Whether the client sends many messages."""
        ...

    @property
    def server_streaming(self) -> bool:
        """Whether the server sends many messages."""
        ...


class Methods(Protocol):
    """The methods that the bundle has descriptors of."""

    def get(self, method: str) -> MethodKind | None:
        """Return the method "package.Service/Method"; None when no descriptor knows it."""
        ...


class Decider(Protocol):
    """Deterministic decisions under one policy; total, synchronous, without side effects."""

    @property
    def mesh(self) -> MeshSettings:
        """The signed settings of the base bundle."""
        ...

    def methods_of(self, service: str) -> Methods:
        """Return the descriptors by which requests to `service` are read."""
        ...

    def decide(self, call: Call, *, now_ms: int) -> Verdict:
        """Decide one call; never raises for a bad request."""
        ...

    def reads_request(self, principal: str, method: str, service: str) -> bool:
        """Return whether any policy that could decide such a call reads the request message."""
        ...

    def audits_payload(self, principal: str, method: str, service: str) -> bool:
        """Return whether a permit that could determine such a call asks to keep its payload."""
        ...

    def awaits_approval(self, principal: str, method: str, service: str) -> bool:
        """Return whether a permit that could determine such a call asks for approvers of its (opening) message."""
        ...

    def amount(self, method: str, service: str, request: bytes, field: tuple[str, ...]) -> int:
        """Return what a field of a request holds, in units of 0.0001, for a budget.

        Raises:
            EvidenceError: OBLIGATION_UNMET or REQUEST_UNREPRESENTABLE: it cannot be told.
        """
        ...

    def governs(self, method: str, service: str) -> bool:
        """Return whether any policy speaks of `method` on `service`."""
        ...
