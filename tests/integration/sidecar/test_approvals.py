"""Approvals over real sockets: a call waits for two people who sign its very bytes, and serves once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from egm.v1 import approvals_pb2 as pb
from egm.v1 import approvals_pb2_grpc as rpc
from egm.v1 import gossip_pb2, gossip_pb2_grpc, record_pb2
from sidecar.edge.approval_desk import RemoteDesk
from sidecar.edge.approvals import ApprovalDuty
from tests.support import sidecars
from tests.support.approvers import ANN, BEN, CLEO, GROUPS, STRANGER, Approver
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.emergency import FIRST
from tests.support.eventually import eventually
from tests.support.interop_service import DUPLEX, UNARY, ask
from tests.support.sidecar_mesh import Mesh, policy_files
from tests.support.sidecars import RunningSidecar
from trust.approval import APPROVAL_KEY, Verdict, pack
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import MeshError, Reason
from trust.policy.source import build
from trust.revocation import Kind
from trust.spiffe import SpiffeId
from trust.ticket import Ticket


def policy(annotations: str = '@require_approval("2 of ops")', *, level: int = 4) -> bytes:
    """Return a base bundle in which alice's calls need approvers, and bob's do not."""
    files = policy_files(level=level, allow=("alice", "bob"))
    emergency = f"emergency_keys: {{{FIRST.name}: {FIRST.public.hex()}}}\n"
    groups = "".join(
        f"  {group}: {{{', '.join(f'{name}: {key}' for name, key in members.items())}}}\n"
        for group, members in GROUPS.items()
    )
    cedar = files["policies/p.cedar"].replace(
        b'@id("alice-may")\n', f'@id("alice-may")\n{annotations}\n'.encode()
    )
    return build(
        files
        | {
            "bundle.yaml": files["bundle.yaml"] + f"{emergency}approver_groups:\n{groups}".encode(),
            "policies/p.cedar": cedar,
        }
    )


async def restrict(mesh: Mesh, rule: str) -> None:
    """Have incident response ask for approvals, with one emergency key."""
    directive = FIRST.revoke(
        Kind.APPROVAL, rule, now_ms=SystemClock().now_ms(), ttl_s=600, trust_domain=TRUST_DOMAIN
    )
    async with mesh.cp.channel("operator", "olga") as channel:
        await gossip_pb2_grpc.EmergencyStub(channel).Revoke(
            gossip_pb2.RevokeRequest(directive=directive), timeout=10
        )


class World:
    """Both sidecars, and people at the control plane."""

    def __init__(self, mesh: Mesh, a: RunningSidecar, b: RunningSidecar, desk: Any) -> None:
        self.mesh, self.a, self.b, self.desk = mesh, a, b, desk
        self.version = 1

    async def enforce(self, bundle: bytes) -> None:
        """Publish a policy and wait for both nodes."""
        await self.mesh.publish(bundle)
        self.version += 1
        for node in (self.a, self.b):
            await node.enforces(self.version)

    async def call(self, request: bytes) -> Any:
        """Call as alice; return the answer, or the reason and the ticket."""
        async with grpc.aio.insecure_channel(self.a.outbound) as channel:
            try:
                answer: bytes = await channel.unary_unary(UNARY, None, None)(request, timeout=60)
            except grpc.aio.AioRpcError as error:
                return error_from_rpc(error).reason, about(error).get("ticket", "")
            return answer

    async def say(self, approver: Approver, ticket_id: str, verdict: Verdict = Verdict.APPROVE) -> Any:
        """Sign a ticket as it is shown, and hand that in; return the entry, or why it was refused."""
        shown = await self.desk.Get(pb.GetTicketRequest(id=ticket_id), timeout=10)
        note = approver.say(Ticket.parse(shown.ticket), verdict, now_ms=SystemClock().now_ms())
        return await self.hand_in(note)

    async def hand_in(self, note: bytes) -> Any:
        """Hand a note in."""
        try:
            return await self.desk.Decide(pb.DecideRequest(note=note), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error)

    async def approve(self, ticket_id: str, *approvers: Approver) -> None:
        """Have people approve."""
        for one in approvers:
            entry = await self.say(one, ticket_id)
            assert not isinstance(entry, MeshError), entry

    async def newest(self) -> Any:
        """Return the newest ticket."""
        found = await self.desk.List(pb.ListTicketsRequest(), timeout=10)
        return found.tickets[0]


def about(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """Return what a refusal says beside its reason."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status is not None and status.details[0].Unpack(info)
    return dict(info.metadata)


