"""One call on its way through a sidecar: what the door saw, what was decided, and what may be forwarded."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sidecar.core.meters import NOTHING, Taken
from trust.errors import Reason
from trust.per_call import per_call
from trust.permit import Permit
from trust.policy.controls import Control
from trust.policy.types import Authn

_SEAL: Final = object()  # only sidecar.core.pipeline may mint a Permitted


@enum.unique
class Direction(enum.StrEnum):
    """OUTBOUND: from the local workload into the mesh. INBOUND: from the mesh to the local service."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


@per_call()
class Attempt:
    """A call as the door saw it. `principal` is None when the caller could not be identified."""

    direction: Direction
    service: str  # logical name the listener or route stands for
    method: str  # "package.Service/Method", no leading slash
    principal: str | None  # SPIFFE ID
    authn: Authn | None
    unidentified: Reason | None = None  # why `principal` is None
    metadata: Mapping[str, str] = field(default_factory=dict)
    key_sha256: bytes = b""  # of the public key (SubjectPublicKeyInfo) that the caller's connection proved
    permit: Permit | None = None  # that came with it, verified and spent: who vouches for the call

    def vouched(self, permit: Permit) -> "Attempt":
        """Return the same call with the permit that came with it (`dataclasses.replace` costs thrice as much)."""
        return Attempt(
            self.direction,
            self.service,
            self.method,
            self.principal,
            self.authn,
            self.unidentified,
            self.metadata,
            self.key_sha256,
            permit,
        )


@per_call()
class Decision:
    """What was decided for one attempt, and under which policy; everything a person needs to ask why."""

    id: str
    allowed: bool
    reason: Reason
    level: int
    policy_version: int  # base bundle; 0 when there is none
    policies: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    would_deny: Reason | None = None  # allowed here, but level 4 would have refused for this reason
    detail: str = ""
    obligations: tuple[tuple[str, str], ...] = ()  # of an allowed call: what the determining permits ask for
    restrictions: tuple[tuple[str, str], ...] = ()  # those of `obligations` that incident response asks for
    method_alone: bool = False  # allowed by policies that let a stream's permit bind the method alone
    controls: tuple[
        Control, ...
    ] = ()  # of an allowed call: the limits that it counts towards, or has counted towards
    retry_ms: int = 0  # of a refused call: after this time it could be allowed; 0: nobody knows
    about: tuple[tuple[str, str], ...] = ()  # told to a refused caller beside the reason, such as a ticket


@dataclass(frozen=True, slots=True)
class Permitted:
    """An attempt that may be forwarded. Holding one is the proof that it was decided."""

    attempt: Attempt
    decision: Decision
    seal: object
    request: bytes | None = None  # kept for streams only, to decide them again
    taken: Taken = NOTHING  # of limits, for this execution
    epoch: int = 0  # of the governance it was decided under; an older one is decided again

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("only the pipeline permits a call")


class RefusedError(Exception):
    """The call must not be forwarded. Carries the decision; the door turns it into a gRPC status."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.reason}: {decision.detail}")
        self.decision = decision


def permitted(
    attempt: Attempt, decision: Decision, request: bytes | None = None, epoch: int = 0, taken: Taken = NOTHING
) -> Permitted:
    """Mint the type that `forward` demands. Called by the pipeline alone (a test reads every import)."""
    return Permitted(attempt, decision, _SEAL, request, taken, epoch)
