"""Whether one execution may go on: trust gate, decide, level. The only place that mints `Permitted`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from sidecar.core import wording
from sidecar.core.bundle_state import BundleState, InForce, Lease
from sidecar.core.call import Attempt, Decision, Permitted, RefusedError, permitted
from sidecar.core.counters import Counters
from sidecar.core.gate import Shape
from sidecar.core.hearers import Journal, Shadow
from sidecar.core.levels import Effect, Finding, effect_of, finding_of, level_in_force
from sidecar.core.metering import Use, left, metered, previewed, unreadable
from sidecar.core.meters import NOTHING, Meters
from sidecar.core.obligations import Obligations, beyond_us
from sidecar.core.streams import Cut, Streams, caller_of
from sidecar.core.trust_state import Caller
from sidecar.core.withdrawal import withdrawal
from trust import limits
from trust.approval_rule import REQUIRE
from trust.denials import By, Denial, Denials
from trust.errors import MeshError, Reason, StateError
from trust.levels import CRYPTOGRAPHIC, GOVERNED, OBSERVABLE, POLICY_AWARE, REACTIVE
from trust.policy.controls import Control, controls_of
from trust.policy.types import Authn, Call, Verdict
from trust.ports import Clock
from trust.spiffe import SpiffeId

_OVER: Final = (Lease.NONE, Lease.SEALED, Lease.EXPIRED)  # a tuple: compared by identity, not hashed
_NO_VERDICT: Final = Verdict(allowed=True, reason=Reason.ALLOWED, policies=())


class Pipeline:
    """Implements `sidecar.core.gate.Gate`. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        *,
        node: str,
        trust_domain: str,
        boot_id: str,
        state: BundleState,
        clock: Clock,
        local_level: int | None = None,
        journal: Journal | None = None,
        doubtful: Callable[[], None] | None = None,
        denials: Denials | None = None,
        attested: Callable[[int, int], bool] = lambda _now_ms, _monotonic_ms: True,
        vouched: Callable[[Caller, int], object] = lambda _caller, _now_ms: None,
    ) -> None:
        """Start without policy: everything is refused with POLICY_MISSING.

        Args:
            node: this node's name, which policies may read.
            trust_domain: names the anonymous principal.
            boot_id: unique per start; decision ids are "<boot_id>-<n>".
            state: the policy in force; the driver feeds it.
            clock: monotonic time for the lease.
            local_level: raises the signed level, never lowers it.
            journal: hears of refusals.
            doubtful: called when open streams wait for `review`.
            denials: what is revoked or quarantined; the driver feeds it.
            attested: whether this node is vouched for, at a wall and a monotonic time (ms); level 5 asks.
            vouched: raises MeshError when the node that calls is not vouched for any more, at a wall time (ms); asked
                when a stream at level 5 is decided again.
        """
        self.counters = Counters()
        self.streams = Streams()
        self.meters = Meters()  # what callers have used of limits
        self.shadow: Shadow | None = None  # set while a shadow run goes on
        self._node, self._boot_id = node, boot_id
        self._anonymous = f"spiffe://{trust_domain}/anonymous"
        self._own_id = f"spiffe://{trust_domain}/node/{node}"
        self._state, self._clock, self._local_level = state, clock, local_level
        self._journal, self._doubtful = journal, doubtful
        self._trust_domain = trust_domain
        self._denials = Denials(trust_domain) if denials is None else denials
        self._attested, self._vouched = attested, vouched
        self._count = 0
        self._epoch = 0
        self._levels: dict[str, int] = {}
        self._shapes: dict[tuple[str, str], Shape] = {}

    # What the doors ask (sidecar.core.gate.Gate)

    def shape(self, service: str, method: str) -> Shape:
        """Return how messages of `method` come; STREAM when no descriptor knows it."""
        known = self._shapes.get((service, method))
        if known is not None:
            return known
        held = self._state.in_force
        kind = None if held is None else held.engine.methods_of(service).get(method)
        if kind is None:
            return Shape.STREAM  # not cached: a caller chooses the name
        one_response = Shape.SERVER_STREAM if kind.server_streaming else Shape.UNARY
        shape = self._shapes[service, method] = Shape.STREAM if kind.client_streaming else one_response
        return shape

    def needs_request(self, attempt: Attempt) -> bool:
        """Return whether a policy that could decide `attempt` reads its (single) request, or asks to keep the first."""
        held = self._state.in_force
        if held is None or self.level(attempt.service) == 0:
            return False
        principal = attempt.principal or self._anonymous
        if self.shape(attempt.service, attempt.method) is Shape.STREAM:  # no policy reads one of many
            # Below level 4 a stream whose service speaks first must not be held up: its opening is then not kept.
            level = self.level(attempt.service)
            if level >= GOVERNED and held.engine.audits_payload(principal, attempt.method, attempt.service):
                return True
            return self._approvers_asked(held, principal, attempt, level)
        return held.engine.reads_request(principal, attempt.method, attempt.service)

    def _approvers_asked(self, held: InForce, principal: str, attempt: Attempt, level: int) -> bool:
        """Return whether approvers are to sign the opening message of a stream, which therefore must be known."""
        if level >= POLICY_AWARE and held.engine.awaits_approval(principal, attempt.method, attempt.service):
            return True
        restrictions = self._denials.restrictions(principal, 0)
        return level > OBSERVABLE and any(name == REQUIRE for name, _ in restrictions)

    def holds_opening(self, attempt: Attempt, *, now_ms: int) -> bool:
        """Return whether an outgoing stream must wait for the message that its permit is to bind."""
        if self.level(attempt.service) < CRYPTOGRAPHIC or len(self.streams) >= limits.MAX_OPEN_STREAMS:
            return False
        decision = self.decide(attempt, None, now_ms=now_ms)
        return decision.allowed and not decision.method_alone

    def authorize(self, attempt: Attempt, request: bytes | None, *, now_ms: int) -> Permitted:
        """Return the right to forward `attempt`, or raise RefusedError with the decision."""
        shape = self.shape(attempt.service, attempt.method)
        unary, taken = shape is Shape.UNARY, NOTHING
        if not unary and len(self.streams) >= limits.MAX_OPEN_STREAMS:
            level = self.level(attempt.service)
            decision = self._decision(Effect(allow=False, reason=Reason.LIMIT_EXCEEDED), attempt, level)
        else:
            decision = self.decide(attempt, request, now_ms=now_ms)
            if self.shadow is not None:
                self._compare(
                    self.shadow, attempt, None if shape is Shape.STREAM else request, decision, now_ms
                )
            if decision.controls:
                decision, taken = metered(self.meters, decision, self._use(attempt, request, now_ms))
        self.counters.decided(attempt.direction, decision)
        if self._journal is not None and (not decision.allowed or decision.would_deny is not None):
            self._journal.notable(attempt, decision)
        if not decision.allowed:
            raise RefusedError(decision)
        # Only *the* request can decide a call again; an opening message is bound by the permit, and no policy reads it.
        if shape is not Shape.SERVER_STREAM or request is None:
            return permitted(attempt, decision, None, self._epoch, taken)
        kept = request if len(request) <= limits.MAX_STREAM_REQUEST_KEPT_BYTES else None
        return permitted(attempt, decision, kept, self._epoch, taken)

    def _compare(
        self, shadow: Shadow, attempt: Attempt, request: bytes | None, decision: Decision, now_ms: int
    ) -> None:
        shadow.compare(
            self._call(attempt, request, decision.level),
            attempt.direction,
            decision,
            identified=attempt.principal is not None,
            now_ms=self._state.trusted_now_ms(now_ms, self._clock.monotonic_ms()),
        )

    def decline(self, attempt: Attempt, error: MeshError) -> Decision:
        """Return the decision not to forward `attempt`, because its permit or our ledger does not allow it."""
        effect = Effect(allow=False, reason=error.reason)
        made = self._decision(effect, attempt, self.level(attempt.service))
        decision = replace(made, detail=error.detail, about=error.about)
        self.counters.decided(attempt.direction, decision)
        if self._journal is not None:
            self._journal.notable(attempt, decision)
        return decision

    def withdrawn(
        self, permit: Permitted, request: bytes | None, *, now_ms: int, held: bool = False
    ) -> Decision | None:
        """Return the refusal of a call that lost its right while it waited, say for the disk; None while it has it."""
        if permit.epoch == self._epoch and not held:
            return None
        return self._withdrawn(replace(permit, request=request), now_ms)

    def opened(self, permit: Permitted, cut: Cut) -> int:
        """Register an open stream; `cut` is called once if its right is withdrawn."""
        handle = self.streams.opened(permit, cut, epoch=self._epoch)
        if self._doubtful is not None and self.streams.pending:
            self._doubtful()
        return handle

    def unforwarded(self, permit: Permitted) -> None:
        """Give back what a call took of limits, because it is not forwarded after all."""
        self.meters.give_back(permit.taken, monotonic_ms=self._clock.monotonic_ms())

    def closed(self, handle: int) -> None:
        """Forget an open stream."""
        self.streams.closed(handle)

    def forwarded(self, permit: Permitted, status: str, seconds: float) -> None:
        """Record how a permitted call ended."""
        self.counters.forwarded(permit.attempt.direction, status)

    # What the driver asks

    def decide(self, attempt: Attempt, request: bytes | None, *, now_ms: int) -> Decision:
        """Decide without counting or permitting, and without looking at limits."""
        level = self.level(attempt.service)
        held = self._state.in_force
        monotonic_ms = self._clock.monotonic_ms()
        lease = self._state.lease(now_ms, monotonic_ms)
        identified = attempt.principal is not None
        denial = None if held is None else self._denial(attempt, held)
        if denial is not None:
            finding = Finding.QUARANTINED if denial.by is By.PROOF else Finding.REVOKED
            effect = effect_of(level, lease, identified, finding)
            shown = _NO_VERDICT
            if denial.reason in {effect.reason, effect.would_deny}:
                shown = Verdict(allowed=False, reason=denial.reason, policies=(), detail=denial.why)
            return self._decision(effect, attempt, level, shown)
        if held is None or level == 0 or (level >= GOVERNED and not identified) or lease in _OVER:
            # The table's answer does not depend on what the policies say (tests prove it).
            return self._decision(effect_of(level, lease, identified, Finding.ALLOWED), attempt, level)
        if level >= CRYPTOGRAPHIC and not self._attested(
            self._state.trusted_now_ms(now_ms, monotonic_ms), monotonic_ms
        ):
            return self._decision(effect_of(level, lease, identified, Finding.UNATTESTED), attempt, level)
        if request is not None and self.shape(attempt.service, attempt.method) is Shape.STREAM:
            request = None  # a message among many is not *the* request; the schema has none either
        verdict = held.engine.decide(
            self._call(attempt, request, level),
            now_ms=self._state.trusted_now_ms(now_ms, monotonic_ms),
        )
        governs = verdict.allowed or held.engine.governs(attempt.method, attempt.service)
        effect = effect_of(level, lease, identified, finding_of(verdict, governs=governs))
        return self._decision(effect, attempt, level, verdict)

    def preview(self, attempt: Attempt, request: bytes | None, *, now_ms: int) -> Decision:
        """Return what `authorize` would decide now, without counting, permitting or taking anything (`egm check`)."""
        decision = self.decide(attempt, request, now_ms=now_ms)
        if not decision.controls:
            return decision
        return previewed(self.meters, decision, self._use(attempt, request, now_ms))

    def left(self, control: Control, attempt: Attempt, *, now_ms: int) -> str:
        """Return how much of a limit the caller of `attempt` has left now."""
        return left(self.meters, control, self._use(attempt, None, now_ms))

    def binds(self, attempt: Attempt, decision: Decision) -> str:
        """Return what the permit of an allowed call binds: "request", "opening message", "method"; or nothing."""
        if not decision.allowed or decision.level < CRYPTOGRAPHIC:
            return ""
        if self.shape(attempt.service, attempt.method) is not Shape.STREAM:
            return "request"
        return "method" if decision.method_alone else "opening message"

    def level(self, service: str) -> int:
        """Return the level in force for `service`."""
        level = self._levels.get(service)
        if level is None:
            held = self._state.in_force
            mesh = None if held is None else held.engine.mesh
            level = self._levels[service] = level_in_force(mesh, self._local_level, service)
        return level

    def _use(self, attempt: Attempt, request: bytes | None, now_ms: int) -> Use:
        """Return what the limits of a decision count: who, when, and how much of a field the request asks for."""
        held = self._state.in_force
        single = None if self.shape(attempt.service, attempt.method) is Shape.STREAM else request

        def amount(control: Control) -> int:
            if held is None or single is None:
                raise StateError(Reason.OBLIGATION_UNMET, unreadable(control))
            return held.engine.amount(attempt.method, attempt.service, single, control.field)

        monotonic_ms = self._clock.monotonic_ms()
        trusted_ms = self._state.trusted_now_ms(now_ms, monotonic_ms)
        caller = attempt.principal or self._anonymous
        return Use(attempt.direction.value, caller, amount, trusted_ms, monotonic_ms)

    def _denial(self, attempt: Attempt, held: InForce) -> Denial | None:
        """Return the revocation or quarantine that the call falls under; costs next to nothing when there is none."""
        denials = self._denials
        if not denials.any:
            return None
        serving = SpiffeId.of(self._trust_domain, "workload", held.engine.mesh.workload_of(attempt.service))
        permit = attempt.permit
        return denials.check(
            workloads=(attempt.principal or self._anonymous, str(serving)),
            nodes=(self._own_id,) if permit is None else (permit.claims.issuer, self._own_id),
            keys=(attempt.key_sha256,) if permit is None else (attempt.key_sha256, permit.key.spki_sha256),
            method=attempt.method,
        )

    def governance_changed(self) -> None:
        """Forget what the old policy or lease implied and doubt every open stream.

        Call after every `Swap`, after the lease became SEALED or EXPIRED, and when something is denied or no longer.
        """
        self._epoch += 1
        self._levels.clear()
        self._shapes.clear()
        self.streams.doubt_all()
        if self._doubtful is not None and self.streams.pending:
            self._doubtful()

    def caller_lapsed(self, caller: Caller) -> None:
        """Have the streams that a node opened here decided again: it may be vouched for no longer."""
        self.streams.doubt(caller)
        if self._doubtful is not None and self.streams.pending:
            self._doubtful()

    def review(self, *, now_ms: int, budget: int = limits.STREAMS_PER_STEP) -> int:
        """Decide some doubtful streams again and cut those without a right; return how many were cut."""
        cut = self.streams.step(lambda permit: self._withdrawn(permit, now_ms), budget)
        self.counters.streams_cut += cut
        return cut

    def _withdrawn(self, permit: Permitted, now_ms: int) -> Decision | None:
        again = self.decide(permit.attempt, permit.request, now_ms=now_ms)
        decision = withdrawal(permit.decision, self._still_vouched(permit, again, now_ms))
        if decision is None:
            return None
        self.counters.decided(permit.attempt.direction, decision)
        if self._journal is not None:
            self._journal.notable(permit.attempt, decision)
        return decision

    def _still_vouched(self, permit: Permitted, again: Decision, now_ms: int) -> Decision:
        """Return what was decided again; a refusal when, at level 5, nobody vouches for the calling node now."""
        caller = caller_of(permit)
        if not again.allowed or caller is None or min(permit.decision.level, again.level) < CRYPTOGRAPHIC:
            return again
        try:
            self._vouched(caller, now_ms)
        except MeshError as error:
            return replace(again, allowed=False, reason=error.reason, detail=error.detail)
        return again

    def _call(self, attempt: Attempt, request: bytes | None, level: int) -> Call:
        if attempt.principal is None:
            principal, authn = self._anonymous, Authn.NONE
        else:
            principal, authn = attempt.principal, attempt.authn or Authn.NONE
        return Call(
            principal, attempt.method, attempt.service, authn, self._node, level, request, attempt.metadata
        )

    def _decision(
        self, effect: Effect, attempt: Attempt, level: int, verdict: Verdict = _NO_VERDICT
    ) -> Decision:
        self._count += 1
        held: InForce | None = self._state.in_force
        restrictions: Obligations = ()
        if effect.allow and level >= REACTIVE:
            restrictions = self._denials.restrictions(attempt.principal or self._anonymous, 0)
            if beyond_us(restrictions):
                effect = Effect(allow=False, reason=Reason.OBLIGATION_UNSUPPORTED)
        obligations, controls = (verdict.obligations, verdict.controls) if effect.allow else ((), ())
        if restrictions and effect.allow:
            obligations = tuple(sorted({*obligations, *restrictions}))
            controls += controls_of(restrictions)
        reason, would_deny = effect.reason, effect.would_deny
        if attempt.unidentified is not None:  # the attempt knows more precisely why
            if reason is Reason.CALLER_UNIDENTIFIED:
                reason = attempt.unidentified
            if would_deny is Reason.CALLER_UNIDENTIFIED:
                would_deny = attempt.unidentified
        return Decision(
            f"{self._boot_id}-{self._count}",
            effect.allow,
            reason,
            level,
            0 if held is None else held.version,
            verdict.policies,
            verdict.errors,
            would_deny,
            ""
            if effect.allow and would_deny is None
            else wording.detail(attempt, would_deny or reason, verdict),
            obligations=obligations,
            restrictions=restrictions,
            controls=controls,
            method_alone=effect.allow and verdict.method_alone,
        )