@contextlib.asynccontextmanager
async def world(mesh: Mesh, bundle: bytes) -> AsyncIterator[World]:
    """Start both sidecars under a policy, and connect an operator."""
    async with contextlib.AsyncExitStack() as stack:
        await mesh.publish(bundle)
        b = await stack.enter_async_context(sidecars.running(mesh.callee()))
        a = await stack.enter_async_context(sidecars.running(mesh.caller(b.inbound["echo"])))
        for node in (a, b):
            await node.enforces(1)
        channel = await stack.enter_async_context(mesh.cp.channel("operator", "olga"))
        yield World(mesh, a, b, rpc.ApprovalDeskStub(channel))


@contextlib.asynccontextmanager
async def straight(mesh: Mesh, b: RunningSidecar) -> AsyncIterator[grpc.aio.Channel]:
    """Connect as alice to the callee's sidecar, past the caller's."""
    shown = mesh.domain.credentials("workload", "alice")
    dns = SpiffeId.of(TRUST_DOMAIN, "workload", "echo").dns_name
    async with shown.channel(b.inbound["echo"], dns) as channel:
        yield channel


async def test_a_call_goes_on_once_when_two_distinct_approvers_signed_its_bytes(mesh: Mesh) -> None:
    """Refused with a ticket; repeated after approval; used up; and nothing else serves as an approval."""
    async with world(mesh, policy()) as w:
        request = ask(size=1)
        reason, ticket_id = await w.call(request)
        assert reason is Reason.APPROVAL_REQUIRED
        assert await w.call(request) == (reason, ticket_id), "the same call keeps its ticket"
        shown = await w.desk.Get(pb.GetTicketRequest(id=ticket_id[:16]), timeout=10)
        assert shown.content == request and shown.node == "a"

        # one of two, the same one twice, and somebody whom policy does not ask
        await w.approve(ticket_id, ANN)
        assert await w.call(request) == (reason, ticket_id)
        await w.approve(ticket_id, ANN)
        assert await w.call(request) == (reason, ticket_id)
        refused = await w.say(STRANGER, ticket_id)
        assert isinstance(refused, MeshError) and refused.reason is Reason.APPROVAL_INVALID
        refused = await w.hand_in(Approver("ben", seed="not ben").say(Ticket.parse(shown.ticket)))
        assert isinstance(refused, MeshError) and refused.reason is Reason.APPROVAL_INVALID

        await w.approve(ticket_id, BEN)
        other = await w.call(ask(size=2))
        assert other[0] is Reason.APPROVAL_REQUIRED and other[1] != ticket_id, (
            "other bytes need another approval"
        )
        assert await w.call(request) == b"\0"
        again = await w.call(request)
        assert again[0] is Reason.APPROVAL_REQUIRED and again[1] not in {ticket_id, other[1]}, (
            "it served once"
        )

        # the callee's sidecar verifies for itself
        notes = [
            one.say(Ticket.parse(shown.ticket), now_ms=SystemClock().now_ms()) for one in (ANN, BEN, CLEO)
        ]
        async with straight(mesh, w.b) as channel:
            assert await past(channel, request) is Reason.APPROVAL_REQUIRED
            assert await past(channel, request, notes[:2]) is Reason.APPROVAL_SPENT
            assert await past(channel, ask(size=3), notes[:2]) is Reason.APPROVAL_INVALID
            assert await past(channel, request, notes[:1]) is Reason.APPROVAL_REQUIRED
            forged = Approver("ben", seed="not ben").say(Ticket.parse(shown.ticket))
            assert await past(channel, request, [notes[0], forged]) is Reason.APPROVAL_INVALID
            assert await past(channel, request, [notes[0], notes[0]]) is Reason.APPROVAL_REQUIRED

        # what was executed says under which approvals
        intents = [one for one in await recorded(mesh) if one.allowed and one.obligations]
        assert {one.node for one in intents} == {"a", "b"}
        for one in intents:
            assert [value.split()[:2] for value in (o.value for o in one.obligations)] == [
                ["2", "of"],
                ["2", "of"],
            ]
            assert {o.value.split()[-2] for o in one.obligations} == {"ann", "ben"}
            assert all(ticket_id in o.value for o in one.obligations)


