"""What a running control plane adds to evidence: where records are, and the files of policies of the past.

Asked as an operator. Nothing that it answers is believed: a record is taken from a node's own ledger, and a policy
verifies up to the root that the reader of the evidence trusts.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from control_plane.edge.evidence_find import Position
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import CALL_TIMEOUT_S, TRANSFER_TIMEOUT_S, Credentials
from egm.v1 import distribution_pb2, distribution_pb2_grpc, operator_pb2_grpc, record_pb2
from trust import limits
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import CapacityError, MeshError, Reason
from trust.record import Intent, parse_record
from trust.x509 import control_plane_dns


class Remote:
    """One control plane, over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Use `channel`, which shows an operator's certificate."""
        self._operator: Any = operator_pb2_grpc.OperatorStub(channel)
        self._files: Any = distribution_pb2_grpc.DistributionStub(channel)

    async def positions(self, executions: Sequence[bytes]) -> list[Position]:
        """Return where the index says that the records of `executions` are; none for what it does not have.

        Raises:
            MeshError: it does not answer.
        """
        found: list[Position] = []
        for execution in executions:
            request = record_pb2.GetExecutionRequest(execution_id=execution)
            try:
                answer = await self._operator.GetExecution(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                failure = error_from_rpc(error)
                if failure.reason is Reason.NOT_FOUND:
                    continue
                raise failure from None
            found += (position for entry in answer.entries if (position := _position(execution, entry)))
        return found

    async def file(self, path: str) -> bytes | None:
        """Return a file of the repository, None when there is none.

        Raises:
            MeshError: it does not answer. CapacityError: LIMIT_EXCEEDED, for a file larger than any that nodes take.
        """
        data = bytearray()
        try:
            request = distribution_pb2.GetFileRequest(path=path)
            async for chunk in self._files.GetFile(request, timeout=TRANSFER_TIMEOUT_S):
                data += chunk.data
                if len(data) > limits.MAX_BUNDLE_ARCHIVE_BYTES:
                    raise CapacityError(Reason.LIMIT_EXCEEDED, f"{path} has over {len(data)} bytes")
        except grpc.aio.AioRpcError as error:
            failure = error_from_rpc(error)
            if failure.reason is Reason.NOT_FOUND:
                return None
            raise failure from None
        return bytes(data)

    def reader(self) -> Callable[[str], bytes | None]:
        """Return `file` for a thread other than the one of this loop."""
        loop = asyncio.get_running_loop()

        def read(path: str) -> bytes | None:
            return asyncio.run_coroutine_threadsafe(self.file(path), loop).result()

        return read


@asynccontextmanager
async def control_plane_of(mesh: MeshFile, directory: Path) -> AsyncIterator[Remote]:
    """Connect to the control plane of `mesh` with the operator credentials it names.

    Raises:
        InputError: KEY_UNREADABLE.
    """
    credentials = Credentials.load(directory / mesh.operator)
    async with credentials.channel(mesh.control_plane, control_plane_dns(mesh.trust_domain)) as channel:
        yield Remote(channel)


def _position(execution: bytes, entry: record_pb2.ExecutionEntry) -> Position | None:
    try:
        intent = parse_record(entry.intent)
    except MeshError:
        return None  # of a later version; the ledger is searched instead
    if not isinstance(intent, Intent):
        return None
    outcome = entry.outcome_index if entry.outcome else None
    return Position(execution, entry.node, intent.side, entry.intent_index, outcome)
