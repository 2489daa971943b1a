"""`egm approvals` as people run it: what they see is what they sign, with keys of their own."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.mesh_file import MeshFile
from control_plane.lab import sample
from egm.sample.v1 import shop_pb2
from egm.v1 import approvals_pb2 as pb
from egm.v1 import approvals_pb2_grpc as rpc
from tests.support.approvers import ANN, ticket
from tests.support.cli import Outcome, egm
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running, publish, running
from trust import limits
from trust.approval import read_approval
from trust.edge.clock import SystemClock
from trust.edge.files import write_atomic
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.keyfiles import DEVELOPMENT_PASSPHRASE_FILE, create_key
from trust.errors import Reason
from trust.policy.source import build
from trust.spiffe import SpiffeId
from trust.ticket import Ticket

PASSPHRASE = b"a long passphrase"
METHOD = "egm.sample.v1.Payments/Transfer"
REQUEST = shop_pb2.TransferRequest(from_account="A", to_account="B", amount=5).SerializeToString()


@dataclass
class Desk:
    """A control plane under a policy with two approvers, a mesh directory, and a node that opens tickets."""

    plane: Running
    directory: Path
    node: Any

    async def egm(self, *arguments: object) -> Outcome:
        """Run one verb."""
        return await asyncio.to_thread(egm, "approvals", *arguments, mesh=self.directory)

    async def open(self, request: bytes = REQUEST, *, shown: bytes | None = None, **changes: Any) -> str:
        """Open a ticket as a node does; return its id."""
        asked = ticket(method=METHOD, request_sha256=hashlib.sha256(request).digest(), **changes)
        content = request if shown is None else shown
        answer = await self.node.Open(
            pb.OpenTicketRequest(
                ticket=asked.body(), level=4, has_content=True, content=content, content_bytes=len(content)
            ),
            timeout=10,
        )
        return Ticket.parse(answer.ticket).id


@contextlib.asynccontextmanager
async def desk(domain: Domain) -> AsyncIterator[Desk]:
    """Make approvers' keys, name two them in policy, and open the desk."""
    directory = domain.home / "mesh"
    operator = SpiffeId.of(TRUST_DOMAIN, "operator", "olga")
    issue_to_directory(CertificateAuthority.open(domain.directory / "ca"), operator, directory / "operator")
    write_atomic(directory / DEVELOPMENT_PASSPHRASE_FILE, PASSPHRASE, mode=0o600)
    made = {name: create_key(directory / f"{name}.pem", name, PASSPHRASE) for name in ("ann", "ben", "eve")}
    members = [f"{name}: {made[name].keyval['public']}" for name in ("ann", "ben")]
    bundle = build(
        {
            "bundle.yaml": (
                f"name: test\ndescription: t\ntrust_domain: {TRUST_DOMAIN}\nlevel: 4\nservices: {{echo: {{}}}}\n"
                f"approver_groups: {{ops: {{{', '.join(members)}}}}}\n"
            ).encode(),
            "policies/p.cedar": (
                b'@id("pay") @require_approval("2 of ops")\npermit(principal, action, resource == Service::"echo");\n'
            ),
            "descriptors.binpb": sample.descriptors(),
            "tests/t.yaml": b"[]\n",
        }
    )
    async with running(domain) as plane:
        async with plane.operator() as client:
            await publish(client, domain, domain.base(None, bundle), bundle)
        root = str(domain.directory / "root.json")
        MeshFile(trust_domain=TRUST_DOMAIN, root=root, control_plane=plane.listen).save(directory)
        async with plane.channel("node", "a") as channel:
            yield Desk(plane, directory, rpc.ApprovalsStub(channel))


