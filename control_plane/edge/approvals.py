"""Tickets of calls that wait for approvers: opened by sidecars, shown to people, with what approvers signed.

Nothing here allows a call: the sidecars verify every approver's signature against the signed policy themselves.
"""

import asyncio
import secrets
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import grpc.aio

from control_plane.core import approvals as core
from control_plane.core.approvals import State, Stored, View
from control_plane.edge.callers import current_caller
from control_plane.edge.store import approvals, audit
from control_plane.edge.store.database import Database
from egm.v1 import approvals_pb2 as pb
from egm.v1 import approvals_pb2_grpc as rpc
from trust import limits
from trust.approval import read_approval
from trust.errors import InputError, Reason
from trust.mesh import MeshSettings
from trust.ports import Clock

Context = grpc.aio.ServicerContext[Any, Any]

WIRE: Final = {
    State.OPEN: pb.TICKET_STATE_OPEN,
    State.APPROVED: pb.TICKET_STATE_APPROVED,
    State.DENIED: pb.TICKET_STATE_DENIED,
    State.USED: pb.TICKET_STATE_USED,
    State.EXPIRED: pb.TICKET_STATE_EXPIRED,
}
_LIVE: Final = {
    State.OPEN: True,
    State.APPROVED: True,
    State.USED: False,
    State.EXPIRED: False,
}
_FORGET_ONE_IN: Final = 32  # how often opening a ticket also removes old ones


