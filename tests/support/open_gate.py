"""A second implementation of the gate: allows all except what a test refuses; remembers what it was asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sidecar.core.call import Attempt, Decision, Permitted, RefusedError, permitted
from sidecar.core.gate import Shape
from trust.errors import MeshError, Reason


@dataclass
class OpenGate:
    """Implements `sidecar.core.gate.Gate`. `shapes` maps methods; all others are STREAM."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    refuse: Callable[[Attempt, bytes | None], Reason | None] = lambda attempt, request: None
    reads: bool = False
    holds: bool = False
    detail: str = "the test says no"
    attempts: list[Attempt] = field(default_factory=list)
    requests: list[bytes | None] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    withdraw: Reason | None = None
    cuts: dict[int, Callable[[Decision], None]] = field(default_factory=dict)

    def decision(self, reason: Reason, *, allowed: bool = False) -> Decision:
        """Return a decision as the pipeline would make it."""
        number = len(self.attempts)
        return Decision(f"boot-{number}", allowed, reason, 4, 7, detail="" if allowed else self.detail)

    def shape(self, service: str, method: str) -> Shape:
        """Return the shape that the test gave the method."""
        return self.shapes.get(method, Shape.STREAM)

    def needs_request(self, attempt: Attempt) -> bool:
        """Return the same for every call."""
        return self.reads

    def holds_opening(self, attempt: Attempt, *, now_ms: int) -> bool:
        """Return the same for every call."""
        return self.holds

    def authorize(self, attempt: Attempt, request: bytes | None, *, now_ms: int) -> Permitted:
        """Allow, unless the test refuses."""
        self.attempts.append(attempt)
        self.requests.append(request)
        reason = self.refuse(attempt, request)
        if reason is not None:
            raise RefusedError(self.decision(reason))
        return permitted(attempt, self.decision(Reason.ALLOWED, allowed=True))

    def decline(self, attempt: Attempt, error: MeshError) -> Decision:
        """Return the refusal for a reason found outside the policies."""
        return replace(self.decision(error.reason), detail=error.detail)

    def withdrawn(
        self, permitted: Permitted, request: bytes | None, *, now_ms: int, held: bool = False
    ) -> Decision | None:
        """Withdraw what the test says, of every call."""
        return None if self.withdraw is None else self.decision(self.withdraw)

    def unforwarded(self, permitted: Permitted) -> None:
        """Take nothing back: nothing is limited."""

    def opened(self, permitted: Permitted, cut: Callable[[Decision], None]) -> int:
        """Keep the stream until it closes."""
        handle = len(self.attempts)
        self.cuts[handle] = cut
        return handle

    def closed(self, handle: int) -> None:
        """Forget the stream."""
        self.cuts.pop(handle, None)

    def forwarded(self, permitted: Permitted, status: str, seconds: float) -> None:
        """Remember how the call ended."""
        self.outcomes.append(status)
