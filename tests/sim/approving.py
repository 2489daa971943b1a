"""People who approve calls, and the desk at which the control plane keeps tickets: signatures are real, it may lie."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control_plane.core.approvals import Stored, take
from egm.v1 import approvals_pb2 as pb
from sidecar.edge.approvals import ApprovalDuty
from sidecar.edge.spent_file import SPENT_FILE, SpentFile
from tests.sim.kernel import SimPath, UnreachableError
from tests.sim.realm import APPROVERS, DOMAIN, signing_key
from trust.approval import Approval, Verdict, sign_approval
from trust.errors import Reason, StateError

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node


class ApprovalHouse:
    """Tickets that are open, what was signed of them, and who signs next. Taken up by the product's own core."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self.lies = False  # shows what was used up, or is of another call
        self._tickets: dict[str, Stored] = {}

    def open(self, node: str, request: pb.OpenTicketRequest) -> pb.OpenTicketResponse:
        """Open a ticket, or find the one that is open for the same call of the same node."""
        world = self.world
        asked = take(
            request.ticket,
            trust_domain=DOMAIN,
            node=node,
            inbound=request.inbound,
            level=request.level,
            content=request.content if request.has_content else None,
            size=request.content_bytes,
            now_ms=world.now_ms,
        )
        shown = self._another(asked) if self.lies else None
        for one in self._tickets.values():
            if shown is None and not one.spent_ms and (one.node, one.inbound) == (node, request.inbound):
                shown = one if one.ticket.call == asked.ticket.call else None
        if shown is None:
            shown = self._tickets[asked.ticket.id] = asked
            for name in APPROVERS:
                world.after(world.random.randint(50, 1_200), self._looks, name, asked.ticket.id)
        return pb.OpenTicketResponse(ticket=shown.ticket.body(), notes=shown.notes)

    def spent(self, ids: tuple[str, ...]) -> None:
        """Learn what was used up."""
        for one in ids:
            if one in self._tickets and not self.lies:
                self._tickets[one] = replace(self._tickets[one], spent_ms=self.world.now_ms)

    def _another(self, asked: Stored) -> Stored | None:
        """Any ticket with approvals, perhaps of another call, of another node, or used up."""
        approved = [one for one in self._tickets.values() if len(one.notes) > 1]
        alike = [one for one in approved if one.ticket.call == asked.ticket.call]
        chosen = alike if self.world.chance(0.7) else approved
        return self.world.random.choice(chosen) if chosen else None

    def _looks(self, name: str, ticket_id: str) -> None:
        """One approver looks at a ticket: most approve, for some seconds; some say nothing, or no."""
        world, stored = self.world, self._tickets[ticket_id]
        draw = world.random.random()
        if draw < 0.2 or not self.world.policy.up:
            return
        verdict = Verdict.DENY if draw < 0.22 else Verdict.APPROVE
        issued_s = world.now_ms // 1000
        said = Approval(stored.ticket, verdict, issued_s, issued_s + world.random.choice((2, 9, 9)))
        key = signing_key(f"approves {name}")
        note = sign_approval(said, name, key.sign, public_key=key.public)
        world.observer.approved(said, name)
        self._tickets[ticket_id] = replace(stored, notes=(*stored.notes, note))


class SimDesk:
    """How one node reaches the desk (`sidecar.edge.approval_desk.Desk`)."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def open(self, request: pb.OpenTicketRequest) -> pb.OpenTicketResponse:
        """Open a ticket, or find the one that is open."""
        house = self._node.world.approving
        answer: pb.OpenTicketResponse = await self._ask(
            functools.partial(house.open, self._node.name, request)
        )
        return answer

    async def collect(self, ids: Any) -> dict[str, tuple[bytes, ...]]:
        """Return nothing: calls are not held here."""
        return {}

    async def spent(self, ids: Any) -> None:
        """Tell what is used up."""
        await self._ask(functools.partial(self._node.world.approving.spent, tuple(ids)))

    async def _ask(self, handler: Callable[[], Any]) -> Any:
        try:
            return await self._node.world.rpc(self._node.name, "cp", handler)
        except UnreachableError:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "no control plane answers") from None


def duty_of(node: "Node") -> ApprovalDuty:
    """Return the product's duty of one node, which remembers on its disk."""
    return ApprovalDuty(
        trust_domain=DOMAIN,
        groups=lambda: {} if node.state.in_force is None else node.state.in_force.engine.mesh.approver_groups,
        desk=SimDesk(node),
        spent=SpentFile(SimPath(node.disk, SPENT_FILE), node.now_ms()),  # type: ignore[arg-type]
        now_ms=node.trusted_ms,
        monotonic_ms=node.monotonic_ms,
        serials=lambda: node.world.random.randbytes(16).hex(),
        ids=node.calling.execution_id,
        alarm=lambda _text: None,
    )
