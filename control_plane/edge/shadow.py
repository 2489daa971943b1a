"""Shadow runs: hands a proposed bundle to every node that asks, and collects what it would have decided differently.

The control plane starts nothing by itself: the order is an approver's (`trust.shadow`), and nodes verify it again.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

import grpc.aio

from control_plane.core.proposals import State
from control_plane.core.shadow import trimmed
from control_plane.edge.callers import current_caller
from control_plane.edge.publisher import Publisher, required
from control_plane.edge.store import audit, proposals
from control_plane.edge.store import shadow as store
from control_plane.edge.store.database import Database
from egm.v1 import shadow_pb2, shadow_pb2_grpc
from trust import limits
from trust.errors import CapacityError, EvidenceError, InputError, Reason, StateError
from trust.keys import key_name
from trust.ports import Clock
from trust.quorum import keys_of
from trust.repository import delegator_of
from trust.shadow import read_order, verify_order
from trust.verified import target_path

Context = grpc.aio.ServicerContext[Any, Any]
_MAX_MESSAGE_BYTES: Final = (
    2 * limits.MAX_SHADOW_REPORT_BYTES
)  # a node bounds its differences, which is most of it
_BOOT_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")


class ShadowDesk(shadow_pb2_grpc.ShadowServicer, shadow_pb2_grpc.ShadowRunsServicer):
    """egm.v1.Shadow and egm.v1.ShadowRuns."""

    def __init__(self, database: Database, publisher: Publisher, clock: Clock, *, trust_domain: str) -> None:
        self._database, self._publisher, self._clock = database, publisher, clock
        self._trust_domain = trust_domain

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve nodes and operators; who may ask was checked before (control_plane.core.roles)."""
        shadow_pb2_grpc.add_ShadowServicer_to_server(self, server)
        shadow_pb2_grpc.add_ShadowRunsServicer_to_server(self, server)

    # What nodes ask

    async def Report(self, request: shadow_pb2.ShadowReport, context: Context) -> shadow_pb2.ShadowAssignment:
        """Keep what a node saw, and say which run it should be in."""
        if request.ByteSize() > _MAX_MESSAGE_BYTES:
            raise CapacityError(Reason.LIMIT_EXCEEDED, f"a shadow report over {_MAX_MESSAGE_BYTES} bytes")
        if not _BOOT_ID.match(request.boot_id):
            raise EvidenceError(Reason.INPUT_INVALID, "a shadow report without a start's id (boot_id)")
        node, now_ms = current_caller().name, self._clock.now_ms()
        async with self._database.read() as connection:
            run = await store.get(connection)
            running = run is not None and await self._state(connection, run) == "running"
        if run is not None and request.run_id == run.id:
            found = store.Report(node, now_ms, request.SerializeToString())
            async with self._database.write() as connection:
                await store.report(connection, run.id, request.boot_id, found)
        return shadow_pb2.ShadowAssignment(order=run.order if run is not None and running else b"")

    async def Fetch(
        self, request: shadow_pb2.FetchCandidateRequest, context: Context
    ) -> AsyncIterator[shadow_pb2.CandidateChunk]:
        """Send the archive of a run's candidate."""
        async with self._database.read() as connection:
            run = await store.get(connection, request.run_id[:64]) if request.run_id else None
            files = {} if run is None else await proposals.files_of(connection, run.proposal_id)
        data = None if run is None else files.get(run.bundle_path)
        if data is None:
            raise InputError(Reason.NOT_FOUND, "no such shadow run, or its proposal is closed")
        for start in range(0, len(data), limits.MAX_CHUNK_BYTES):
            yield shadow_pb2.CandidateChunk(data=data[start : start + limits.MAX_CHUNK_BYTES])

    # What operators ask

    async def Start(self, request: shadow_pb2.StartShadowRequest, context: Context) -> shadow_pb2.ShadowRun:
        """Begin a run; one at a time."""
        who, now_ms = current_caller(), self._clock.now_ms()
        await self._publisher.synchronise()
        order, signature = read_order(request.order)
        async with self._database.write() as connection:
            newest = await store.get(connection)
            if newest is not None and newest.id == order.id:
                return await self._to_wire(connection, newest)
            if newest is not None and await self._state(connection, newest) == "running":
                raise StateError(
                    Reason.CONFLICT,
                    f"shadow run {newest.id} of proposal {newest.proposal_id} is under way; "
                    "stop it first: egm policy shadow stop",
                )
            proposal = required(await proposals.get(connection, request.proposal_id), request.proposal_id)
            files = await proposals.files_of(connection, proposal.id)
            if (proposal.digest, proposal.role) != (order.proposal_sha256, order.role):
                raise EvidenceError(
                    Reason.SHADOW_ORDER_INVALID, "the order was signed for another proposal; sign this one"
                )
            if proposal.state is not State.OPEN or target_path(proposal.role) not in files:
                raise StateError(
                    Reason.CONFLICT,
                    f"proposal {proposal.id} is {proposal.state} or changes no policy: there is nothing to try",
                )
            keys = keys_of(delegator_of(proposal.role, self._publisher.state), proposal.role)
            verify_order(request.order, keys, trust_domain=self._trust_domain, now_s=now_ms // 1000)
            run = store.Run(
                order.id,
                proposal.id,
                request.order,
                order.role,
                target_path(proposal.role),
                str(who),
                key_name(keys[signature.keyid]),
                now_ms,
                order.until_s * 1000,
                0,
            )
            await store.add(connection, run)
            await audit.record(
                connection,
                at_ms=now_ms,
                who=str(who),
                action="start-shadow",
                proposal_id=proposal.id,
                detail=f"run {run.id}, ordered by {run.approver}",
            )
            return await self._to_wire(connection, run)

    async def Stop(self, request: shadow_pb2.StopShadowRequest, context: Context) -> shadow_pb2.ShadowRun:
        """End the run that is under way."""
        who, now_ms = current_caller(), self._clock.now_ms()
        async with self._database.write() as connection:
            run = await store.get(connection)
            if run is None or await self._state(connection, run) != "running":
                raise InputError(Reason.NOT_FOUND, "no shadow run is under way")
            await store.stop(connection, run.id, at_ms=now_ms)
            await audit.record(
                connection,
                at_ms=now_ms,
                who=str(who),
                action="stop-shadow",
                proposal_id=run.proposal_id,
                detail=f"run {run.id}",
            )
            return await self._to_wire(connection, replace(run, stopped_ms=now_ms))

    async def Get(self, request: shadow_pb2.GetShadowRequest, context: Context) -> shadow_pb2.ShadowRun:
        """Return a run with every node's report."""
        async with self._database.read() as connection:
            run = await store.get(connection, request.run_id[:64])
            if run is None:
                raise InputError(
                    Reason.NOT_FOUND,
                    "no such shadow run; start one: egm policy shadow start PROPOSAL --key KEY",
                )
            return await self._to_wire(connection, run)

    async def _state(self, connection: Any, run: store.Run) -> str:
        if run.stopped_ms:
            return "stopped"
        if self._clock.now_ms() >= run.until_ms:
            return "ended"
        proposal = await proposals.get(connection, run.proposal_id)
        return "running" if proposal is not None and proposal.state is State.OPEN else "closed"

    async def _to_wire(self, connection: Any, run: store.Run) -> shadow_pb2.ShadowRun:
        reports = await store.reports(connection, run.id)
        room = limits.MAX_SHADOW_RUN_BYTES // max(1, len(reports))
        nodes = [
            shadow_pb2.ShadowNode(
                node=found.node,
                at_ms=found.at_ms,
                report=trimmed(shadow_pb2.ShadowReport.FromString(found.report), room),
            )
            for found in reports
        ]
        return shadow_pb2.ShadowRun(
            run_id=run.id,
            proposal_id=run.proposal_id,
            role=run.role,
            started_by=run.started_by,
            approver=run.approver,
            started_ms=run.started_ms,
            until_ms=run.until_ms,
            stopped_ms=run.stopped_ms,
            state=await self._state(connection, run),
            nodes=nodes,
        )
