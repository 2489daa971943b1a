"""A witness that vouches for an older state is caught by whoever meets both credentials, and locked out everywhere."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from egm.v1 import gossip_pb2, gossip_pb2_grpc
from sidecar.core.trust_state import Standing
from tests.support import sidecars
from tests.support.attested_mesh import Attested, attested, standing
from tests.support.cli import egm
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.eventually import eventually
from tests.support.interop_service import UNARY, ask
from tests.support.sidecar_mesh import Mesh
from tests.support.sidecars import RunningSidecar
from trust.attestation.cosignature import attested_text, cosign_attestation
from trust.attestation.credential import Credential, write_credential
from trust.compact import parse_object
from trust.errors import EvidenceError, Reason
from trust.spiffe import SpiffeId

LIAR = SpiffeId.of(TRUST_DOMAIN, "node", "b")


def own(node: RunningSidecar) -> Credential:
    """Return the credential that a node holds."""
    credential = node.sidecar.trust.own()
    assert credential is not None
    return credential


async def renewed(node: RunningSidecar, before: Credential) -> Credential:
    """Wait for a later credential that the liar signed in a later second than `before`."""

    def later() -> bool:
        now = own(node).attested_s
        return "b" in now and "b" in before.attested_s and now["b"] > before.attested_s["b"]

    await eventually(later, "the credential is renewed, and b signed it")
    return own(node)


def vouched_again(liar: RunningSidecar, older: Credential, newer: Credential) -> bytes:
    """Return the older state of a node as the liar vouches for it after the newer one."""
    provenance = liar.sidecar.provenance
    assert provenance is not None
    assert provenance.signer is not None
    roster = liar.sidecar.trust.roster
    assert roster is not None
    text = attested_text(older.node, older.evidence.sha256)
    time_s = newer.attested_s["b"] + 1
    line = cosign_attestation(text, roster.witnesses["b"].key, provenance.signer.sign, time_s=time_s)
    return write_credential(older.evidence, [line], [])


async def show(mesh: Mesh, to: RunningSidecar, name: str, credential: bytes) -> None:
    """Show a credential to a node, as the liar does to whom it wants to fool."""
    message = gossip_pb2.GossipMessage(sender=str(LIAR), boot_id="liar", sequence=1, credentials=[credential])
    dns = SpiffeId.of(TRUST_DOMAIN, "node", name).dns_name
    async with mesh.domain.credentials("node", "b").channel(to.admin, dns) as channel:
        await gossip_pb2_grpc.GossipStub(channel).Exchange(message, timeout=10)


def locked_out(node: RunningSidecar) -> bool:
    """Whether a node denies the liar because of a proof."""
    found = node.sidecar.membership.denials.denials.of_node(str(LIAR))
    return found is not None and found.reason is Reason.NODE_QUARANTINED


async def test_a_witness_that_vouches_for_an_older_state_is_quarantined_by_nobody_s_order(
    mesh: Mesh, tmp_path: Path
) -> None:
    """Only c was shown the lie, and knows the truth from gossip; the proof convicts b alone, everywhere, for good."""
    world = Attested(mesh, ttl_s=6)
    await world.publish()
    async with world.running("a", "b", "c") as nodes:
        await attested(*nodes.values())
        await eventually(lambda: "b" in own(nodes["a"]).attested_s, "b vouches for a")
        older = own(nodes["a"])
        newer = await renewed(nodes["a"], older)
        vouchings = nodes["c"].sidecar.membership._lookout.vouchings
        await eventually(lambda: newer.data in known(vouchings, newer), "gossip brings it to c")
        assert not any(locked_out(node) for node in nodes.values())
        await show(mesh, nodes["c"], "c", vouched_again(nodes["b"], older, newer))
        assert locked_out(nodes["c"])
        for node in nodes.values():
            await eventually(lambda node=node: locked_out(node), "everybody hears of it")  # type: ignore[misc]
        for name in ("a", "c"):
            denials = nodes[name].sidecar.membership.denials.denials
            assert denials.of_node(str(SpiffeId.of(TRUST_DOMAIN, "node", "a"))) is None
        await without_the_liar(mesh, nodes, newer)
        answer = await sidecars.unary(nodes["a"].outbound, UNARY, ask(size=1))
        assert answer is Reason.NODE_QUARANTINED  # b serves echo
        await verified_offline(mesh, nodes["a"], tmp_path)


async def without_the_liar(mesh: Mesh, nodes: dict[str, RunningSidecar], before: Credential) -> None:
    """a and c vouch for each other without b, whose word counts for nothing, also not what it said before."""
    trust = nodes["c"].sidecar.trust
    for name in ("a", "c"):
        await eventually(
            lambda name=name: (  # type: ignore[misc]
                own_names(nodes[name]) == {"a", "c"} and standing(nodes[name]) is Standing.ATTESTED
            ),
            "the others vouch",
        )
        shown = nodes[name].sidecar.view.attestation()
        await eventually(
            lambda name=name: (  # type: ignore[misc]
                "does not count" in nodes[name].sidecar.view.attestation().not_vouched["b"]
            ),
            "a person is told",
        )
        assert "b" not in shown.vouched
    said = before.evidence.statement
    lines = parse_object(before.data)["attested"].splitlines(keepends=True)
    kept = [line.encode() for line in lines if f"{TRUST_DOMAIN}/witness/c " not in line]
    assert len(kept) == len(lines) - ("c" in before.attested_s)
    data = write_credential(before.evidence, kept, [])
    with pytest.raises(EvidenceError, match="revoked or convicted: b"):
        trust.learn(data, (said.node, said.public_key), now_ms=nodes["c"].sidecar.clock.now_ms())
    async with mesh.cp.operator() as operator, asyncio.timeout(60):
        while True:
            found = {record.node: list(record.attested_by) for record in await operator.nodes()}
            if found.get("a") == ["a", "c"] and not found.get("b"):
                break
            await asyncio.sleep(0.05)


def own_names(node: RunningSidecar) -> set[str]:
    """Return who vouches for a node, as far as that counts; nobody when it holds no credential."""
    credential = node.sidecar.trust.own()
    return set() if credential is None else set(credential.attested_s)


def known(vouchings: Any, credential: Credential) -> list[bytes]:
    """Return what is known of the node of a credential."""
    node = vouchings._nodes.get(str(credential.node))
    return [] if node is None else [one.data for one in node.kept]


async def verified_offline(mesh: Mesh, node: RunningSidecar, folder: Path) -> None:
    """The control plane heard of it, too; a stranger verifies the proof with the signed bundle, and not without."""
    found: list[bytes] = []
    async with mesh.cp.channel() as channel, asyncio.timeout(60):
        stub: Any = gossip_pb2_grpc.EmergencyStub(channel)
        while not found:
            answer = await stub.ListDenials(gossip_pb2.ListDenialsRequest(), timeout=10)
            found.extend(answer.proofs)
            await asyncio.sleep(0.05)
    file, domain = folder / "proof.json", mesh.domain.directory
    file.write_bytes(found[0])
    trusted = ["--root", domain / "root.json", "--ca", domain / "ca" / "ca.pem"]
    held = node.sidecar.view.state.in_force
    assert held is not None
    bundle = folder / "base.tar.gz"
    bundle.write_bytes(held.policy.base.data)
    verified = await asyncio.to_thread(
        egm, "evidence", "verify", file, *trusted, "--bundle", bundle, "--json"
    )
    assert (verified.code, verified.data["kind"], verified.data["node"]) == (0, "witness-rollback", str(LIAR))
    without = await asyncio.to_thread(egm, "evidence", "verify", file, *trusted, "--json")
    assert without.code == 1
