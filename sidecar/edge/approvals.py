"""Has approvers asked where policy or incident response says so: holds a call, refuses it with a ticket, or lets it go.

The caller's sidecar asks, and the approvals travel with the call (`egm-approval-bin`), so that the callee's verifies
them itself, offline. Where none came, the callee's sidecar asks. The control plane keeps tickets and approvals; it can
withhold them and never make them.
"""

import asyncio
import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from egm.v1 import approvals_pb2 as pb
from sidecar.config import SidecarConfig
from sidecar.core.approvals import (
    NOT_ASKED,
    UNAVAILABLE,
    Needed,
    Windows,
    check_meetable,
    goes_on_without,
    needed,
    proof_of,
    refusal,
    standing_of,
)
from sidecar.core.bundle_state import BundleState
from sidecar.core.call import Decision, Direction
from sidecar.core.obligations import noted
from sidecar.core.readiness import Alarms
from sidecar.edge.approval_desk import Desk, RemoteDesk
from sidecar.edge.case import Case
from sidecar.edge.spent_file import SPENT_FILE, SpentFile
from trust import limits
from trust.approval import APPROVAL_KEY, Standing, enough, pack, read_approval, unpack
from trust.approval_rule import Groups, needs_of, window_s
from trust.edge.ids import ExecutionIds
from trust.edge.tls import Channels
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.permit_claims import NO_MESSAGE
from trust.ports import Clock
from trust.ticket import ANY_REQUEST, METHOD_ALONE, Ticket, ticket_for

logger = logging.getLogger(__name__)

_ALARM: Final = "approvals"
_MAX_UNTOLD: Final = 4_096  # used tickets that the control plane has not heard of


