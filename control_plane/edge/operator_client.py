"""The operator's side of the control plane's API: what the verbs of `egm` call."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from control_plane.edge.mesh_file import MeshFile
from egm.v1 import node_pb2, node_pb2_grpc, operator_pb2, operator_pb2_grpc, record_pb2
from trust import limits
from trust.edge.files import check_private
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import InputError, Reason
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

CALL_TIMEOUT_S: Final = 15.0
TRANSFER_TIMEOUT_S: Final = 120.0
_CREDENTIALS: Final = "whoever holds the CA makes them: egm node operator NAME --domain DOMAIN --out DIR"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An operator's certificate, key and trust anchors, all PEM."""

    chain: bytes
    key: bytes
    anchors: bytes

    @classmethod
    def load(cls, directory: Path) -> "Credentials":
        """Read svid.pem, svid.key.pem (0600) and ca.pem.

        Raises:
            InputError: KEY_UNREADABLE, saying which file and what to do.
        """
        if not (directory / "svid.key.pem").is_file():
            raise InputError(
                Reason.KEY_UNREADABLE, f"{directory} holds no operator credentials; {_CREDENTIALS}"
            )
        check_private(directory / "svid.key.pem")
        try:
            return cls(*((directory / name).read_bytes() for name in ("svid.pem", "svid.key.pem", "ca.pem")))
        except OSError as error:
            raise InputError(Reason.KEY_UNREADABLE, f"{error}; {_CREDENTIALS}") from None

    def channel(self, address: str, server_dns: str) -> grpc.aio.Channel:
        """Return an mTLS channel that accepts only the server with the DNS SAN `server_dns`."""
        credentials = grpc.ssl_channel_credentials(self.anchors, self.key, self.chain)
        options = [
            ("grpc.ssl_target_name_override", server_dns),
            ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
        ]
        return grpc.aio.secure_channel(address, credentials, options=options)


@dataclass(frozen=True, slots=True)
class ProposalContent:
    """A proposal with everything an approver reviews."""

    proposal: operator_pb2.Proposal
    metadata: bytes
    previous_metadata: bytes  # empty for the first version of a role
    files: Mapping[str, bytes]  # target path -> bytes


class OperatorClient:
    """Calls one control plane as an operator; every failure is a `MeshError` with the server's reason."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = operator_pb2_grpc.OperatorStub(channel)

    async def propose(
        self, *, role: str, title: str, metadata: bytes, files: Mapping[str, bytes]
    ) -> operator_pb2.Proposal:
        """Submit a new version of a role; `metadata` is the whole TUF envelope, without signatures."""
        header = operator_pb2.ProposeHeader(role=role, title=title, metadata=metadata)

        async def parts() -> AsyncIterator[operator_pb2.ProposeRequest]:
            yield operator_pb2.ProposeRequest(header=header)
            for path, data in files.items():
                for part in chunks(path, data):
                    yield operator_pb2.ProposeRequest(file=part)

        async with answered():
            return await self._stub.Propose(parts(), timeout=TRANSFER_TIMEOUT_S)

    async def proposals(self, *, open_only: bool = False) -> Sequence[operator_pb2.Proposal]:
        """List proposals, newest first."""
        async with answered():
            request = operator_pb2.ListProposalsRequest(open_only=open_only)
            return (await self._stub.ListProposals(request, timeout=CALL_TIMEOUT_S)).proposals

    async def proposal(self, proposal_id: str) -> ProposalContent:
        """Fetch one proposal with its metadata and files."""
        content: operator_pb2.ProposalContent | None = None
        files: dict[str, bytearray] = {}
        size = 0
        async with answered():
            request = operator_pb2.GetProposalRequest(id=proposal_id)
            async for part in self._stub.GetProposal(request, timeout=TRANSFER_TIMEOUT_S):
                if part.HasField("content"):
                    content = part.content
                    continue
                size += len(part.file.data)
                if size > limits.MAX_PROPOSAL_BYTES:
                    raise InputError(
                        Reason.LIMIT_EXCEEDED, f"proposal over {limits.MAX_PROPOSAL_BYTES} bytes"
                    )
                files.setdefault(part.file.path, bytearray()).extend(part.file.data)
        if content is None:
            raise InputError(Reason.NOT_FOUND, f"no proposal {proposal_id}; see 'egm policy status'")
        data = {path: bytes(value) for path, value in files.items()}
        return ProposalContent(content.proposal, content.metadata, content.previous_metadata, data)

    async def add_signature(self, proposal_id: str, key_id: str, signature: str) -> operator_pb2.Proposal:
        """Attach an approver's signature."""
        request = operator_pb2.AddSignatureRequest(
            proposal_id=proposal_id, key_id=key_id, signature_hex=signature
        )
        async with answered():
            return await self._stub.AddSignature(request, timeout=CALL_TIMEOUT_S)

    async def publish(self, proposal_id: str) -> operator_pb2.PublishResponse:
        """Publish a proposal whose quorum is met."""
        async with answered():
            request = operator_pb2.PublishRequest(proposal_id=proposal_id)
            return await self._stub.Publish(request, timeout=TRANSFER_TIMEOUT_S)

    async def withdraw(self, proposal_id: str) -> operator_pb2.Proposal:
        """Close an open proposal."""
        async with answered():
            request = operator_pb2.WithdrawRequest(proposal_id=proposal_id)
            return await self._stub.Withdraw(request, timeout=CALL_TIMEOUT_S)

    async def create_join_token(
        self, node: str, workloads: Sequence[str], ttl_s: int
    ) -> operator_pb2.CreateJoinTokenResponse:
        """Create a one-time token with which `node` enrols itself and `workloads`."""
        request = operator_pb2.CreateJoinTokenRequest(node=node, workloads=workloads, ttl_s=ttl_s)
        async with answered():
            return await self._stub.CreateJoinToken(request, timeout=CALL_TIMEOUT_S)

    async def nodes(self, *, credentials: bool = False) -> Sequence[operator_pb2.NodeRecord]:
        """List every node with what it last reported; with its trust credential for who wants to verify it, too."""
        async with answered():
            request = operator_pb2.ListNodesRequest(credentials=credentials)
            return (await self._stub.ListNodes(request, timeout=CALL_TIMEOUT_S)).nodes

    async def forget_node(self, node: str) -> operator_pb2.ForgetNodeResponse:
        """Remove a node and its right to renew certificates."""
        async with answered():
            request = operator_pb2.ForgetNodeRequest(node=node)
            return await self._stub.ForgetNode(request, timeout=CALL_TIMEOUT_S)

    async def status(self) -> operator_pb2.ControlPlaneStatus:
        """Ask the control plane how it is."""
        async with answered():
            return await self._stub.GetStatus(operator_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)

    async def audit(self, *, limit: int) -> Sequence[operator_pb2.AuditEntry]:
        """List what operators did, newest first, at most `limit` entries."""
        async with answered():
            request = operator_pb2.ListAuditRequest(limit=limit)
            return (await self._stub.ListAudit(request, timeout=CALL_TIMEOUT_S)).entries

    async def execution(self, execution_id: bytes) -> Sequence[record_pb2.ExecutionEntry]:
        """Return every side of one execution that was recorded."""
        async with answered():
            request = record_pb2.GetExecutionRequest(execution_id=execution_id)
            return (await self._stub.GetExecution(request, timeout=CALL_TIMEOUT_S)).entries

    async def executions(
        self, request: record_pb2.ListExecutionsRequest
    ) -> record_pb2.ListExecutionsResponse:
        """Return one page of executions, newest first."""
        async with answered():
            return await self._stub.ListExecutions(request, timeout=TRANSFER_TIMEOUT_S)

    async def tree(self, root_id: bytes) -> record_pb2.GetTreeResponse:
        """Return the records of the chain that starts with, or contains, an execution."""
        async with answered():
            request = record_pb2.GetTreeRequest(root_id=root_id)
            return await self._stub.GetTree(request, timeout=TRANSFER_TIMEOUT_S)


