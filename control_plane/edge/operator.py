"""What operators ask: proposals, signatures, publication, tokens, status.

An operator cannot allow anything: publication needs the approvers' quorum, which is checked here and
again by every node.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Set
from typing import Any, Final

import grpc.aio

from control_plane.core.proposals import (
    Event,
    Proposal,
    State,
    Upload,
    advance,
    check_room,
    expected_file,
    open_proposal,
    sign,
    signed_metadata,
    standing,
)
from control_plane.edge.attested_nodes import AttestedNodes
from control_plane.edge.callers import current_caller
from control_plane.edge.fleet import NodeReports
from control_plane.edge.join import create_token
from control_plane.edge.operator_client import chunks
from control_plane.edge.publisher import required
from control_plane.edge.records import ExecutionQueries
from control_plane.edge.status import StatusSource
from control_plane.edge.store import audit, fleet, proposals, repository
from control_plane.edge.tokens import StoredTokens
from egm.v1 import operator_pb2, operator_pb2_grpc, record_pb2
from trust import limits
from trust.attestation.roster import Roster
from trust.errors import CapacityError, InputError, MeshError, Reason
from trust.repository import RepositoryState, target_file_path
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

UPLOAD_TIMEOUT_S: Final = 120.0
DEFAULT_AUDIT_PAGE: Final = 100
Context = grpc.aio.ServicerContext[Any, Any]

_WIRE_STATE: Final = {
    State.OPEN: operator_pb2.PROPOSAL_STATE_OPEN,
    State.PUBLISHED: operator_pb2.PROPOSAL_STATE_PUBLISHED,
    State.WITHDRAWN: operator_pb2.PROPOSAL_STATE_WITHDRAWN,
    State.SUPERSEDED: operator_pb2.PROPOSAL_STATE_SUPERSEDED,
}


def to_wire(proposal: Proposal, state: RepositoryState) -> operator_pb2.Proposal:
    """Return a proposal as operators see it, with who has signed under the metadata in force."""
    stands = standing(proposal, state)
    ready = proposal.state is State.OPEN and stands.ready
    return operator_pb2.Proposal(
        id=proposal.id,
        role=proposal.role,
        version=proposal.version,
        digest=proposal.digest,
        state=operator_pb2.PROPOSAL_STATE_READY if ready else _WIRE_STATE[proposal.state],
        signatures=[
            operator_pb2.SignatureInfo(key_id=s.key_id, name=stands.name(s.key_id), at_ms=s.at_ms)
            for s in proposal.signatures
        ],
        threshold=stands.threshold,
        missing=stands.missing if proposal.state is State.OPEN else (),
        title=proposal.title,
        proposed_by=proposal.proposed_by,
        created_ms=proposal.created_ms,
        expires_ms=proposal.expires_ms,
    )


class OperatorServicer(operator_pb2_grpc.OperatorServicer):
    """egm.v1.Operator."""

    def __init__(
        self,
        status: StatusSource,
        *,
        reports: NodeReports,
        tokens: StoredTokens,
        struck: Callable[[Roster], Set[str]] = lambda _roster: frozenset(),
    ) -> None:
        self._status, self._reports, self._tokens = status, reports, tokens
        self._database, self._publisher, self._clock = status.database, status.publisher, status.clock
        self._executions = ExecutionQueries(status.database)
        self._attested = AttestedNodes(lambda: status.publisher.settings, struck)
        self._uploads = 0

    async def Propose(
        self, request_iterator: AsyncIterator[operator_pb2.ProposeRequest], context: Context
    ) -> operator_pb2.Proposal:
        """Judge and store a new version of a role."""
        who = current_caller()
        if self._uploads >= limits.MAX_CONCURRENT_UPLOADS:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED, f"{self._uploads} proposals are being received; try again in a moment"
            )
        self._uploads += 1
        try:
            proposal, files = await self._receive_in_time(request_iterator, who)
            return to_wire(await self._store(proposal, files, who), self._publisher.state)
        finally:
            self._uploads -= 1

    async def ListProposals(
        self, request: operator_pb2.ListProposalsRequest, context: Context
    ) -> operator_pb2.ListProposalsResponse:
        """List proposals, newest first."""
        async with self._database.read() as connection:
            found = await proposals.listing(
                connection, open_only=request.open_only, limit=limits.MAX_LISTED_PROPOSALS
            )
        state = self._publisher.state
        return operator_pb2.ListProposalsResponse(proposals=[to_wire(p, state) for p in found])

    async def GetProposal(
        self, request: operator_pb2.GetProposalRequest, context: Context
    ) -> AsyncIterator[operator_pb2.ProposalPart]:
        """Send one proposal with everything that an approver reviews."""
        async with self._database.read() as connection:
            proposal = required(await proposals.get(connection, request.id), request.id)
            files = await proposals.files_of(connection, request.id)
            state = self._publisher.state
            expected = expected_file(proposal, state)
            if expected is not None and not files:  # published, or unchanged from what is in force
                path = target_file_path(proposal.role, expected.sha256)
                held = await repository.load(connection, [path])
                files = {expected.path: held[path]} if path in held else {}
        previous = state.root if proposal.role == "root" else state.roles.get(proposal.role, b"")
        yield operator_pb2.ProposalPart(
            content=operator_pb2.ProposalContent(
                proposal=to_wire(proposal, state),
                metadata=signed_metadata(proposal).to_bytes(),
                previous_metadata=previous,
            )
        )
        for name, data in files.items():
            for chunk in chunks(name, data):
                yield operator_pb2.ProposalPart(file=chunk)

    async def AddSignature(
        self, request: operator_pb2.AddSignatureRequest, context: Context
    ) -> operator_pb2.Proposal:
        """Verify and attach one approver's signature. Who delivers it does not matter."""
        who, now_ms = current_caller(), self._clock.now_ms()
        await self._publisher.synchronise()
        state = self._publisher.state
        async with self._database.write() as connection:
            proposal = await proposals.get(connection, request.proposal_id, lock=True)
            proposal = required(proposal, request.proposal_id)
            signed = sign(proposal, request.key_id, request.signature_hex, state, now_ms=now_ms)
            if await proposals.add_signature(connection, proposal.id, signed):
                await audit.record(
                    connection,
                    at_ms=now_ms,
                    who=str(who),
                    action="sign",
                    proposal_id=proposal.id,
                    detail=f"signature of {standing(proposal, state).name(signed.key_id)} ({signed.key_id[:12]})",
                )
            proposal = required(await proposals.get(connection, proposal.id), proposal.id)
        return to_wire(proposal, state)

    async def Publish(
        self, request: operator_pb2.PublishRequest, context: Context
    ) -> operator_pb2.PublishResponse:
        """Publish a proposal that has its quorum."""
        published = await self._publisher.publish(request.proposal_id, who=current_caller())
        return operator_pb2.PublishResponse(
            proposal=to_wire(published.proposal, self._publisher.state),
            snapshot_version=published.snapshot_version,
            timestamp_version=published.timestamp_version,
        )

    async def Withdraw(
        self, request: operator_pb2.WithdrawRequest, context: Context
    ) -> operator_pb2.Proposal:
        """Close an open proposal."""
        who = current_caller()
        async with self._database.write() as connection:
            found = await proposals.get(connection, request.proposal_id, lock=True)
            proposal = required(found, request.proposal_id)
            following = advance(proposal, Event.WITHDRAW)
            await proposals.set_state(connection, proposal.id, following)
            await audit.record(
                connection,
                at_ms=self._clock.now_ms(),
                who=str(who),
                action="withdraw",
                proposal_id=proposal.id,
            )
            proposal = required(await proposals.get(connection, proposal.id), proposal.id)
        return to_wire(proposal, self._publisher.state)

    async def CreateJoinToken(
        self, request: operator_pb2.CreateJoinTokenRequest, context: Context
    ) -> operator_pb2.CreateJoinTokenResponse:
        """Make a one-time token; it is shown once."""
        who, now_ms = current_caller(), self._clock.now_ms()
        token, expires_ms = await create_token(
            self._tokens, request.node, request.workloads, ttl_s=request.ttl_s, now_ms=now_ms
        )
        workloads = ", ".join(request.workloads) or "no workloads"
        async with self._database.write() as connection:
            await audit.record(
                connection,
                at_ms=now_ms,
                who=str(who),
                action="create-join-token",
                detail=f"node {request.node}: {workloads}",
            )
        return operator_pb2.CreateJoinTokenResponse(token=token, expires_ms=expires_ms)

    async def ListNodes(
        self, request: operator_pb2.ListNodesRequest, context: Context
    ) -> operator_pb2.ListNodesResponse:
        """List every node with what it last said of itself, and whether it is attested as far as can be verified."""
        records = [
            operator_pb2.NodeRecord(
                node=record.node,
                last_seen_ms=record.last_seen_ms,
                status=operator_pb2.NodeStatus.FromString(record.status),
                certificate_not_after_ms=record.certificate_not_after_ms,
            )
            for record in await self._reports.records()
        ]
        await self._attested.judge(records, now_ms=self._clock.now_ms())
        for record in records:
            if not request.credentials:
                record.status.ClearField("credential")  # verified here; most need it no more
        return operator_pb2.ListNodesResponse(nodes=records)

    async def ForgetNode(
        self, request: operator_pb2.ForgetNodeRequest, context: Context
    ) -> operator_pb2.ForgetNodeResponse:
        """Remove a node: it may renew nothing until it joins with a new token."""
        who = current_caller()
        await self._reports.flush()  # what it said before now must not be written after it was removed
        async with self._database.write() as connection:
            not_after_ms = await fleet.forget(connection, request.node, now_ms=self._clock.now_ms())
            if not_after_ms is None:
                raise InputError(Reason.NOT_FOUND, f"no node {request.node[:63]!r}; see 'egm node list'")
            await audit.record(
                connection,
                at_ms=self._clock.now_ms(),
                who=str(who),
                action="forget-node",
                detail=f"node {request.node}",
            )
        self._reports.forget(request.node)
        return operator_pb2.ForgetNodeResponse(certificate_not_after_ms=not_after_ms)

    async def GetStatus(
        self, request: operator_pb2.GetStatusRequest, context: Context
    ) -> operator_pb2.ControlPlaneStatus:
        """Say how this control plane is."""
        return await self._status.current()

    async def ListAudit(
        self, request: operator_pb2.ListAuditRequest, context: Context
    ) -> operator_pb2.ListAuditResponse:
        """List what operators did, newest first."""
        limit = request.limit or DEFAULT_AUDIT_PAGE
        if not 1 <= limit <= limits.MAX_AUDIT_PAGE:
            raise InputError(Reason.INPUT_INVALID, f"limit is 1 to {limits.MAX_AUDIT_PAGE}, not {limit}")
        async with self._database.read() as connection:
            entries = await audit.page(connection, limit=limit, before_id=request.before_id)
        return operator_pb2.ListAuditResponse(
            entries=[
                operator_pb2.AuditEntry(
                    id=e.id,
                    at_ms=e.at_ms,
                    who=e.who,
                    action=e.action,
                    proposal_id=e.proposal_id,
                    detail=e.detail,
                )
                for e in entries
            ]
        )

    async def GetExecution(
        self, request: record_pb2.GetExecutionRequest, context: Context
    ) -> record_pb2.GetExecutionResponse:
        """Return every side of one execution that a node recorded."""
        return await self._executions.get(request)

    async def ListExecutions(
        self, request: record_pb2.ListExecutionsRequest, context: Context
    ) -> record_pb2.ListExecutionsResponse:
        """Return one page of executions, newest first."""
        return await self._executions.page(request)

    async def GetTree(
        self, request: record_pb2.GetTreeRequest, context: Context
    ) -> record_pb2.GetTreeResponse:
        """Return the records of one chain of executions, over all nodes."""
        return await self._executions.tree(request)

    async def _receive_in_time(
        self, parts: AsyncIterator[operator_pb2.ProposeRequest], who: SpiffeId
    ) -> tuple[Proposal, Mapping[str, bytes]]:
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT_S):
                try:
                    return await self._receive(parts, who)
                except MeshError:
                    await _discard(parts)
                    raise
        except TimeoutError:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED, f"the proposal was not received within {UPLOAD_TIMEOUT_S:.0f} s"
            ) from None

    async def _receive(
        self, parts: AsyncIterator[operator_pb2.ProposeRequest], who: SpiffeId
    ) -> tuple[Proposal, Mapping[str, bytes]]:
        """Read the header, judge it, then accept exactly the bytes that it names: nothing else is ever buffered."""
        proposal: Proposal | None = None
        upload = Upload(None)
        async for part in parts:
            kind = part.WhichOneof("part")
            if proposal is None:
                if kind != "header":
                    break
                await self._publisher.synchronise()
                header, state = part.header, self._publisher.state
                # in a thread: checking some thousand keys takes a second, and leases must be renewed meanwhile
                proposal = await asyncio.to_thread(
                    open_proposal,
                    state,
                    role=header.role,
                    title=header.title,
                    metadata=header.metadata,
                    who=who,
                    now_ms=self._clock.now_ms(),
                )
                upload = Upload(expected_file(proposal, state))
            elif kind == "file":
                upload.take(part.file.path, part.file.data, last=part.file.last)
            else:
                raise InputError(Reason.INPUT_INVALID, "after the header a proposal has only file parts")
        if proposal is None:
            raise InputError(Reason.INPUT_INVALID, "a proposal starts with its header")
        return proposal, await asyncio.to_thread(upload.finish)

    async def _store(self, proposal: Proposal, files: Mapping[str, bytes], who: SpiffeId) -> Proposal:
        async with self._database.read() as connection:
            held = await proposals.get(connection, proposal.id)
        if held is not None and held.state is State.OPEN:
            return held  # proposing the same again changes nothing
        if held is not None:
            advance(held, Event.SIGN)
        await self._publisher.check_enforceable(proposal, files)
        async with self._database.write() as connection:
            check_room(await proposals.count_open(connection))
            await proposals.add(connection, proposal, files)
            await audit.record(
                connection,
                at_ms=proposal.created_ms,
                who=str(who),
                action="propose",
                proposal_id=proposal.id,
                detail=f"{proposal.role} version {proposal.version}: {proposal.title}",
            )
        logger.info("%s proposed %s version %d (%s)", who, proposal.role, proposal.version, proposal.id)
        return proposal


async def _discard(parts: AsyncIterator[operator_pb2.ProposeRequest]) -> None:
    """Read what a refused caller still sends, up to the largest proposal, and keep nothing.

    A gRPC client that is cut while it writes may report a broken stream instead of our reason.
    """
    left = limits.MAX_PROPOSAL_BYTES
    async for part in parts:
        left -= part.ByteSize()
        if left < 0:
            return
