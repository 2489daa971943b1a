"""Second implementations of what the sidecar's core asks for: a settable clock, and policies as a set of rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.core.bundle_state import BundleState, Record
from sidecar.core.call import Attempt, Direction
from sidecar.core.pipeline import Pipeline
from trust.errors import Reason
from trust.mesh import LeaseSettings, MeshSettings, ServiceSettings
from trust.policy.types import Authn, Call, Verdict
from trust.verified import BASE_ROLE, BASE_TARGET, VerifiedPolicy, VerifiedTarget, target_path

ALICE = "spiffe://mesh.local/workload/alice"
PAY = "shop.Payments/Pay"
WATCH = "shop.Payments/Watch"


class ManualClock:
    """Wall and monotonic time that only a test moves."""

    def __init__(self, now_ms: int = 1_000_000_000, monotonic_ms: int = 5_000) -> None:
        """Start at the given times, in milliseconds."""
        self.wall, self.mono = now_ms, monotonic_ms

    def now_ms(self) -> int:
        """Return the wall time."""
        return self.wall

    def monotonic_ms(self) -> int:
        """Return the monotonic time."""
        return self.mono

    def pass_ms(self, ms: int) -> None:
        """Let both clocks run."""
        self.wall += ms
        self.mono += ms


@dataclass(frozen=True)
class Kind:
    """How a method's messages come."""

    client_streaming: bool = False
    server_streaming: bool = False


@dataclass
class RuleDecider:
    """Decides by a table of verdict reasons per (principal, method); the rest is default deny."""

    mesh: MeshSettings = field(default_factory=lambda: MeshSettings(trust_domain="mesh.local"))
    rules: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    methods: dict[str, Kind] = field(
        default_factory=lambda: {PAY: Kind(), WATCH: Kind(server_streaming=True)}
    )
    governed: bool = True
    reads: bool = False
    seen: list[Call] = field(default_factory=list)

    def decide(self, call: Call, *, now_ms: int) -> Verdict:
        """Look the call up."""
        self.seen.append(call)
        default = Verdict(allowed=False, reason=Reason.NO_POLICY_PERMITS, policies=())
        return self.rules.get((call.principal, call.method), default)

    def methods_of(self, service: str) -> dict[str, Kind]:
        """Return the same descriptors for every service."""
        return self.methods

    def reads_request(self, principal: str, method: str, service: str) -> bool:
        """Return the same for every call."""
        return self.reads

    def audits_payload(self, principal: str, method: str, service: str) -> bool:
        """Return whether any answer asks for the payload."""
        return any(("audit", "payload") in verdict.obligations for verdict in self.rules.values())

    def awaits_approval(self, principal: str, method: str, service: str) -> bool:
        """Return whether any answer asks for approvers."""
        return any("require_approval" in dict(verdict.obligations) for verdict in self.rules.values())

    def amount(self, method: str, service: str, request: bytes, field: tuple[str, ...]) -> int:
        """Return the number that the request is, in units."""
        return int(request)

    def governs(self, method: str, service: str) -> bool:
        """Return the same for every method."""
        return self.governed


ALLOW = Verdict(allowed=True, reason=Reason.ALLOWED, policies=("may",))
FORBID = Verdict(allowed=False, reason=Reason.POLICY_DENIED, policies=("never",))
BROKEN = Verdict(allowed=False, reason=Reason.POLICY_ERROR, policies=(), errors=("broken",))
OBLIGED = Verdict(allowed=True, reason=Reason.ALLOWED, policies=("may",), obligations=(("lease", "30s"),))


def mesh(level: int = 4, ttl_s: int = 60, grace_s: int = 120, **services: int) -> MeshSettings:
    """Return signed settings; keyword arguments are levels of services."""
    return MeshSettings(
        trust_domain="mesh.local",
        level=level,
        lease=LeaseSettings(ttl_s=ttl_s, grace_s=grace_s),
        services={name: ServiceSettings(level=n) for name, n in services.items()},
    )


def verified(
    version: int = 1,
    *,
    timestamp: int = 1,
    lease_expires_ms: int,
    expires_ms: int = 2**50,
    digest: str | None = None,
    namespaces: Mapping[str, int] | None = None,
) -> VerifiedPolicy:
    """Return what a TUF client would vouch for."""

    def target(role: str, number: int) -> VerifiedTarget:
        sha256 = digest or f"{role}-{number}"
        path = BASE_TARGET if role == BASE_ROLE else target_path(role)
        return VerifiedTarget(path, role, number, sha256, b"", ("k1", "k2"), 2, expires_ms)

    spaces = {name: target(name, number) for name, number in (namespaces or {}).items()}
    versions = {"root": 1, "timestamp": timestamp, "snapshot": version, BASE_ROLE: version}
    versions |= dict(namespaces or {})
    return VerifiedPolicy(target(BASE_ROLE, version), spaces, versions, lease_expires_ms, expires_ms)


def attempt(
    principal: str | None = ALICE,
    method: str = PAY,
    *,
    service: str = "payments",
    direction: Direction = Direction.INBOUND,
    unidentified: Reason | None = None,
) -> Attempt:
    """Return a call at the door."""
    authn = None if principal is None else Authn.MTLS
    return Attempt(direction, service, method, principal, authn, unidentified)


@dataclass
class Core:
    """A pipeline with its state and clock, and the policy offers a test makes."""

    clock: ManualClock
    state: BundleState
    pipeline: Pipeline

    @classmethod
    def new(cls, *, local_level: int | None = None, record: Record | None = None) -> "Core":
        """Return a core without policy."""
        clock = ManualClock()
        state = BundleState(record or Record(), monotonic_ms=clock.monotonic_ms())
        pipeline = Pipeline(
            node="n1",
            trust_domain="mesh.local",
            boot_id="boot",
            state=state,
            clock=clock,
            local_level=local_level,
        )
        return cls(clock, state, pipeline)

    def adopt(self, decider: RuleDecider, version: int = 1, *, timestamp: int | None = None) -> None:
        """Offer a policy whose lease was signed just now."""
        lease_ms = self.clock.wall + decider.mesh.lease.ttl_s * 1000
        policy = verified(version, timestamp=timestamp or version, lease_expires_ms=lease_ms)
        self.state.offer(policy, decider, now_ms=self.clock.wall, monotonic_ms=self.clock.mono)
        self.pipeline.governance_changed()