async def past(channel: grpc.aio.Channel, request: bytes, notes: list[bytes] | None = None) -> Reason | bytes:
    """Call the callee's sidecar directly, maybe with approvals."""
    metadata: Any = () if notes is None else ((APPROVAL_KEY, pack(notes)),)
    try:
        answer: bytes = await channel.unary_unary(UNARY, None, None)(request, timeout=10, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error).reason
    return answer


async def recorded(mesh: Mesh) -> list[Any]:
    """Return the intents that were shipped, once those of an allowed call are there."""
    found: list[Any] = []

    async with mesh.cp.operator() as operator:
        for _ in range(200):
            page = await operator.executions(record_pb2.ListExecutionsRequest(decision="allowed"))
            found = [record_pb2.ExecutionRecord.FromString(one.intent).intent for one in page.entries]
            if len({one.node for one in found}) == 2:
                break
            await asyncio.sleep(0.05)
    return found


async def test_held_denied_and_windowed_calls_and_streams_at_level_five(mesh: Mesh) -> None:
    """A held call goes on by itself and its permit is fresh; a denial refuses; a window serves many calls."""
    held = '@require_approval("2 of ops") @approval_wait("60s")'
    async with world(mesh, policy(held, level=5)) as w:
        started_ms = SystemClock().now_ms()  # in its first second a node takes no permit
        await eventually(lambda: SystemClock().now_ms() > started_ms + 1_100, "the second is over")
        waiting = asyncio.create_task(w.call(ask(size=4)))
        await eventually(lambda: duty(w.a).held == 1, "the call is held")
        await w.approve((await w.newest()).id, ANN, CLEO)
        assert await waiting == b"\0" * 4

        # denied while it is held: by one person, whoever approved before
        waiting = asyncio.create_task(w.call(ask(size=5)))
        await eventually(lambda: duty(w.a).held == 1, "the call is held")
        entry = await w.newest()
        await w.approve(entry.id, ANN)
        denied = await w.say(BEN, entry.id, Verdict.DENY)
        assert denied.state == pb.TICKET_STATE_DENIED
        assert await waiting == (Reason.APPROVAL_DENIED, entry.id)
        assert await w.call(ask(size=5)) == (Reason.APPROVAL_DENIED, entry.id)
        late = await w.say(CLEO, entry.id)
        assert isinstance(late, MeshError) and late.reason is Reason.CONFLICT

        # a stream is approved with its opening message
        async with grpc.aio.insecure_channel(w.a.outbound) as channel:
            stream: Any = channel.stream_stream(DUPLEX, None, None)(timeout=60)  # type: ignore[call-arg]
            await stream.write(ask(sizes=[1]))
            await eventually(lambda: duty(w.a).held == 1, "the stream is held")
            entry = await w.newest()
            content = (await w.desk.Get(pb.GetTicketRequest(id=entry.id), timeout=10)).content
            assert content == ask(sizes=[1])
            await w.approve(entry.id, ANN, BEN)
            assert await stream.read() == b"\0"
            stream.cancel()

        await w.enforce(policy('@require_approval("1 of finance") @approval_window("10m")', level=5))
        reason, ticket_id = await w.call(ask(size=1))
        assert reason is Reason.APPROVAL_REQUIRED
        await w.approve(ticket_id, CLEO)
        assert [await w.call(ask(size=size)) for size in (1, 2, 3)] == [b"\0", b"\0" * 2, b"\0" * 3]


