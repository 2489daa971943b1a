"""Tries the bundle that an approver ordered beside the policy in force, and tells the control plane what differs.

It enforces nothing. The order and the archive come from the control plane and are verified here: the order against
the approvers of the policy in force, the archive against the order.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import grpc.aio

from egm.v1 import record_pb2, shadow_pb2, shadow_pb2_grpc
from sidecar.core.bundle_state import BundleState, InForce
from sidecar.core.call import Direction
from sidecar.core.pipeline import Pipeline
from sidecar.core.shadow import Comparison, Kind, Tally
from sidecar.edge import collector
from sidecar.edge.activation import read_target
from trust import limits
from trust.edge.grpc_errors import error_from_rpc, readable
from trust.edge.tls import Channels
from trust.edge.tuf_client import PolicyClient
from trust.errors import EvidenceError, MeshError, Reason
from trust.policy.engine import Engine
from trust.ports import Clock
from trust.shadow import Order, read_order, verify_order
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE, VerifiedPolicy, VerifiedTarget, target_path
from trust.x509 import control_plane_dns

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0
_FRAME_BYTES: Final = 8  # around one difference in a report, at most
_DIRECTION: Final = {
    Direction.INBOUND: record_pb2.DIRECTION_INBOUND,
    Direction.OUTBOUND: record_pb2.DIRECTION_OUTBOUND,
}


class ShadowRunner:
    """One node's part in shadow runs. Owned by the event loop; a failure is logged once and retried."""

    def __init__(
        self,
        channels: Channels,
        addresses: Sequence[str],
        *,
        node: SpiffeId,
        boot_id: str,
        client: PolicyClient,
        state: BundleState,
        pipeline: Pipeline,
        clock: Clock,
        local_level: int | None,
        period_s: float = limits.SHADOW_REPORT_PERIOD_S,
    ) -> None:
        """Take the parts.

        Args:
            channels: supplies mTLS channels as `node`.
            addresses: of control planes that share one store.
            node: this node's SPIFFE ID.
            boot_id: unique per start.
            client: knows who may sign policy.
            state: the policy in force.
            pipeline: shows its decisions to a comparison.
            clock: wall and monotonic time.
            local_level: from the configuration.
            period_s: between reports, seconds.
        """
        self._channels, self._addresses, self._node, self._boot_id = channels, tuple(addresses), node, boot_id
        self._client, self._state, self._pipeline, self._clock = client, state, pipeline, clock
        self._local_level, self._period_s = local_level, period_s
        self._server_dns = control_plane_dns(node.trust_domain)
        self._order: Order | None = None
        self._archive = b""
        self._built_for = ""  # digest of the policy in force that the candidate was compiled beside
        self._comparison: Comparison | None = None
        self._problem = ""
        self._refused: tuple[bytes, str] | None = None  # order and policy in force that did not go together
        self._logged = ""

    async def run(self) -> None:
        """Report and follow orders until cancelled."""
        while True:
            if self._order is not None and self._now_s() >= self._order.until_s:
                self._end()
            error = "no control plane address is configured"
            for address in self._addresses:
                try:
                    await self._exchange(address)
                except grpc.aio.AioRpcError as failure:
                    error = f"{address}: {error_from_rpc(failure)}"
                except MeshError as failure:
                    error = f"{address}: {failure}"
                else:
                    error = ""
                    break
            if error and error != self._logged:
                logger.info("shadow runs are not followed now, will retry: %s", error)
            self._logged = error
            await asyncio.sleep(self._period_s)

    async def _exchange(self, address: str) -> None:
        channel = self._channels.get(address, client=self._node, server_dns=self._server_dns)
        stub = shadow_pb2_grpc.ShadowStub(channel)
        assignment = readable(await stub.Report(self._report(), timeout=TIMEOUT_S))
        if not assignment.order:
            self._end()
            return
        held = self._state.in_force
        if held is None or (assignment.order, held.policy.digest) == self._refused:
            return  # trying the same again would change nothing
        try:
            await self._follow(stub, assignment.order, held)
        except EvidenceError as error:
            self._refused = (assignment.order, held.policy.digest)
            self._leave(str(error))
        except MeshError as error:
            self._leave(str(error))
        except Exception:  # whatever a signed candidate breaks in here must not end the process
            logger.exception("a candidate could not be tried")
            self._refused = (assignment.order, held.policy.digest)
            self._leave("the candidate could not be tried: internal error, see this node's log")

    async def _follow(self, stub: "shadow_pb2_grpc.ShadowAsyncStub", data: bytes, held: InForce) -> None:
        order = self._verified(data)
        if self._order is None or order.id != self._order.id:
            self._end()
            self._order = order
        if not self._archive:
            self._archive = await self._fetch(stub, order)
        if self._comparison is None or self._built_for != held.policy.digest:
            engine = await self._compiled(order, held)
            self._problem, self._built_for = "", held.policy.digest
            if self._comparison is None:
                logger.info("trying proposal %s in shadow run %s", order.proposal_sha256[:16], order.id)
                self._comparison = Comparison(engine, self._local_level)
            else:
                self._comparison.candidate = engine
            self._pipeline.shadow = self._comparison

    def _verified(self, data: bytes) -> Order:
        claimed, _ = read_order(data)
        keys = self._client.approvers(claimed.role)
        return verify_order(data, keys, trust_domain=self._node.trust_domain, now_s=self._now_s())

    def _now_s(self) -> int:
        return self._state.trusted_now_ms(self._clock.now_ms(), self._clock.monotonic_ms()) // 1000

    async def _fetch(self, stub: "shadow_pb2_grpc.ShadowAsyncStub", order: Order) -> bytes:
        archive = bytearray()
        request = shadow_pb2.FetchCandidateRequest(run_id=order.id)
        async for chunk in stub.Fetch(request, timeout=TIMEOUT_S):
            archive += chunk.data
            if len(archive) > order.bundle_bytes:
                raise EvidenceError(Reason.DIGEST_MISMATCH, "the candidate is larger than its order says")
        return bytes(archive)

    async def _compiled(self, order: Order, held: InForce) -> Engine:
        with collector.young_only():
            return await asyncio.to_thread(compile_candidate, order, self._archive, held.policy)

    def _leave(self, problem: str) -> None:
        """Compare no more, but stay in the run: its reports say why."""
        if problem != self._problem:
            logger.warning("this node takes no part in a shadow run: %s", problem)
        self._problem, self._archive = problem, b""
        self._pipeline.shadow = None

    def _end(self) -> None:
        self._order, self._comparison, self._archive = None, None, b""
        self._problem = self._built_for = ""
        self._pipeline.shadow = None

    def _report(self) -> shadow_pb2.ShadowReport:
        order, comparison = self._order, self._comparison
        report = shadow_pb2.ShadowReport(
            run_id="" if order is None else order.id, boot_id=self._boot_id, problem=self._problem
        )
        if comparison is not None:
            report.compared, report.incomparable = comparison.compared, comparison.incomparable
            report.problem = report.problem or comparison.problem
            report.omitted = comparison.omitted
            room = limits.MAX_SHADOW_REPORT_BYTES
            for kind, tally in comparison.tallies.items():
                difference = _to_wire(kind, tally)
                room -= difference.ByteSize() + _FRAME_BYTES
                if room < 0:
                    report.omitted += 1
                else:
                    report.differences.append(difference)
        return report