class ApprovalOffice:
    """The tickets of one mesh; several control planes share them through their database."""

    def __init__(self, database: Database, clock: Clock, *, trust_domain: str) -> None:
        """Take the store; `govern` says who may approve."""
        self._database, self._clock, self._trust_domain = database, clock, trust_domain
        self._mesh: MeshSettings | None = None
        # told of every new ticket, for whoever notifies people; must return at once
        self.opened: Callable[[Stored], None] = lambda _stored: None

    def govern(self, mesh: MeshSettings) -> None:
        """Apply the settings of the published policy."""
        self._mesh = mesh

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve nodes and operators; who may ask was checked before (control_plane.core.roles)."""
        rpc.add_ApprovalsServicer_to_server(_Nodes(self), server)
        rpc.add_ApprovalDeskServicer_to_server(_People(self), server)

    async def open(self, request: pb.OpenTicketRequest, node: str) -> Stored:
        """Return the ticket of a call: the one that is open, or a new one."""
        now_ms = self._clock.now_ms()
        wanted = core.take(
            request.ticket,
            trust_domain=self._trust_domain,
            node=node,
            inbound=request.inbound,
            level=request.level,
            content=request.content if request.has_content else None,
            size=request.content_bytes,
            now_ms=now_ms,
        )
        async with self._database.read() as connection:
            held = await approvals.open_one(connection, wanted, now_ms=now_ms)
        if held is not None:
            return held
        async with self._database.write() as connection:
            held = await approvals.open_one(connection, wanted, now_ms=now_ms)
            if held is not None:
                return held
            core.check_room(
                await approvals.room(connection, node=node, caller=wanted.ticket.caller, now_ms=now_ms)
            )
            if secrets.randbelow(_FORGET_ONE_IN) == 0:
                await approvals.forget(connection, now_ms=now_ms)
            await approvals.add(connection, wanted)
        self.opened(wanted)
        return wanted

    async def collect(self, ids: list[str]) -> list[Stored]:
        """Return tickets with what approvers have signed."""
        if len(ids) > limits.MAX_COLLECTED_TICKETS:
            raise InputError(
                Reason.INPUT_INVALID, f"{len(ids)} tickets; ask for at most {limits.MAX_COLLECTED_TICKETS}"
            )
        async with self._database.read() as connection:
            return await approvals.get(connection, ids)

    async def spend(self, ids: list[str], node: str) -> None:
        """Note that a node has used its tickets up."""
        async with self._database.write() as connection:
            await approvals.spend(
                connection, ids[: limits.MAX_COLLECTED_TICKETS], node=node, now_ms=self._clock.now_ms()
            )

    async def page(self, wanted: State | None, limit: int) -> list[View]:
        """Return tickets in a state, newest first."""
        now_ms, most = (
            self._clock.now_ms(),
            min(limit or limits.MAX_LISTED_TICKETS, limits.MAX_LISTED_TICKETS),
        )
        async with self._database.read() as connection:
            # open or approved follows from the notes and the policy in force, so the store cannot tell them apart
            found = await approvals.newest(
                connection,
                live=None if wanted is None else _LIVE.get(wanted),
                limit=limits.MAX_OPEN_TICKETS,
                now_ms=now_ms,
            )
        mesh = self._mesh

        def choose() -> list[View]:
            views = (core.view(one, mesh, now_ms=now_ms) for one in found)
            return list(islice((one for one in views if wanted is None or one.state is wanted), most))

        return await asyncio.to_thread(choose)  # it verifies every signature

    async def get(self, prefix: str) -> View:
        """Return the ticket whose id begins so."""
        wanted = core.check_prefix(prefix)
        async with self._database.read() as connection:
            found = await approvals.find(connection, wanted)
        if len(found) != 1:
            what = "several tickets begin" if found else "no ticket begins"
            raise InputError(Reason.NOT_FOUND, f"{what} with {wanted}; see 'egm approvals list'")
        return core.view(found[0], self._mesh, now_ms=self._clock.now_ms())

    async def decide(self, note: bytes, who: str) -> View:
        """Keep what an approver signed, if an approver signed it."""
        ticket_id, now_ms = read_approval(note).ticket.id, self._clock.now_ms()
        async with self._database.write() as connection:
            found = await approvals.get(connection, [ticket_id])
            if not found:
                raise InputError(
                    Reason.NOT_FOUND, f"there is no ticket {ticket_id[:16]}; see 'egm approvals list'"
                )
            signed = core.decide(found[0], note, self._mesh, now_ms=now_ms)
            await approvals.add_note(
                connection,
                ticket_id,
                name=signed.name,
                verdict=signed.approval.verdict,
                note=note,
                at_ms=now_ms,
            )
            await audit.record(
                connection,
                at_ms=now_ms,
                who=who,
                action=signed.approval.verdict.value,
                detail=f"by the key of {signed.name}: {core.summary(note)}",
            )
            stored = (await approvals.get(connection, [ticket_id]))[0]
        return core.view(stored, self._mesh, now_ms=now_ms)


class _Nodes(rpc.ApprovalsServicer):
    """egm.v1.Approvals."""

    def __init__(self, office: ApprovalOffice) -> None:
        self._office = office

    async def Open(self, request: pb.OpenTicketRequest, context: Context) -> pb.OpenTicketResponse:
        """Open a ticket, or find the one that is open."""
        stored = await self._office.open(request, current_caller().name)
        return pb.OpenTicketResponse(ticket=stored.ticket.body(), notes=stored.notes)

    async def Collect(self, request: pb.CollectRequest, context: Context) -> pb.CollectResponse:
        """Say what approvers have signed."""
        found = await self._office.collect(list(request.tickets))
        return pb.CollectResponse(
            tickets=[pb.TicketNotes(id=one.ticket.id, notes=one.notes) for one in found]
        )

    async def Spent(self, request: pb.SpentRequest, context: Context) -> pb.SpentResponse:
        """Note what was used up."""
        await self._office.spend(list(request.tickets), current_caller().name)
        return pb.SpentResponse()


class _People(rpc.ApprovalDeskServicer):
    """egm.v1.ApprovalDesk."""

    def __init__(self, office: ApprovalOffice) -> None:
        self._office = office

    async def List(self, request: pb.ListTicketsRequest, context: Context) -> pb.ListTicketsResponse:
        """List tickets, newest first."""
        wanted = next((state for state, number in WIRE.items() if number == request.state), None)
        found = await self._office.page(wanted, request.limit)
        return pb.ListTicketsResponse(tickets=[_entry(one, content=False) for one in found])

    async def Get(self, request: pb.GetTicketRequest, context: Context) -> pb.TicketEntry:
        """Show one ticket with the request."""
        return _entry(await self._office.get(request.id), content=True)

    async def Decide(self, request: pb.DecideRequest, context: Context) -> pb.TicketEntry:
        """Take an approval or a denial."""
        return _entry(await self._office.decide(request.note, str(current_caller())), content=True)


def _entry(one: View, *, content: bool) -> pb.TicketEntry:
    stored = one.stored
    return pb.TicketEntry(
        id=stored.ticket.id,
        ticket=stored.ticket.body(),
        node=stored.node,
        inbound=stored.inbound,
        level=stored.level,
        opened_ms=stored.opened_ms,
        until_ms=stored.until_ms,
        state=WIRE[one.state],
        missing=one.missing,
        notes=stored.notes,
        has_content=stored.shown,
        content=stored.content if content and stored.content is not None else b"",
        content_bytes=stored.content_bytes,
    )
