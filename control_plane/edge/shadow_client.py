"""An operator's side of shadow runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import CALL_TIMEOUT_S, answered, control_plane
from egm.v1 import shadow_pb2, shadow_pb2_grpc


@asynccontextmanager
async def shadow_runs(mesh: MeshFile, directory: Path) -> AsyncIterator["ShadowClient"]:
    """Connect to the control plane of `mesh` with the operator credentials it names; failures are `MeshError`s."""
    async with answered(), control_plane(mesh, directory) as channel:
        yield ShadowClient(channel)


class ShadowClient:
    """Calls egm.v1.ShadowRuns."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = shadow_pb2_grpc.ShadowRunsStub(channel)

    async def start(self, proposal_id: str, order: bytes) -> shadow_pb2.ShadowRun:
        """Begin a run by an approver's order."""
        request = shadow_pb2.StartShadowRequest(proposal_id=proposal_id, order=order)
        return await self._stub.Start(request, timeout=CALL_TIMEOUT_S)

    async def stop(self) -> shadow_pb2.ShadowRun:
        """End the run that is under way."""
        return await self._stub.Stop(shadow_pb2.StopShadowRequest(), timeout=CALL_TIMEOUT_S)

    async def get(self, run_id: str = "") -> shadow_pb2.ShadowRun:
        """Return one run; without an id the newest."""
        return await self._stub.Get(shadow_pb2.GetShadowRequest(run_id=run_id), timeout=CALL_TIMEOUT_S)
