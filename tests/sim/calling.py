"""Calls through a simulated sidecar, in the order of `sidecar.edge.door.Execution.authorize`."""

import contextlib
from typing import TYPE_CHECKING

from sidecar.core.call import Attempt, Direction, RefusedError
from sidecar.core.carriage import HELD_KEY
from sidecar.core.permits import Minter, Verifier
from sidecar.core.replay import ReplayCache
from sidecar.edge.case import Case, Signing
from sidecar.edge.notary import Notary
from sidecar.edge.permit_floor import PermitFloor
from tests.sim.kernel import SimPath, UnreachableError
from tests.sim.realm import CALLEES, PAYMENTS, endorsed
from tests.support.sidecar_core import ALICE, PAY
from trust.errors import MeshError
from trust.policy.types import Authn

if TYPE_CHECKING:
    from tests.sim.node import Node

CERTIFICATE = b"\x22" * 32
Pairs = list[tuple[str, str | bytes]]


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
            ids=self._execution_id,
            level=node.pipeline.level,
            in_force=lambda: node.state.in_force,
            callee=lambda _service: PAYMENTS,
            journal=node.ledger,
            signing=Signing(minter, verifier, lambda: node.endorsement, lambda _who: CERTIFICATE),
            alarm=lambda _text: None,
            trust=node.trust,
        )

    def _execution_id(self) -> bytes:
        rand = self.node.world.random.getrandbits(74)
        head = self.node.now_ms() << 80 | 7 << 76 | (rand >> 62) << 64 | 2 << 62 | rand & (2**62 - 1)
        return head.to_bytes(16)

    async def call(self) -> None:
        """The workload alice next to this sidecar pays: outbound door."""
        node, world = self.node, self.node.world
        attempt = Attempt(Direction.OUTBOUND, "payments", PAY, ALICE, Authn.MTLS)
        body = world.random.randbytes(8)
        case = self.notary.arrived(attempt, [], CERTIFICATE)
        if case is None:
            return
        pairs = await self._through(attempt, case, body)
        if pairs is None:
            return
        target = world.random.choice(CALLEES)
        world.observer.forwarded(node, case, body)
        world.attacker.overheard_call(target, pairs, body)
        status = "UNAVAILABLE"
        with contextlib.suppress(UnreachableError):
            status = await world.rpc(
                node.name, target, lambda: world.nodes[target].calling.called(pairs, body), twice=True
            )
        if status == "OK" and case.carries:
            # what comes back first from the callee's door
            self.notary.answered(case, [(HELD_KEY, case.named)])
        self.notary.closed(case, status, 0.001)
        if status == "OK":
            world.observer.acknowledged.append((node.name, case.execution_id))

    async def called(self, pairs: Pairs, body: bytes, *, certificate: bytes = CERTIFICATE) -> str:
        """A call arrives for the workload payments next to this sidecar: inbound door."""
        attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
        case = self.notary.arrived(attempt, pairs, certificate)
        if case is None or self.node.name not in CALLEES:
            return "UNAVAILABLE"
        if await self._through(attempt, case, body) is None:
            return "UNAVAILABLE"
        self.node.world.observer.executed(self.node, case, body)
        self.notary.closed(case, "OK", 0.001)
        return "OK"

    async def _through(self, attempt: Attempt, case: Case, body: bytes) -> Pairs | None:
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
        observer.allowed(node, permitted.decision)
        return list(pairs)