def compile_candidate(order: Order, archive: bytes, policy: VerifiedPolicy) -> Engine:
    """Return the engine of the candidate, beside the other bundles of the policy in force. CPU heavy.

    Raises:
        EvidenceError: DIGEST_MISMATCH, BUNDLE_*; another trust domain's is BUNDLE_MALFORMED.
    """
    bundles = {BASE_ROLE: policy.base, **policy.namespaces}
    bundles[order.role] = VerifiedTarget(
        target_path(order.role), order.role, 0, order.bundle_sha256, archive, (), 0, 0
    )
    read = {role: read_target(target) for role, target in bundles.items()}
    base = read.pop(BASE_ROLE)
    engine = Engine.build(base, read)
    if engine.mesh.trust_domain != order.trust_domain:
        raise EvidenceError(
            Reason.BUNDLE_MALFORMED, f"mesh.json is for trust domain {engine.mesh.trust_domain}"
        )
    return engine


def _to_wire(kind: Kind, tally: Tally) -> shadow_pb2.ShadowDifference:
    return shadow_pb2.ShadowDifference(
        change=kind.change,
        direction=_DIRECTION[kind.direction],
        caller=kind.caller,
        service=kind.service,
        method=kind.method,
        before=kind.before,
        after=kind.after,
        policies=tally.policies,
        decision_id=tally.example,
        count=tally.count,
        first_ms=tally.first_ms,
        last_ms=tally.last_ms,
    )