async def test_used_approvals_stay_used_across_a_restart_and_lower_levels_go_on_without(mesh: Mesh) -> None:
    """Both sidecars forget their connections and nothing else; then the control plane goes, at levels 4 and 3."""
    async with contextlib.AsyncExitStack() as stack:
        async with world(mesh, policy()) as w:
            request = ask(size=7)
            _, ticket_id = await w.call(request)
            shown = await w.desk.Get(pb.GetTicketRequest(id=ticket_id), timeout=10)
            notes = [one.say(Ticket.parse(shown.ticket), now_ms=SystemClock().now_ms()) for one in (ANN, BEN)]
            for note in notes:
                await w.hand_in(note)
            assert await w.call(request) == b"\0" * 7
            _, unused_id = await w.call(ask(size=8))
            await w.approve(unused_id, ANN, BEN)
        b = await stack.enter_async_context(sidecars.running(mesh.callee()))
        a = await stack.enter_async_context(sidecars.running(mesh.caller(b.inbound["echo"])))
        for node in (a, b):
            await node.enforces(1)
        desk = rpc.ApprovalDeskStub(await stack.enter_async_context(mesh.cp.channel("operator", "olga")))
        w = World(mesh, a, b, desk)
        async with straight(mesh, b) as channel:
            assert await past(channel, request, notes) is Reason.APPROVAL_SPENT
        again = await w.call(request)
        assert again[0] is Reason.APPROVAL_REQUIRED and again[1] != ticket_id
        assert await w.call(ask(size=8)) == b"\0" * 8, "what was not used is still good"

        # level 1 asks nobody, and says what it would have done
        await w.enforce(policy(level=1))
        assert await w.call(ask(size=9)) == b"\0" * 9

        for level, expected in ((4, Reason.APPROVAL_UNAVAILABLE), (3, b"\0")):
            await w.enforce(policy(level=level))
            for node in (a, b):
                lose_control_plane(node)
            answer = await w.call(ask(size=1))
            assert (answer[0] if isinstance(answer, tuple) else answer) == expected
        assert all("approvals" in alarms(node) for node in (a, b))


async def test_incident_response_asks_for_approvals_from_level_two_on(mesh: Mesh) -> None:
    """Without a word in policy, streams included; and cutting the control plane off lifts nothing."""
    async with world(mesh, policy("", level=2)) as w:
        assert await w.call(ask(size=1)) == b"\0"
        await restrict(mesh, "alice 1 of finance")
        for node in (w.a, w.b):
            denials = node.sidecar.membership.denials.denials
            await eventually(lambda denials=denials: denials.active, "the directive is here")  # type: ignore[misc]
        reason, ticket_id = await w.call(ask(size=2))
        assert reason is Reason.APPROVAL_REQUIRED
        shown = await w.desk.Get(pb.GetTicketRequest(id=ticket_id), timeout=10)
        assert shown.content == ask(size=2), "the stream's opening message is known"
        await w.approve(ticket_id, CLEO)
        assert await w.call(ask(size=2)) == b"\0" * 2
        for node in (w.a, w.b):
            lose_control_plane(node)
        assert (await w.call(ask(size=3)))[0] is Reason.APPROVAL_UNAVAILABLE


def duty(node: RunningSidecar) -> ApprovalDuty:
    """Return what asks approvers on a node."""
    found = node.sidecar.approvals
    assert found is not None
    return found


def lose_control_plane(node: RunningSidecar) -> None:
    """Have a node ask where nobody listens."""
    asked = duty(node).desk
    assert isinstance(asked, RemoteDesk)
    duty(node).desk = RemoteDesk(
        asked.channels, ("127.0.0.1:1",), SpiffeId.of(TRUST_DOMAIN, "node", node.sidecar.config.node)
    )


def alarms(node: RunningSidecar) -> str:
    """Return every alarm of a node."""
    return " ".join(node.sidecar.view.status().alarms)
