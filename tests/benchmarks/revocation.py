"""How long from signing a revocation to the last of 50 sidecars that enforces it; each its own process."""

import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from control_plane.lab.processes import Process
from egm.v1 import gossip_pb2, gossip_pb2_grpc, node_pb2, node_pb2_grpc
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running, publish
from tests.support.control_plane import running as control_plane
from tests.support.emergency import FIRST
from tests.support.sidecar_mesh import emergency_policy
from tests.support.sidecars import settings, token
from trust.edge.clock import SystemClock
from trust.revocation import Kind, read_directive
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

NODES = 50
REVOCATIONS = 20
GOAL_MS = 500.0
_AT_ONCE = 4  # processes that start together
_WAIT_S = 180.0


def name_of(number: int) -> str:
    """Return a node's name."""
    return f"n{number}"


class Fleet:
    """The processes, and their admin listeners by name."""

    def __init__(self, home: Path, domain: Domain, cp: Running) -> None:
        self.home, self.domain, self.cp = home, domain, cp
        self.processes: dict[str, Process] = {}
        self.admin: dict[str, str] = {}
        self.shown = domain.credentials("operator", "olga")

    async def start(self, name: str, room: asyncio.Semaphore) -> None:
        """Enrol and start one sidecar."""
        async with room:
            home = self.home / name
            await token(self.cp, home, name, "echo")
            inbound = [{"service": "echo", "listen": "127.0.0.1:0", "upstream": {"address": "127.0.0.1:1"}}]
            config = settings(self.cp, home, self.domain, node=name, inbound=inbound)
            (home / "sidecar.yaml").write_text(yaml.safe_dump(config))
            arguments = ["sidecar", "run", "-c", str(home / "sidecar.yaml"), "--json"]
            # Nothing may run between fork and exec here: this process uses gRPC, which does not survive a fork.
            process = Process(name, arguments, log=home / "log", forked=None)
            self.processes[name] = process
            self.admin[name] = str((await process.start())["admin"])

    @contextlib.asynccontextmanager
    async def channel(self, name: str) -> AsyncIterator[Any]:
        """Connect an operator to a node; "" is the control plane."""
        dns = SpiffeId.of(TRUST_DOMAIN, "node", name).dns_name if name else control_plane_dns(TRUST_DOMAIN)
        address = self.admin[name] if name else self.cp.listen
        async with self.shown.channel(address, dns) as channel:
            yield channel

    async def ready(self) -> None:
        """Wait until every node enforces the policy and knows peers."""
        for name in self.admin:
            async with asyncio.timeout(_WAIT_S), self.channel(name) as channel:
                stub = node_pb2_grpc.NodeStub(channel)
                while True:
                    status = await stub.GetStatus(node_pb2.GetNodeStatusRequest())
                    if status.policy_version >= 1:
                        break
                    await asyncio.sleep(0.1)
        await asyncio.sleep(5)  # two reports: the control plane has named every node to the others

    async def stop(self) -> None:
        """Stop everything."""
        await asyncio.gather(*(process.stop() for process in self.processes.values()))


async def spread(fleet: Fleet, number: int, at: str) -> list[float]:
    """Revoke something new, handed in at `at`; return the delay at each node, ms."""
    signed_ms = SystemClock().now_ms()
    data = FIRST.revoke(
        Kind.WORKLOAD,
        f"w{number}-{at or 'cp'}",
        now_ms=signed_ms,
        trust_domain=TRUST_DOMAIN,
        sequence=number + 1,
    )
    wanted = read_directive(data).id
    async with fleet.channel(at) as channel:
        stub = gossip_pb2_grpc.EmergencyStub(channel)
        await stub.Revoke(gossip_pb2.RevokeRequest(directive=data), timeout=30)
    await asyncio.sleep(1.5)  # asking would keep the machine busy that is measured

    async def since(name: str) -> float:
        async with asyncio.timeout(_WAIT_S), fleet.channel(name) as channel:
            stub = gossip_pb2_grpc.EmergencyStub(channel)
            while True:
                answer = await stub.ListDenials(gossip_pb2.ListDenialsRequest())
                for one in answer.denials:
                    if one.id == wanted:
                        return float(one.since_ms - signed_ms)
                await asyncio.sleep(0.1)

    return list(await asyncio.gather(*(since(name) for name in fleet.admin)))


def row(way: str, delays: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return one line of the table."""
    every = sorted(one for spreading in delays for one in spreading)
    last = sorted(max(spreading) for spreading in delays)
    return {
        "handed_in": way,
        "nodes": len(delays[0]),
        "revocations": len(delays),
        "node_median_ms": round(statistics.median(every), 1),
        "node_p99_ms": round(every[int(len(every) * 0.99) - 1], 1),
        "last_node_median_ms": round(statistics.median(last), 1),
        "last_node_worst_ms": round(last[-1], 1),
    }


async def measure(nodes: int = NODES, revocations: int = REVOCATIONS) -> list[dict[str, Any]]:
    """Measure with a control plane, then with it stopped and one node reached."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        domain = Domain.create(home / "domain").at(home)
        rows: list[dict[str, Any]] = []
        async with contextlib.AsyncExitStack() as stack:
            plane = await stack.enter_async_context(contextlib.AsyncExitStack())
            cp = await plane.enter_async_context(control_plane(domain))
            async with cp.operator() as operator:
                bundle = emergency_policy(ttl_s=3600)
                await publish(operator, domain, domain.base(None, bundle), bundle)
            fleet = Fleet(home, domain, cp)
            stack.push_async_callback(fleet.stop)
            room = asyncio.Semaphore(_AT_ONCE)
            await asyncio.gather(*(fleet.start(name_of(number), room) for number in range(nodes)))
            await fleet.ready()
            delays = [await spread(fleet, number, "") for number in range(revocations)]
            rows.append(row("at the control plane", delays))
            await plane.aclose()
            await asyncio.sleep(2)
            delays = [
                await spread(fleet, 1000 + number, name_of(number % nodes)) for number in range(revocations)
            ]
            rows.append(row("at one node, no control plane", delays))
        return rows


def run(nodes: int = NODES, revocations: int = REVOCATIONS) -> list[dict[str, Any]]:
    """Return one row per way of handing in."""
    try:
        return asyncio.run(measure(nodes, revocations))
    finally:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                os.kill(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    for line in run():
        print(line)  # noqa: T201
