"""What a door asks before, while and after it forwards a call: the port between the proxy and the pipeline.

The pipeline implements `Gate`; the doors (proxy, later ext_authz and interceptors) know nothing else of it.
Every method is synchronous: a decision is pure, so the door never waits for one.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

from sidecar.core.call import Attempt, Decision, Permitted
from trust.errors import MeshError

# gRPC metadata as it travels: repeated keys allowed, `-bin` keys carry bytes.
Metadata = Sequence[tuple[str, str | bytes]]


@enum.unique
class Shape(enum.Enum):
    """How a method's messages come: decides which path of the proxy it takes."""

    UNARY = "unary"  # known from a descriptor: one request, one response
    SERVER_STREAM = "server-stream"  # known: one request, many responses
    STREAM = "stream"  # everything else, and everything unknown


class Gate(Protocol):
    """Decides calls and watches the open ones."""

    def shape(self, service: str, method: str) -> Shape:
        """Return how messages of `method` ("package.Service/Method") of the logical `service` come."""
        ...

    def needs_request(self, attempt: Attempt) -> bool:
        """Return whether a policy that could decide `attempt` reads the request message, or asks to keep it.

        Any other stream is decided before its first message.
        """
        ...

    def holds_opening(self, attempt: Attempt, *, now_ms: int) -> bool:
        """Return whether an outgoing stream must wait for its opening message, which its permit is to bind.

        Not when it will be refused anyway: then it is refused at once.
        """
        ...

    def authorize(self, attempt: Attempt, request: bytes | None, *, now_ms: int) -> Permitted:
        """Return the right to forward `attempt`.

        Args:
            attempt: the call as the door saw it.
            request: the first message as received; None when there is none to show.
            now_ms: Unix time, in milliseconds.

        Raises:
            RefusedError: the call must not be forwarded; carries the decision.
        """
        ...

    def decline(self, attempt: Attempt, error: MeshError) -> Decision:
        """Return (and count) the decision not to forward `attempt` for a reason found outside the policies."""
        ...

    def withdrawn(
        self, permitted: Permitted, request: bytes | None, *, now_ms: int, held: bool = False
    ) -> Decision | None:
        """Return the refusal of a call that lost its right while it waited to be forwarded; None while it has it.

        Args:
            permitted: from `authorize`, not yet forwarded.
            request: as given to `authorize`.
            now_ms: Unix time, ms.
            held: it waited for people, so that what ends by time alone may have ended: it is decided again.
        """
        ...

    def unforwarded(self, permitted: Permitted) -> None:
        """Give back what an allowed call took of limits, because it is not forwarded after all; at most once."""
        ...

    def opened(self, permitted: Permitted, cut: Callable[[Decision], None]) -> int:
        """Register an open stream; `cut` is called on the loop, once, when its right is withdrawn."""
        ...

    def closed(self, handle: int) -> None:
        """Forget an open stream; it may already have been cut."""
        ...

    def forwarded(self, permitted: Permitted, status: str, seconds: float) -> None:
        """Record how a permitted call ended: gRPC code name ("OK", "NOT_FOUND"), time from open to close."""
        ...


class Observer(Protocol):
    """Follows executions for telemetry; the proxy has none when telemetry is off, which costs nothing."""

    def begin(self, attempt: Attempt, metadata: Metadata) -> tuple[object, Metadata]:
        """Start following `attempt`; return a handle and the metadata to forward (with the trace context)."""
        ...

    def decided(self, handle: object, decision: Decision) -> None:
        """Note the decision, allowed or refused."""
        ...

    def end(self, handle: object, status: str) -> None:
        """Close the execution with its gRPC code name; called exactly once per `begin`."""
        ...
