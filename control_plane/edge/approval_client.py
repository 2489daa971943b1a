"""What an approver's terminal does: fetches tickets, checks what it is shown, signs, hands in."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer

from control_plane.core.approval_content import Content, content_of
from control_plane.edge import operator_client
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import CALL_TIMEOUT_S, answered, control_plane
from control_plane.edge.release import Release
from egm.v1 import approvals_pb2 as pb
from egm.v1 import approvals_pb2_grpc as rpc
from trust.approval import Approval, SignedApproval, Verdict, open_approval, sign_approval
from trust.approval_rule import Groups, Requirement, members_of, requirements_in
from trust.bundle import Bundle, read_bundle
from trust.edge.files import write_atomic
from trust.errors import EvidenceError, InputError, Reason
from trust.keys import key_name
from trust.ticket import Ticket
from trust.verified import BASE_ROLE

SHOWN_FILE: Final = "shown-tickets.json"
_MAX_SHOWN: Final = 500


@dataclass(frozen=True, slots=True)
class Shown:
    """A ticket as it was checked here: its text has its id, its bytes their digest, its approvals their signatures."""

    entry: pb.TicketEntry
    ticket: Ticket
    requirements: tuple[Requirement, ...]
    content: Content
    said: tuple[SignedApproval, ...]  # by approvers of the policy in force, verified here


class ApprovalClient:
    """One operator's connection, with the policy in force verified from the trust anchor."""

    def __init__(self, stub: "rpc.ApprovalDeskAsyncStub", groups: Groups, bundles: Sequence[Bundle]) -> None:
        self._stub, self.groups, self._bundles = stub, groups, tuple(bundles)

    async def tickets(self, state: "pb.TicketState.ValueType", limit: int) -> Sequence[pb.TicketEntry]:
        """List tickets, newest first."""
        async with answered():
            request = pb.ListTicketsRequest(state=state, limit=limit)
            return (await self._stub.List(request, timeout=CALL_TIMEOUT_S)).tickets

    async def ticket(self, prefix: str) -> Shown:
        """Fetch one ticket and check it.

        Raises:
            EvidenceError: APPROVAL_INVALID or DIGEST_MISMATCH: the control plane shows what it does not name.
        """
        async with answered():
            entry = await self._stub.Get(pb.GetTicketRequest(id=prefix), timeout=CALL_TIMEOUT_S)
        if not entry.id.startswith(prefix.strip().lower()):
            raise EvidenceError(
                Reason.DIGEST_MISMATCH, "the control plane shows another ticket than was asked for"
            )
        return self._checked(entry)

    async def decide(self, note: bytes) -> Shown:
        """Hand in what was signed."""
        async with answered():
            return self._checked(await self._stub.Decide(pb.DecideRequest(note=note), timeout=CALL_TIMEOUT_S))

    def _checked(self, entry: pb.TicketEntry) -> Shown:
        ticket = Ticket.parse(entry.ticket)
        if ticket.id != entry.id:
            raise EvidenceError(
                Reason.DIGEST_MISMATCH, "the ticket that the control plane shows is not the one that it names"
            )
        requirements = requirements_in(ticket.needs)
        content = entry.content if entry.has_content else None
        keys = members_of(self.groups, requirements)
        said = []
        for note in entry.notes:
            try:
                one = open_approval(note, keys, trust_domain=ticket.trust_domain)
            except EvidenceError:
                continue  # of somebody who is no approver any more
            if one.approval.ticket == ticket:
                said.append(one)
        return Shown(entry, ticket, requirements, content_of(ticket, content, self._bundles), tuple(said))


@asynccontextmanager
async def approvals(mesh: MeshFile, directory: Path) -> AsyncIterator[ApprovalClient]:
    """Connect to the control plane of `mesh`, and verify the policy that names the approvers.

    Raises:
        InputError: POLICY_MISSING, when none is in force.
    """
    async with operator_client.operator(mesh, directory) as client:
        in_force = await Release(mesh, directory, client).in_force()
    policy = in_force.policy
    base = in_force.bundle(BASE_ROLE)
    if policy is None or base is None or base.mesh is None:
        raise InputError(Reason.POLICY_MISSING, "no policy is in force, so there are no approvers")
    bundles = [read_bundle(one.data, role=name) for name, one in sorted(policy.namespaces.items())]
    async with control_plane(mesh, directory) as channel:
        yield ApprovalClient(rpc.ApprovalDeskStub(channel), base.mesh.approver_groups, [*bundles, base])


def sign(
    shown: Shown, verdict: Verdict, signer: Signer, groups: Groups, *, now_ms: int, ttl_s: int, reason: str
) -> bytes:
    """Return an approver's word on a ticket that was checked.

    Raises:
        InputError: NOT_AUTHORIZED, if policy does not ask the key; INPUT_INVALID for a bad reason.
        EvidenceError: KEY_UNSAFE, SIGNATURE_INVALID: the key cannot sign it.
    """
    public = signer.public_key
    asked = members_of(groups, shown.requirements)
    raw = bytes.fromhex(public.keyval["public"]) if public.keytype == "ed25519" else b""
    name = next((name for name, key in asked.items() if key == raw), None)
    if name is None:
        raise InputError(
            Reason.NOT_AUTHORIZED,
            f"the key of {key_name(public)} is not among those that this ticket asks: {', '.join(sorted(asked))}",
        )
    issued_s = now_ms // 1000
    try:
        approval = Approval(shown.ticket, verdict, issued_s, issued_s + ttl_s, reason)
    except EvidenceError as error:
        raise InputError(Reason.INPUT_INVALID, error.detail) from None
    return sign_approval(
        approval, name, lambda text: bytes.fromhex(signer.sign(text).signature), public_key=raw
    )


def note_shown(directory: Path, ticket_id: str) -> None:
    """Note that a person at this terminal has seen a ticket."""
    seen = [one for one in _shown(directory) if one != ticket_id]
    write_atomic(directory / SHOWN_FILE, json.dumps([*seen, ticket_id][-_MAX_SHOWN:]).encode())


def check_shown(directory: Path, named: str, ticket_id: str) -> None:
    """Refuse to sign what nobody looked at: a few digits may stand for another ticket than the one that was meant.

    Raises:
        InputError: INPUT_INVALID, saying what to do.
    """
    if named.strip().lower() == ticket_id or ticket_id in _shown(directory):
        return
    raise InputError(
        Reason.INPUT_INVALID,
        f"look at it first: egm approvals show {ticket_id[:16]} (or name all 64 digits of a ticket that you know)",
    )


def _shown(directory: Path) -> list[str]:
    try:
        found = json.loads((directory / SHOWN_FILE).read_bytes())
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        return []  # then nothing counts as seen
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