class ApprovalDuty:
    """Meets `require_approval` (`sidecar.edge.duties.Duty`). Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        *,
        trust_domain: str,
        groups: Callable[[], Groups],
        desk: Desk,
        spent: SpentFile,
        now_ms: Callable[[], int],
        monotonic_ms: Callable[[], int],
        serials: Callable[[], str],
        ids: Callable[[], bytes],
        alarm: Callable[[str], None],
    ) -> None:
        """Take the parts.

        Args:
            trust_domain: of the mesh.
            groups: the approver groups of the policy in force.
            desk: where tickets are opened.
            spent: what was used up.
            now_ms: wall time, never behind what signed statements prove (Unix ms).
            monotonic_ms: for pauses.
            serials: draws 32 hexadecimal digits.
            ids: draws execution ids (UUIDv7, 16 bytes).
            alarm: told when approvers cannot be asked; with an empty text when they can again.
        """
        self._trust_domain, self._groups, self.desk, self._spent = trust_domain, groups, desk, spent
        self._now, self._monotonic_ms, self._serials, self._ids = now_ms, monotonic_ms, serials, ids
        self._alarm = alarm
        self._windows = Windows()
        self._waiting: dict[str, list[asyncio.Future[tuple[bytes, ...]]]] = {}
        self._untold: deque[str] = deque(maxlen=_MAX_UNTOLD)
        self._work = asyncio.Event()
        self._away: tuple[int, str] | None = None  # until when (monotonic ms) nobody is asked, and why
        self._held_of: Counter[str] = Counter()  # calls that wait for approvers now, by caller

    @property
    def held(self) -> int:
        """How many calls wait for approvers now."""
        return self._held_of.total()

    async def meet(self, case: Case, decision: Decision, *, now_ms: int) -> None:
        """Return once enough approvers have signed this call; see `sidecar.edge.duties.Duty`.

        Raises:
            MeshError: APPROVAL_*; LIMIT_EXCEEDED, when too many tickets are open.
        """
        asked = needed(decision)
        if asked is None:
            return
        if not asked.binds:
            case.would_deny = case.would_deny or Reason.APPROVAL_REQUIRED
            self._note(case, asked, NOT_ASKED)
            return
        groups = self._groups()
        check_meetable(asked, groups)
        wanted = self._ticket(case, decision, asked)
        if case.attempt.direction is Direction.INBOUND and case.approvals:
            came = self._came(case.approvals, wanted, asked, groups)
            if came is not None:
                await self._use(case, asked, *came)
                return
        known = self._windows.get(wanted.call)
        if known is not None:
            standing = self._standing(known[1], known[0], asked)
            if standing.met:
                await self._use(case, asked, known[0], standing)
                return
            self._windows.drop(wanted.call)
        await self._ask(case, decision, asked, wanted)

    async def run(self) -> None:
        """Collect approvals for calls that are held, and tell the control plane what was used up, until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            await self._round()
            if self._waiting or self._untold:
                self._work.set()
                await asyncio.sleep(limits.APPROVAL_POLL_S)

    def _ticket(self, case: Case, decision: Decision, asked: Needed) -> Ticket:
        attempt = case.attempt
        return ticket_for(
            trust_domain=self._trust_domain,
            caller=attempt.principal or f"spiffe://{self._trust_domain}/anonymous",
            service=attempt.service,
            method=attempt.method,
            request_sha256=case.request_sha256,
            policies=decision.policies,
            needs=needs_of(asked.requirements),
            window=bool(window_s(asked.requirements)),
            serial=self._serials(),
        )

    def _standing(
        self, notes: Sequence[bytes], ticket: Ticket, asked: Needed, *, strict: bool = False
    ) -> Standing:
        now_ms = self._spent.memory.now_ms(self._now())
        return standing_of(notes, ticket, asked, self._groups(), now_ms, strict=strict)

    def _came(
        self, values: Sequence[str | bytes], wanted: Ticket, asked: Needed, groups: Groups
    ) -> tuple[Ticket, Standing] | None:
        """Return what came with the call; None when it was asked under other rules than are in force here.

        Raises:
            MeshError: APPROVAL_INVALID, APPROVAL_DENIED, APPROVAL_EXPIRED, APPROVAL_REQUIRED.
        """
        if len(values) != 1 or not isinstance(values[0], bytes):
            raise EvidenceError(
                Reason.APPROVAL_INVALID, f"{APPROVAL_KEY} must be in the metadata once, as bytes"
            )
        notes = unpack(values[0])
        ticket = read_approval(notes[0]).ticket
        if ticket.call != wanted.call:
            same = {ticket.request, wanted.request} - {ANY_REQUEST, METHOD_ALONE}
            if ticket.call[:4] == wanted.call[:4] and len(same) < 2:
                return None  # the same call; the caller's sidecar enforces another version of the policy
            raise EvidenceError(
                Reason.APPROVAL_INVALID, "the approvals that came with the call are for another one"
            )
        standing = self._standing(notes, ticket, asked, strict=True)
        if not standing.met:
            raise refusal(standing, ticket)
        return ticket, standing

    async def _ask(self, case: Case, decision: Decision, asked: Needed, wanted: Ticket) -> None:
        """Ask approvers, and go on when they have signed; hold the call for them where policy says so."""
        try:
            ticket, notes = await self._open(case, decision, wanted)
        except MeshError as error:
            if error.reason is not Reason.SOURCE_UNAVAILABLE:
                raise
            self._not_asked(case, decision, asked, error)
            return
        standing = self._standing(notes, ticket, asked)
        if not standing.met and standing.denied is None:
            standing = await self._hold(case, ticket, standing, notes, asked)
        if not standing.met:
            raise refusal(standing, ticket)
        await self._use(case, asked, ticket, standing)

    async def _open(self, case: Case, decision: Decision, wanted: Ticket) -> tuple[Ticket, tuple[bytes, ...]]:
        """Return the ticket that is open for a call, one that was not used up, with what was signed."""
        ticket, notes = await self._open_once(case, decision, wanted)
        if self._spent.memory.is_spent(_key(case, ticket)):  # the control plane has not heard of it yet
            await self._tell([ticket.id])
            ticket, notes = await self._open_once(case, decision, wanted)
            if self._spent.memory.is_spent(_key(case, ticket)):
                raise StateError(
                    Reason.APPROVAL_UNAVAILABLE,
                    "the control plane shows a ticket that was used up; try again",
                )
        return ticket, notes

    async def _open_once(
        self, case: Case, decision: Decision, wanted: Ticket
    ) -> tuple[Ticket, tuple[bytes, ...]]:
        if self._away is not None and self._monotonic_ms() < self._away[0]:
            raise StateError(Reason.SOURCE_UNAVAILABLE, self._away[1])
        content = case.request if case.request_sha256 not in {b"", NO_MESSAGE} else None
        size = 0 if content is None else len(content)
        shown = content is not None and size <= limits.MAX_TICKET_CONTENT_BYTES
        request = pb.OpenTicketRequest(
            ticket=wanted.body(),
            inbound=case.attempt.direction is Direction.INBOUND,
            level=decision.level,
            has_content=shown,
            content=content if shown and content is not None else b"",
            content_bytes=size,
        )
        try:
            answer = await self.desk.open(request)
        except MeshError as error:
            if error.reason is Reason.SOURCE_UNAVAILABLE:
                self._away = (self._monotonic_ms() + int(limits.APPROVAL_RETRY_S * 1000), error.detail)
            raise
        self._away = None
        self._alarm("")
        ticket = Ticket.parse(answer.ticket)
        if ticket.call != wanted.call:
            raise StateError(
                Reason.APPROVAL_UNAVAILABLE, "the control plane answered with another call's ticket"
            )
        return ticket, _bounded(answer.notes)

    def _not_asked(self, case: Case, decision: Decision, asked: Needed, error: MeshError) -> None:
        """Refuse, or at level 3 go on and have a person told."""
        if not goes_on_without(asked, decision.level):
            raise StateError(
                Reason.APPROVAL_UNAVAILABLE,
                f"policy asks for approvers ({needs_of(asked.requirements)}), and no control plane answers; try again",
            ) from error
        self._alarm(f"calls go on without the approvals that policy asks for: {error.detail}")
        case.would_deny = case.would_deny or Reason.APPROVAL_UNAVAILABLE
        self._note(case, asked, UNAVAILABLE)

    async def _hold(
        self, case: Case, ticket: Ticket, standing: Standing, known: tuple[bytes, ...], asked: Needed
    ) -> Standing:
        """Return how the ticket stands when enough have signed, somebody denied, or the time is over."""
        seconds = asked.hold_s(case.remaining_s)
        full = self.held >= limits.MAX_HELD_CALLS
        if seconds <= 0 or full or self._held_of[ticket.caller] >= limits.MAX_CALLER_HELD_CALLS:
            return standing
        self._held_of[ticket.caller] += 1
        case.held = True
        try:
            async with asyncio.timeout(seconds):
                while not standing.met and standing.denied is None:
                    known = await self._next(ticket.id, known)
                    standing = self._standing(known, ticket, asked)
        except TimeoutError:
            return self._standing(known, ticket, asked)
        finally:
            self._held_of[ticket.caller] -= 1
            self._held_of += Counter()  # forgets who holds none
        if case.attempt.direction is Direction.OUTBOUND:
            self._begin_anew(case)
        return standing

    def _begin_anew(self, case: Case) -> None:
        """Draw the id of an outgoing execution again: it was held, and a permit for an old one is refused."""
        is_root = case.root_id == case.execution_id
        case.execution_id = self._ids()
        if is_root:
            case.root_id = case.execution_id

    async def _next(self, ticket_id: str, known: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return what approvers have signed as soon as it is something else than `known`."""
        while True:
            news: asyncio.Future[tuple[bytes, ...]] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(ticket_id, []).append(news)
            self._work.set()
            try:
                notes = await news
            finally:
                self._forget(ticket_id, news)
            if notes != known:
                return notes

    def _forget(self, ticket_id: str, news: "asyncio.Future[tuple[bytes, ...]]") -> None:
        waiting = self._waiting.get(ticket_id, [])
        if news in waiting:
            waiting.remove(news)
        if not waiting:
            self._waiting.pop(ticket_id, None)

    async def _round(self) -> None:
        told = [self._untold.popleft() for _ in range(min(len(self._untold), limits.MAX_COLLECTED_TICKETS))]
        try:
            if told:
                await self.desk.spent(told)
            told = []
            ids = list(self._waiting)[: limits.MAX_COLLECTED_TICKETS]
            found = await self.desk.collect(ids) if ids else {}
        except MeshError as error:
            self._untold.extendleft(reversed(told))
            logger.debug("approvals were not collected, will retry: %s", error)
            return
        for ticket_id, notes in found.items():
            for news in self._waiting.pop(ticket_id, []):
                if not news.done():
                    news.set_result(_bounded(notes))

    async def _tell(self, ids: list[str]) -> None:
        await self.desk.spent(ids)
        for ticket_id in ids:
            if ticket_id in self._untold:
                self._untold.remove(ticket_id)

    async def _use(self, case: Case, asked: Needed, ticket: Ticket, standing: Standing) -> None:
        """Use the approvals up, unless they cover further calls; have them travel on, and write them down.

        Raises:
            MeshError: APPROVAL_SPENT, APPROVAL_UNAVAILABLE.
        """
        groups = self._groups()
        used = enough(standing, asked.requirements, groups)
        notes = tuple(one.data for one in used)
        outbound = case.attempt.direction is Direction.OUTBOUND
        packed = pack(notes) if outbound else b""
        if ticket.request == ANY_REQUEST:
            self._windows.put(ticket, notes)
        else:
            signed_ms = min(one.approval.issued_s for one in used) * 1000
            await self._spent.spend(_key(case, ticket), signed_ms=signed_ms, now_ms=self._now())
            self._untold.append(ticket.id)
            self._work.set()
        if outbound:
            case.extra += ((APPROVAL_KEY, packed),)
        for one, obligation in zip(asked.requirements, asked.obligations, strict=True):
            for what in proof_of(one, ticket, used, groups):
                case.obligations = noted(case.obligations, obligation, what)

    def _note(self, case: Case, asked: Needed, what: str) -> None:
        for obligation in asked.obligations:
            case.obligations = noted(case.obligations, obligation, what)


def _bounded(notes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return as many notes as one ticket may have: each is verified, and the control plane chooses what it sends."""
    return tuple(islice(dict.fromkeys(notes), limits.MAX_TICKET_NOTES))


def _key(case: Case, ticket: Ticket) -> str:
    """Return what is used up: on each side of a call once, and one node may be both."""
    return f"{case.attempt.direction.value}:{ticket.id}"


def approval_duty(
    config: SidecarConfig, channels: Channels, state: BundleState, clock: Clock, alarms: Alarms
) -> ApprovalDuty:
    """Return the duty of one node: it asks the configured control planes, and remembers below `data_dir`."""

    def alarm(text: str) -> None:
        if not text:
            alarms.clear(_ALARM)
        elif alarms.set(_ALARM, text):
            logger.error("alarm: %s", text)

    return ApprovalDuty(
        trust_domain=config.trust_domain,
        groups=lambda: {} if state.in_force is None else state.in_force.engine.mesh.approver_groups,
        desk=RemoteDesk(channels, config.control_plane.addresses, config.spiffe_id("node", config.node)),
        spent=SpentFile(config.data_dir / SPENT_FILE, clock.now_ms()),
        now_ms=lambda: state.trusted_now_ms(clock.now_ms(), clock.monotonic_ms()),
        monotonic_ms=clock.monotonic_ms,
        serials=lambda: secrets.token_hex(16),
        ids=ExecutionIds().new,
        alarm=alarm,
    )
