"""Calls through a simulated sidecar, in the order of `sidecar.edge.door.Execution.authorize`."""

import contextlib
from typing import TYPE_CHECKING

from sidecar.core.call import Attempt, Direction, Permitted, RefusedError
from sidecar.core.carriage import HELD_KEY
from sidecar.core.permits import Minter, Verifier
from sidecar.core.replay import ReplayCache
from sidecar.edge.approvals import ApprovalDuty
from sidecar.edge.case import Case, Signing
from sidecar.edge.notary import Notary
from sidecar.edge.permit_floor import PermitFloor
from tests.sim.approving import duty_of
from tests.sim.kernel import SimPath, UnreachableError
from tests.sim.realm import CALLEES, DOMAIN, REFUND, RESTOCK, endorsed
from tests.sim.streaming import Stream
from tests.support.sidecar_core import ALICE, PAY, WATCH
from trust.errors import MeshError
from trust.policy.types import Authn

if TYPE_CHECKING:
    from tests.sim.node import Node

CERTIFICATE = b"\x22" * 32
Pairs = list[tuple[str, str | bytes]]


def workload_of(service: str) -> str:
    """Return who serves a service."""
    return f"spiffe://{DOMAIN}/workload/{service}"


def _service_of(method: str) -> str:
    return "stock" if method == RESTOCK else "payments"


class Calling:
    """Both doors of one node since it started."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        floor = PermitFloor(SimPath(node.disk, "floor"), node)  # type: ignore[arg-type]
        verifier = Verifier(node.endorsements, ReplayCache(boot_ms=floor.boot_ms, remember=floor.remember))
        key_id = endorsed(node.endorsement).digest
        minter = Minter(node.me, lambda: key_id, node.private.sign, lambda: node.world.random.randbytes(16))
        self.notary = Notary(
            node=node.name,
            boot_id=f"{node.name}{node.boots}",
            clock=node,
            ids=self.execution_id,
            level=node.pipeline.level,
            in_force=lambda: node.state.in_force,
            callee=workload_of,
            journal=node.ledger,
            signing=Signing(minter, verifier, lambda: node.endorsement, lambda _who: CERTIFICATE),
            alarm=lambda _text: None,
            trust=node.trust,
        )
        self.approvals: ApprovalDuty | None = None

    def begin(self) -> None:
        """Read what approvals were used up, and have them asked for."""
        self.approvals = duty_of(self.node)
        self.notary.duties.add(self.approvals)

    def tick(self) -> None:
        """Tell the desk what was used up, as `ApprovalDuty.run` does."""
        duty = self.approvals
        if duty is not None and duty._untold:
            self.node.world.spawn(self.node, duty._round())

    def execution_id(self) -> bytes:
        """Draw a UUIDv7."""
        rand = self.node.world.random.getrandbits(74)
        head = self.node.now_ms() << 80 | 7 << 76 | (rand >> 62) << 64 | 2 << 62 | rand & (2**62 - 1)
        return head.to_bytes(16)

    async def call(self) -> None:
        """The workload alice next to this sidecar pays, refunds, or watches: outbound door."""
        node, world = self.node, self.node.world
        method, body = PAY, world.random.randbytes(8)
        if world.chance(0.3):
            method, body = REFUND, self._refund(body)
        elif world.chance(0.15):
            method = RESTOCK
        elif len(node.pipeline.streams) < 3 and world.chance(world.watches):
            method = WATCH
        attempt = Attempt(Direction.OUTBOUND, _service_of(method), method, ALICE, Authn.MTLS)
        case = self.notary.arrived(attempt, [], CERTIFICATE)
        if case is None:
            return
        through = await self._through(attempt, case, body)
        if through is None:
            return
        pairs, permitted = through
        target = world.random.choice(CALLEES)
        world.observer.forwarded(node, case, body)
        world.attacker.overheard_call(target, pairs, body, method)
        stream = None
        if method == WATCH:
            stream = Stream(world)
            stream.begin(node, permitted, case)
        status = "UNAVAILABLE"
        with contextlib.suppress(UnreachableError):
            status = await world.rpc(
                node.name,
                target,
                lambda: world.nodes[target].calling.called(pairs, body, method, stream=stream),
                twice=True,
            )
        if status == "OK" and case.carries:
            # what comes back first from the callee's door
            self.notary.answered(case, [(HELD_KEY, case.named)])
        if stream is not None and status == "OK":
            await stream.over
        elif stream is not None:
            stream.end()
        self.notary.closed(case, status, 0.001)
        if status == "OK":
            world.observer.acknowledged.append((node.name, case.execution_id))

    def _refund(self, body: bytes) -> bytes:
        """Return a request that waits for approvers, mostly one of before: made again, byte for byte."""
        waiting, dice = self.node.refunds, self.node.world.random
        if waiting and dice.random() < 0.8:
            return dice.choice(waiting)
        self.node.refunds = [*waiting[-1:], body]
        return body

    async def called(
        self,
        pairs: Pairs,
        body: bytes,
        method: str = PAY,
        *,
        certificate: bytes = CERTIFICATE,
        stream: Stream | None = None,
    ) -> str:
        """A call arrives for the workload payments next to this sidecar: inbound door."""
        attempt = Attempt(Direction.INBOUND, _service_of(method), method, ALICE, Authn.MTLS)
        case = self.notary.arrived(attempt, pairs, certificate)
        if case is None or self.node.name not in CALLEES:
            return "UNAVAILABLE"
        through = await self._through(attempt, case, body)
        if through is None:
            return "UNAVAILABLE"
        self.node.world.observer.executed(self.node, case, body)
        if stream is None:
            self.notary.closed(case, "OK", 0.001)
        else:
            stream.begin(self.node, through[1], case)
        return "OK"

    async def _through(self, attempt: Attempt, case: Case, body: bytes) -> tuple[Pairs, Permitted] | None:
        node, observer = self.node, self.node.world.observer
        try:
            try:
                self.notary.admit(case, body, now_ms=node.now_ms())
            except MeshError as error:
                raise RefusedError(node.pipeline.decline(attempt, error)) from None
            if case.permit is not None:
                attempt = attempt.vouched(case.permit)
            permitted = node.pipeline.authorize(attempt, body, now_ms=node.now_ms())
            try:
                pairs = await self.notary.opened(case, permitted.decision, now_ms=node.now_ms())
            except MeshError as error:
                raise RefusedError(node.pipeline.decline(attempt, error)) from None
            withdrawn = node.pipeline.withdrawn(permitted, body, now_ms=node.now_ms())
            if withdrawn is not None:
                raise RefusedError(withdrawn)
        except RefusedError as refused:
            observer.refusals[refused.decision.reason] += 1
            if not case.opened:
                try:
                    self.notary.refused(case, refused.decision)
                except MeshError:
                    observer.unproven += 1
            return None
        observer.allowed(node, method=attempt.method)
        return list(pairs), permitted
