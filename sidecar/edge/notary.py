"""Makes every execution provable: verifies and mints permits, and writes down what was decided and how it ended.

One per node, shared by its doors. Below level 5 it only writes; at level 5 nothing is forwarded without a permit,
nor before its intent is durable.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

from sidecar.core.bundle_state import InForce
from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.permits import carried, check_enough, presented
from sidecar.edge.case import Case, Journal, Signing, Trust
from sidecar.edge.duties import Duties
from sidecar.edge.metadata import Pair
from sidecar.edge.passports import Fetch, Passports, told_address
from sidecar.edge.payload_sealer import PayloadSealer
from sidecar.edge.scribe import Scribe, digest
from trust.approval import APPROVAL_KEY
from trust.attestation.credential import Credential
from trust.errors import MeshError, Reason, StateError
from trust.handover import HANDOVER_KEY
from trust.levels import CRYPTOGRAPHIC, GOVERNED, OBSERVABLE
from trust.permit import ENDORSEMENT_KEY, NO_MESSAGE, PERMIT_KEY, Permit, permit_sha256
from trust.ports import Clock
from trust.record import Intent, Link

logger = logging.getLogger(__name__)

_TRACEPARENT: Final = "traceparent"
DURABLE: Final = "durable"


class Notary:
    """Follows executions. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        *,
        node: str,
        boot_id: str,
        clock: Clock,
        ids: Callable[[], bytes],
        level: Callable[[str], int],
        in_force: Callable[[], InForce | None],
        callee: Callable[[str], str],
        journal: Journal,
        signing: Signing,
        alarm: Callable[[str], None],
        trust: Trust | None = None,
        named: Callable[[Credential], None] = lambda _credential: None,
    ) -> None:
        """Take the parts.

        Args:
            node: this node's name.
            boot_id: unique per start.
            clock: wall and monotonic time.
            ids: draws execution ids (UUIDv7, 16 bytes).
            level: of a service, in force.
            in_force: the policy that decides.
            callee: service -> SPIFFE ID of the workload that serves it.
            journal: the ledger.
            signing: the node's key, and those of others.
            alarm: told when a record cannot be written at a level that goes on without.
            trust: who is attested; None asks it of nobody.
            named: told of this node's credential when a permit names it; must return at once.
        """
        self._ids, self._clock = ids, clock
        self._scribe = Scribe(node=node, boot_id=boot_id, clock=clock, in_force=in_force, callee=callee)
        self._level, self._in_force, self._callee = level, in_force, callee
        self._journal, self._signing, self._alarm = journal, signing, alarm
        self.passports = None if trust is None else Passports(trust, named=named)
        self.sealer = PayloadSealer(node, in_force, alarm)
        self.duties = Duties(self.sealer)

    def arrived(self, attempt: Attempt, sent: Iterable[Pair], certificate_sha256: bytes) -> Case | None:
        """Start following a call; None at level 0, which decides and records nothing.

        Args:
            attempt: as the door saw it.
            sent: all metadata as received, the mesh's own keys included.
            certificate_sha256: of the peer's certificate (DER); empty when it showed none.
        """
        level = self._level(attempt.service)
        if level < OBSERVABLE:
            return None
        pairs = list(sent)
        case = Case(attempt, level, certificate_sha256=certificate_sha256)
        try:
            case.token, case.endorsement = presented(pairs)
            case.credential = carried(pairs)
            case.node_address = "" if case.credential is None else told_address(pairs)
        except MeshError as error:
            case.malformed = error
        case.approvals = tuple(value for key, value in pairs if key == APPROVAL_KEY)
        traces = [value for key, value in pairs if key == _TRACEPARENT]
        case.traceparent = traces[0] if len(traces) == 1 and isinstance(traces[0], str) else ""
        return case

    def present(self, case: Case, *, now_ms: int) -> bool:
        """Take up a stream as it opens; return whether its permit binds the opening message, which `admit` then needs.

        The permit of an incoming stream is spent here, so that nobody without a good one can make this node wait.

        Raises:
            MeshError: at level 5, the permit is missing or not good for this call, whatever its opening message.
        """
        if case.attempt.direction is Direction.OUTBOUND:
            self._link(case)
            return False
        if case.level < CRYPTOGRAPHIC:
            return False
        permit = self._presented(case, now_ms)
        self._accepted(case, permit)
        return permit.claims.request_sha256 is not None

    def admit(self, case: Case, request: bytes | None, *, ended: bool = False, now_ms: int) -> None:
        """Verify the permit of an incoming call and spend it; link an outgoing call to the one that makes it.

        Args:
            case: new, or a stream that was taken up by `present`.
            request: the request, or the opening message of a stream; None when none was waited for, or none came.
            ended: the stream was half-closed before any message.
            now_ms: Unix time, ms.

        Raises:
            MeshError: at level 5, the permit is missing or not good for this call.
        """
        case.request = request
        # Policy may have changed while a message was waited for: what it demands now counts.
        case.level = max(case.level, self._level(case.attempt.service))
        case.request_sha256 = (
            NO_MESSAGE if ended else b"" if request is None else hashlib.sha256(request).digest()
        )
        if case.permit is not None:
            self._bind(case, case.permit)
        elif case.attempt.direction is Direction.INBOUND:
            self._accept(case, now_ms)
        elif not case.execution_id:
            self._link(case)

    def fetch_from(self, by_digest: Fetch, address: Callable[[], str]) -> None:
        """Fetch credentials that calls lack, and tell callees where this node answers the same question."""
        if self.passports is not None:
            self.passports.fetch, self.passports.address = by_digest, address

    async def attest(self, case: Case) -> bool:
        """Return whether a call that was refused with ATTESTATION_UNKNOWN may be presented, or admitted, once more.

        Its permit was good, and its node has given the credential that was missing.
        """
        permit = case.unattested
        if permit is None or self.passports is None:
            return False
        if await self.passports.obtain(case, permit):
            return True
        self._unattested(case)
        return False

    def _unattested(self, case: Case) -> None:
        """Forget a permit that is spent, and under which nothing runs."""
        if case.unattested is not None:
            self._signing.verifier.closed(case.unattested)
            case.unattested = None

    def _presented(self, case: Case, now_ms: int) -> Permit:
        if case.malformed is not None:
            raise case.malformed
        permit = case.unattested or self._signing.verifier.present(
            case.token,
            case.endorsement,
            case.attempt,
            audience=self._callee(case.attempt.service),
            client_cert_sha256=case.certificate_sha256,
            now_ms=now_ms,
        )
        if self.passports is not None and case.level >= CRYPTOGRAPHIC:
            again, case.unattested = case.unattested is not None, permit
            try:
                self._check_attested(self.passports, case, permit, now_ms)
            except MeshError as error:
                if again or error.reason is not Reason.ATTESTATION_UNKNOWN:
                    self._unattested(case)
                raise
        case.credential = case.unattested = None
        return permit

    def _check_attested(self, passports: Passports, case: Case, permit: Permit, now_ms: int) -> None:
        """Refuse the permit of a node that no quorum vouches for now."""
        passports.check(case, permit, now_ms=now_ms)

    def _accept(self, case: Case, now_ms: int) -> None:
        try:
            permit = self._presented(case, now_ms)
            self._signing.verifier.bind(permit, case.request_sha256 or None)
        except MeshError:
            if case.level >= CRYPTOGRAPHIC:
                raise
            self._unlinked(case)
            return
        self._accepted(case, permit)

    def _accepted(self, case: Case, permit: Permit) -> None:
        claims = permit.claims
        case.permit, case.permit_sha256 = permit, permit.sha256
        case.permit_token = b"" if case.token is None else case.token.encode("ascii")
        case.execution_id, case.root_id = claims.execution_id, claims.root_id
        case.link = Link.NONE if claims.parent_sha256 is None else Link.VERIFIED

    def _bind(self, case: Case, permit: Permit) -> None:
        # A stream whose permit binds none may have been read for another reason; `check_enough` is for that one.
        waited_for = permit.claims.request_sha256 is not None
        try:
            self._signing.verifier.bind(permit, case.request_sha256 or None if waited_for else None)
        except MeshError:
            self._unbound(case)
            raise

    def _unbound(self, case: Case) -> None:
        """Take a permit that is not this call's off what is recorded of it."""
        case.permit, case.permit_sha256, case.permit_token = None, b"", b""
        self._unlinked(case)

    def _link(self, case: Case) -> None:
        caller = case.attempt.principal
        if case.token is not None and caller is not None:
            case.parent = self._signing.verifier.parent_of(case.token, caller)
        self._unlinked(case)
        if case.parent is not None:
            case.link, case.root_id = Link.VERIFIED, case.parent.claims.root_id

    def _unlinked(self, case: Case) -> None:
        case.execution_id = case.root_id = self._ids()
        case.link = Link.UNVERIFIED if case.traceparent else Link.NONE

    async def opened(self, case: Case, decision: Decision, *, now_ms: int) -> tuple[Pair, ...]:
        """Write down an allowed call before it is forwarded; return the metadata to add.

        Raises:
            StateError: LEDGER_UNAVAILABLE at level 5, or the node's key is not endorsed, or OBLIGATION_UNMET: nothing
                may be forwarded. Also what a duty raises.
            EvidenceError: PERMIT_INVALID, the call fits into no token; PERMIT_MISMATCH, its permit binds the method
                alone, and that is not enough here.
        """
        if case.level >= CRYPTOGRAPHIC and case.permit is not None:
            check_enough(case.permit, decision)
        if decision.obligations:
            await self.duties.meet(case, decision, now_ms=now_ms)
            if case.held:  # as long as approvers took: its permit begins now
                now_ms = self._clock.now_ms()
        case.request = None  # a stream may stay open for long
        extra: tuple[Pair, ...] = case.extra
        if case.level >= CRYPTOGRAPHIC and case.attempt.direction is Direction.OUTBOUND:
            extra += self._mint(case, decision, now_ms)
        elif case.permit is not None and case.token is not None:
            # The service carries its permit on by copying this one key to the calls that it makes.
            extra += ((PERMIT_KEY, case.token),)
        if case.hand_over:
            extra += ((HANDOVER_KEY, self._hand_over(case, now_ms)),)
        pending = self._write(case, self._scribe.intent(case, decision))
        case.opened, case.sealed_request = True, b""  # it is in the record: memory does not keep it, too
        if pending is not None and self._must_be_durable(case):
            try:
                await self._journal.durable(pending)
            except MeshError as error:
                self._not_written(case, error)
        return extra

    def _mint(self, case: Case, decision: Decision, now_ms: int) -> tuple[Pair, ...]:
        attempt = case.attempt
        held = self._in_force()
        if held is None or attempt.principal is None:
            raise StateError(
                Reason.PERMIT_UNVERIFIABLE, "a permit needs a policy in force and an identified caller"
            )
        if not case.request_sha256 and not decision.method_alone:
            raise StateError(
                Reason.PERMIT_UNVERIFIABLE, "the policy changed while this stream was opened; call again"
            )
        signing = self._signing
        credential = None if self.passports is None else self.passports.own()
        token = signing.minter.mint_for(
            attempt,
            decision,
            case.request_sha256 or None,
            case.parent,
            case.root_id,
            signing.client_certificate_sha256(attempt.principal),
            now_ms,
            execution_id=case.execution_id,
            callee=self._callee(attempt.service),
            policy_sha256=digest(held.policy.base.sha256),
            credential_sha256=None if credential is None else credential.sha256,
        )
        case.permit_sha256, case.permit_token = permit_sha256(token), token.encode("ascii")
        pairs: tuple[Pair, ...] = ((PERMIT_KEY, token), (ENDORSEMENT_KEY, signing.endorsement()))
        if credential is None or self.passports is None:
            return pairs
        return pairs + self.passports.carry(case, credential)

    def answered(self, case: Case, initial: Iterable[Pair]) -> tuple[Pair, ...]:
        """Learn from the first metadata of an answer; return what to add to it for the caller's sidecar."""
        return () if self.passports is None else self.passports.answered(case, initial)

    def _hand_over(self, case: Case, now_ms: int) -> str:
        return self._signing.minter.hand_over(
            case.attempt,
            audience=self._callee(case.attempt.service),
            execution_id=case.execution_id,
            permit_sha256=None if case.permit is None else case.permit.sha256,
            request_sha256=case.request_sha256 or None,
            now_ms=now_ms,
        )

    def refused(self, case: Case, decision: Decision) -> None:
        """Write down a call that is not forwarded. A refusal needs no durable record: nothing was executed."""
        self._unattested(case)
        if case.permit is not None:
            # Nothing runs under it, so nothing may be linked to it; however the door goes on.
            self._signing.verifier.closed(case.permit)
            if case.permit.claims.request_sha256 not in {None, case.request_sha256}:
                self._unbound(case)  # the message that it binds never came
        if not case.execution_id:
            self._unlinked(case)
        self._write(case, self._scribe.intent(case, decision))

    def closed(self, case: Case, status: str, seconds: float) -> None:
        """Write down how a call that was opened ended, and how long it took; call exactly once per call."""
        if case.permit is not None:
            self._signing.verifier.closed(case.permit)
        self._unattested(case)
        if not case.opened:
            return
        if self.passports is not None:
            self.passports.ended(case, status)
        try:
            self._journal.append(self._scribe.outcome(case, status, seconds))
        except MeshError as error:
            # The call is over; its intent stays open in the ledger, and is closed as interrupted at the next start.
            self._alarm(f"an outcome was not written: {error}")

    def _write(self, case: Case, intent: Intent) -> object | None:
        try:
            return self._journal.append(intent)
        except MeshError as error:
            self._not_written(case, error)
            return None

    def _not_written(self, case: Case, error: MeshError) -> None:
        """Refuse at level 5, and at level 4 when a payload must be kept; below, a person is told."""
        if case.level >= CRYPTOGRAPHIC or (case.audited and case.level >= GOVERNED):
            raise StateError(
                Reason.LEDGER_UNAVAILABLE, "the ledger of this node cannot be written"
            ) from error
        self._alarm(f"executions go on unrecorded: {error}")

    def _must_be_durable(self, case: Case) -> bool:
        if case.level >= CRYPTOGRAPHIC or (case.audited and case.level >= GOVERNED):
            return True
        held = self._in_force()
        return held is not None and held.engine.mesh.ledger == DURABLE
