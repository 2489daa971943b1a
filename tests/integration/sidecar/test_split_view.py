"""Two real sidecars that were served two contents of one policy version: each notices, and the proof names the keys."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from control_plane.lab.ports import free_port
from control_plane.lab.processes import Process
from egm.v1 import gossip_pb2, gossip_pb2_grpc, node_pb2, node_pb2_grpc
from tests.support import sidecars
from tests.support.cli import egm
from tests.support.control_plane import TRUST_DOMAIN, Domain, publish
from tests.support.control_plane import running as control_plane
from tests.support.sidecar_mesh import policy
from trust.spiffe import SpiffeId

NODES = ("n1", "n2")
WITHIN_S = 60.0


@contextlib.asynccontextmanager
async def node(home: Path, domain: Domain, name: str, admin: dict[str, str]) -> AsyncIterator[None]:
    """Run one sidecar, as its own process, served by a control plane of its own with a content of its own."""
    made = domain.config(f"cp-{name}")
    # Approvers 1 and 2 signed what n1 is served, 2 and 3 what n2 is served: 2 signed both.
    holders = ("approver-1", "approver-2") if name == "n1" else ("approver-2", "approver-3")
    async with control_plane(domain, made) as cp:
        async with cp.operator() as operator:
            bundle = policy(allow=(name,))
            await publish(operator, domain, domain.base(None, bundle), bundle, holders=holders)
        await sidecars.token(cp, home, name, "echo")
        peers = {other: address for other, address in admin.items() if other != name}
        inbound = [{"service": "echo", "listen": sidecars.LOOPBACK, "upstream": {"address": "127.0.0.1:1"}}]
        listen = {"listen": admin[name]}
        config = sidecars.settings(cp, home, domain, node=name, inbound=inbound, admin=listen, peers=peers)
        file = home / "sidecar.yaml"
        file.write_text(yaml.safe_dump(config))
        # Nothing may run between fork and exec: this process uses gRPC, which does not survive a fork.
        process = Process(name, ["sidecar", "run", "-c", str(file), "--json"], log=home / "log", forked=None)
        await process.start()
        try:
            yield
        finally:
            await process.stop()


async def noticed(domain: Domain, name: str, address: str) -> tuple[list[str], bytes]:
    """Wait until a node holds a proof; return its alarms and the proof."""
    shown = domain.credentials("operator", "olga")
    dns = SpiffeId.of(TRUST_DOMAIN, "node", name).dns_name
    async with shown.channel(address, dns) as channel, asyncio.timeout(WITHIN_S):
        while True:
            denials = await gossip_pb2_grpc.EmergencyStub(channel).ListDenials(
                gossip_pb2.ListDenialsRequest(), timeout=10
            )
            if denials.proofs:
                status = await node_pb2_grpc.NodeStub(channel).GetStatus(node_pb2.GetNodeStatusRequest())
                return list(status.alarms), denials.proofs[0]
            await asyncio.sleep(0.1)


async def test_two_contents_of_one_version_are_noticed_by_the_nodes_and_proven_to_strangers(
    domain: Domain, tmp_path: Path
) -> None:
    """TUF alone cannot see it: each node verified all that it was served. Peers compare digests by gossip."""
    at, taken = domain.at(tmp_path), set[int]()
    admin = {name: f"127.0.0.1:{free_port(taken)}" for name in NODES}
    both = at.keys["approver-2"].keyid
    async with contextlib.AsyncExitStack() as stack:
        for name in NODES:
            await stack.enter_async_context(node(tmp_path / name, at, name, admin))
        for name in NODES:
            alarms, proof = await noticed(at, name, admin[name])
            assert any("another content of base policy version 1" in text for text in alarms), alarms
            assert any("two contents of targets version 1" in text and both in text for text in alarms), (
                alarms
            )
        file, root = tmp_path / "proof.json", ["--root", at.directory / "root.json"]
        file.write_bytes(proof)
        verified = await asyncio.to_thread(egm, "evidence", "verify", file, *root, "--json")
        assert verified.code == 0, verified
        assert (verified.data["kind"], verified.data["accused"]) == ("policy-split", "targets")
        assert (verified.data["keys"], verified.data["node"]) == ([both], "")
        shown = await asyncio.to_thread(egm, "evidence", "verify", file, *root)
        assert f"signed both: key {both}" in shown.stdout