async def test_two_people_look_at_a_call_and_approve_it(domain: Domain) -> None:
    """List, show with the decoded request, approve twice; the node collects what both signed."""
    async with desk(domain) as at:
        ticket_id = await at.open()
        listed = await at.egm("list")
        assert listed.code == 0 and ticket_id[:16] in listed.stdout and "2 more of ops" in listed.stdout
        blind = await at.egm("approve", ticket_id[:16], "--key", at.directory / "ann.pem")
        assert blind.code == 2 and "egm approvals show" in blind.stderr
        shown = await at.egm("show", ticket_id[:8])
        assert shown.code == 0, shown.stderr
        assert '"amount": "5"' in shown.stdout and "alice" in shown.stdout
        first = await at.egm("approve", ticket_id[:16], "--key", at.directory / "ann.pem", "--json")
        assert first.data["state"] == "open" and first.data["missing"] == ["1 more of ops (ben)"]
        second = await at.egm(
            "approve", ticket_id, "--key", at.directory / "ben.pem", "--reason", "asked alice", "--for", "10m"
        )
        assert second.code == 0 and "approved" in second.stdout, second.stderr
        found = await at.node.Collect(pb.CollectRequest(tickets=[ticket_id]), timeout=10)
        said = [read_approval(note) for note in found.tickets[0].notes]
        assert [one.reason for one in said] == ["-", "asked alice"]
        assert said[1].until_s - said[1].issued_s == 600
        await at.node.Spent(pb.SpentRequest(tickets=[ticket_id]), timeout=10)
        used = (await at.egm("show", ticket_id, "--json")).data
        assert used["state"] == "used" and used["content_base64"] is None
        audit = await asyncio.to_thread(egm, "audit", mesh=at.directory)
        assert "by the key of ben" in audit.stdout


async def test_what_must_not_be_signed_is_refused_and_one_person_denies(domain: Domain) -> None:
    """A key that policy does not name, a request with unknown fields, a window; then a denial."""
    async with desk(domain) as at:
        ticket_id = await at.open()
        stranger = await at.egm("approve", ticket_id, "--key", at.directory / "eve.pem")
        assert stranger.code == 2 and "NOT_AUTHORIZED" in stranger.stderr
        odd = await at.open(REQUEST + b"\xfa\x3f\x01x")  # field 127 of no descriptor
        partly = await at.egm("approve", odd, "--key", at.directory / "ann.pem")
        assert partly.code == 2 and "--unseen" in partly.stderr
        denied = await at.egm(
            "deny", odd, "--key", at.directory / "ann.pem", "--reason", "what is in field 127?"
        )
        assert denied.code == 0 and "denied" in denied.stdout
        again = await at.egm("approve", odd, "--unseen", "--key", at.directory / "ben.pem")
        assert again.code == 2 and "CONFLICT" in again.stderr
        assert (await at.egm("list", "--state", "denied", "--json")).data["tickets"][0]["ticket"] == odd
        assert (await at.egm("show", "abc")).code == 2
        assert (await at.egm("show", "0" * 64)).code == 2


async def test_nodes_cannot_flood_decide_or_show_other_bytes(domain: Domain) -> None:
    """What a compromised node may try at the control plane."""
    async with desk(domain) as at:
        first = await at.open()
        assert await at.open(serial="f" * 32) == first, "the same call keeps its ticket"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await at.open(b"other", shown=REQUEST)
        assert error_from_rpc(caught.value).reason is Reason.INPUT_INVALID
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            for number in range(limits.MAX_CALLER_TICKETS + 1):
                await at.open(b"request %d" % number)
        assert error_from_rpc(caught.value).reason is Reason.LIMIT_EXCEEDED
        async with at.plane.channel("node", "a") as channel:
            note = ANN.say(ticket(), now_ms=SystemClock().now_ms())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.ApprovalDeskStub(channel).Decide(pb.DecideRequest(note=note), timeout=10)
        assert error_from_rpc(caught.value).reason is Reason.NOT_AUTHORIZED
        async with at.plane.channel("node", "b") as channel:  # tickets of another node are not its to use up
            await rpc.ApprovalsStub(channel).Spent(pb.SpentRequest(tickets=[first]), timeout=10)
        assert (await at.egm("show", first, "--json")).data["state"] == "open"
