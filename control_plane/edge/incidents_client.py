"""The operator's side of incidents: what `egm incidents` calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import CALL_TIMEOUT_S, answered, control_plane
from egm.v1 import incidents_pb2, incidents_pb2_grpc


class IncidentsClient:
    """Calls one control plane as an operator; every failure is a `MeshError` with the server's reason."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = incidents_pb2_grpc.IncidentsStub(channel)

    async def page(self, request: incidents_pb2.ListIncidentsRequest) -> incidents_pb2.ListIncidentsResponse:
        """Return one page of incidents, newest first."""
        async with answered():
            return await self._stub.ListIncidents(request, timeout=CALL_TIMEOUT_S)

    async def get(self, incident: str) -> incidents_pb2.GetIncidentResponse:
        """Return one incident with its evidence and what was done about it."""
        async with answered():
            request = incidents_pb2.GetIncidentRequest(id=incident)
            return await self._stub.GetIncident(request, timeout=CALL_TIMEOUT_S)

    async def resolve(self, incident: str, why: str) -> incidents_pb2.Incident:
        """Close an incident."""
        async with answered():
            request = incidents_pb2.ResolveIncidentRequest(id=incident, why=why)
            return await self._stub.ResolveIncident(request, timeout=CALL_TIMEOUT_S)


@asynccontextmanager
async def incidents(mesh: MeshFile, directory: Path) -> AsyncIterator[IncidentsClient]:
    """Connect to the control plane of `mesh` with the operator credentials it names."""
    async with control_plane(mesh, directory) as channel:
        yield IncidentsClient(channel)
