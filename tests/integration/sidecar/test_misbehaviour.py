"""A node that signs two histories is caught by whoever hears both, and locked out everywhere, by nobody's order."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from egm.v1 import gossip_pb2, gossip_pb2_grpc
from tests.support import sidecars
from tests.support.cli import egm
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.eventually import eventually
from tests.support.interop_service import UNARY, ask
from tests.support.sidecar_mesh import Mesh, emergency_policy
from tests.support.sidecars import RunningSidecar
from trust.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from trust.errors import Reason
from trust.gossip import Head
from trust.spiffe import SpiffeId

NODE_A = SpiffeId.of(TRUST_DOMAIN, "node", "a")


def own_head(node: RunningSidecar) -> Head | None:
    """Return the node's own ledger head, if it has records."""
    provenance = node.sidecar.provenance
    head = None if provenance is None else provenance.head()
    return head if head is not None and size_of(head) > 0 else None


def size_of(head: Head) -> int:
    """Return the size in a head."""
    return parse_checkpoint(head.checkpoint.rpartition(b"\n\n")[0] + b"\n").size


def another_history(node: RunningSidecar, head: Head) -> Head:
    """Return what a lying node shows to somebody else: other records, same key."""
    provenance = node.sidecar.provenance
    assert provenance is not None
    signer = provenance.signer
    assert signer is not None
    said = parse_checkpoint(head.checkpoint.rpartition(b"\n\n")[0] + b"\n")
    lie = Checkpoint(said.origin, said.size, b"\x66" * 32)
    note = sign_checkpoint(lie, signer.sign, public_key=signer.public_key.public_bytes_raw())
    return Head(note, head.endorsement)


async def show(mesh: Mesh, to: RunningSidecar, name: str, heads: list[Head], sequence: int) -> None:
    """Show heads to a node, as node a does."""
    credentials = mesh.domain.credentials("node", "a")
    dns = SpiffeId.of(TRUST_DOMAIN, "node", name).dns_name
    shown = [gossip_pb2.SignedHead(checkpoint=h.checkpoint, endorsement=h.endorsement) for h in heads]
    message = gossip_pb2.GossipMessage(sender=str(NODE_A), boot_id="liar", sequence=sequence, heads=shown)
    async with credentials.channel(to.admin, dns) as channel:
        await gossip_pb2_grpc.GossipStub(channel).Exchange(message, timeout=10)


def locked_out(node: RunningSidecar) -> bool:
    """Whether a node denies node a because of a proof."""
    found = node.sidecar.membership.denials.denials.of_node(str(NODE_A))
    return found is not None and found.reason is Reason.NODE_QUARANTINED


async def test_equivocating_node_is_quarantined_everywhere_without_an_operator(
    mesh: Mesh, tmp_path: Path
) -> None:
    """One node hears both histories; the proof convicts, gossip carries it, the quorum alone lets the node back."""
    await mesh.publish(emergency_policy(level=4))
    async with contextlib.AsyncExitStack() as stack:
        b = await stack.enter_async_context(sidecars.running(mesh.callee()))
        a = await stack.enter_async_context(sidecars.running(mesh.caller(b.inbound["echo"])))
        for node in (a, b):
            await node.enforces(1)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) == b"\0"
        await eventually(lambda: own_head(a), "node a has signed a tree head")
        head = own_head(a)
        assert head is not None
        await show(mesh, b, "b", [head], 1)
        await show(mesh, b, "b", [another_history(a, head)], 2)
        assert locked_out(b)
        await eventually(lambda: locked_out(a), "the liar hears of it itself")
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) is Reason.NODE_QUARANTINED
        proof = await _from_control_plane(mesh)
        file = tmp_path / "proof.json"
        file.write_bytes(proof)
        known = [
            "--root",
            mesh.domain.directory / "root.json",
            "--ca",
            mesh.domain.directory / "ca" / "ca.pem",
        ]
        verified = egm("evidence", "verify", file, *known, "--json")
        assert (verified.code, verified.data["verdict"], verified.data["node"]) == (0, "proven", str(NODE_A))
        file.write_bytes(proof.replace(b'node/a"', b'node/b"'))
        assert egm("evidence", "verify", file, *known, "--json").code == 1
        await mesh.publish(emergency_policy(released=(verified.data["id"],)))
        await a.enforces(2)
        await b.enforces(2)
        assert not locked_out(a)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1)) == b"\0"


async def _from_control_plane(mesh: Mesh) -> bytes:
    """Return the proof once the control plane has heard of it, by gossip."""
    found: list[bytes] = []
    async with mesh.cp.channel() as channel:
        stub: Any = gossip_pb2_grpc.EmergencyStub(channel)

        async def asked() -> None:
            answer = await stub.ListDenials(gossip_pb2.ListDenialsRequest(), timeout=10)
            found.extend(answer.proofs)

        async with asyncio.timeout(60):
            while not found:
                await asked()
                await asyncio.sleep(0.05)
    return found[0]