class NodeClient:
    """Asks one sidecar directly, over its admin listener."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = node_pb2_grpc.NodeStub(channel)

    async def status(self) -> operator_pb2.NodeStatus:
        """Return what the node says of itself now."""
        async with answered():
            return await self._stub.GetStatus(node_pb2.GetNodeStatusRequest(), timeout=CALL_TIMEOUT_S)

    async def check(self, request: node_pb2.CheckRequest) -> node_pb2.CheckResponse:
        """Ask how the node would decide a call, without executing it."""
        async with answered():
            return await self._stub.Check(request, timeout=CALL_TIMEOUT_S)


@asynccontextmanager
async def operator(mesh: MeshFile, directory: Path) -> AsyncIterator[OperatorClient]:
    """Connect to the control plane of `mesh` with the operator credentials it names."""
    async with control_plane(mesh, directory) as channel:
        yield OperatorClient(channel)


@asynccontextmanager
async def control_plane(mesh: MeshFile, directory: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Give the channel to the control plane of `mesh`, with the operator credentials it names."""
    credentials = Credentials.load(directory / mesh.operator)
    async with credentials.channel(mesh.control_plane, control_plane_dns(mesh.trust_domain)) as channel:
        yield channel


@asynccontextmanager
async def node(mesh: MeshFile, directory: Path, name: str) -> AsyncIterator[NodeClient]:
    """Connect to the admin listener of the node `name`.

    Raises:
        InputError: NOT_FOUND, naming the nodes there are.
    """
    entry = mesh.nodes.get(name)
    if entry is None:
        raise InputError(
            Reason.NOT_FOUND, f"no node {name!r}; there are: {', '.join(sorted(mesh.nodes)) or 'none'}"
        )
    credentials = Credentials.load(directory / mesh.operator)
    server = SpiffeId.of(mesh.trust_domain, "node", name).dns_name
    async with credentials.channel(entry.admin, server) as channel:
        yield NodeClient(channel)


def chunks(path: str, data: bytes) -> Iterator[operator_pb2.FileData]:
    """Split a file into messages of at most `limits.MAX_CHUNK_BYTES`; the last one says so."""
    for start in range(0, max(len(data), 1), limits.MAX_CHUNK_BYTES):
        end = start + limits.MAX_CHUNK_BYTES
        yield operator_pb2.FileData(path=path, data=data[start:end], last=end >= len(data))


@asynccontextmanager
async def answered() -> AsyncIterator[None]:
    """Turn what a call ends with into a `MeshError` with the server's reason."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None
