"""A probe node: a real sidecar with a synthetic identity, that the assessor starts, breaks, and removes again.

It joins with a one-time token, serves nothing, and may call every service of the mesh as a workload that no policy
names. Between it and the control plane and broker are links that can be cut, and its clock can be moved; no member of
the mesh is touched. At the end the node is forgotten, so that it can renew nothing, and its keys are deleted.
"""

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import yaml

from control_plane.assess.edge import decoys
from control_plane.assess.edge.calls import Identity
from control_plane.edge import operator_client
from control_plane.edge.mesh_file import MeshFile, NodeEntry
from control_plane.lab.diallers import Diallers
from control_plane.lab.links import Link
from control_plane.lab.member import SkewFile
from control_plane.lab.network import Fault, Network, between
from control_plane.lab.ports import free_port
from control_plane.lab.processes import Process
from egm.v1 import operator_pb2
from trust.edge.files import write_atomic
from trust.edge.svid_store import SvidStore
from trust.errors import MeshError, Reason, StateError
from trust.identity import Svid
from trust.spiffe import SpiffeId

NAME_PREFIX: Final = "egm-probe-"
TOKEN_TTL_S: Final = 300
MOST_DECOYS: Final = 32  # one caller at all services would be taken for somebody who tries methods
READY_S: Final = 45.0
POLL_S: Final = 0.2
_CONTROL_PLANE: Final = "control-plane"
_BROKER: Final = "broker"
_LOOPBACK: Final = "127.0.0.1"
_PLAIN_BROKER: Final = "mqtt://"

Started = Callable[[str, Process], None]


class ProbeNode:
    """One probe node. `async with ProbeNode(mesh, directory, home) as node:` starts and removes it."""

    def __init__(
        self,
        mesh: MeshFile,
        directory: Path,
        home: Path,
        services: Mapping[str, str],
        *,
        started: Started = lambda _name, _process: None,
    ) -> None:
        """Describe it.

        Args:
            mesh: the address book of the mesh.
            directory: of the mesh.
            home: an empty directory of its own; private.
            services: logical name -> address of an inbound listener.
            started: told of the process before it starts (a lab lets only known processes cross its links).
        """
        self.name = NAME_PREFIX + secrets.token_hex(4)
        self.home, self._mesh, self._directory, self._services = home, mesh, directory, dict(services)
        self.data_dir = home / "data"
        self.outbound: dict[str, str] = {}  # service -> where it takes calls of the calm workload
        self._decoys = [decoys.workload({*mesh.workloads, *services}) for _ in list(services)[:MOST_DECOYS]]
        self.sweeping = ""  # where it takes calls of the noisy one, for the first service
        self._network = Network(0)
        self._links: list[Link] = []
        self._serving: list[asyncio.Task[None]] = []
        self._process: Process | None = None
        self._taken: set[int] = set()
        self._clock = SkewFile(home / "clock")
        self._admin = ""
        self._started = started

    @property
    def workload(self) -> SpiffeId:
        """The synthetic caller of direct attempts, with permits and without."""
        return SpiffeId.of(self._mesh.trust_domain, "workload", self.name)

    @property
    def calm(self) -> SpiffeId:
        """A caller that does nothing to be noticed: what is done about the others must not hit it."""
        return SpiffeId.of(self._mesh.trust_domain, "workload", f"{self.name}-calm")

    @property
    def noisy(self) -> SpiffeId:
        """A caller that tries what it has no right to, so that somebody notices."""
        return SpiffeId.of(self._mesh.trust_domain, "workload", f"{self.name}-noisy")

    def decoy(self, service: str) -> SpiffeId:
        """Return a caller whose name says nothing of an assessment: another for each service, up to MOST_DECOYS."""
        place = sorted(self._services).index(service) % len(self._decoys)
        return SpiffeId.of(self._mesh.trust_domain, "workload", self._decoys[place])

    @property
    def node(self) -> SpiffeId:
        """The node itself."""
        return SpiffeId.of(self._mesh.trust_domain, "node", self.name)

    async def __aenter__(self) -> Self:
        """Enrol and start it.

        Raises:
            MeshError: why it cannot run; nothing is left.
        """
        try:
            await self._start()
        except BaseException:
            await self.remove()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove it."""
        await self.remove()

    async def _start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with operator_client.operator(self._mesh, self._directory) as client:
            token = await client.create_join_token(self.name, self._workloads(), TOKEN_TTL_S)
        write_atomic(self.home / "join-token", token.token.encode(), mode=0o600)
        path = self.home / "sidecar.yaml"
        write_atomic(path, yaml.safe_dump(self._config(), sort_keys=False).encode())
        self._clock.create()
        program = [
            *(sys.executable, "-m", "control_plane.lab.member", "--parent", str(os.getpid())),
            *("--clock", str(self.home / "clock"), "egm"),
        ]
        arguments = ["sidecar", "run", "-c", str(path), "--json"]
        log = self.home / "probe-node.log"
        self._process = Process(self.name, arguments, log=log, program=program, forked=None)
        self._started(self.name, self._process)
        await self._process.start()

    def _workloads(self) -> list[str]:
        return [one.name for one in (self.workload, self.calm, self.noisy)] + self._decoys

    def _config(self) -> dict[str, Any]:
        mesh = self._mesh
        ca = self._directory / mesh.operator / "ca.pem"
        self._admin = f"{_LOOPBACK}:{free_port(self._taken)}"
        self.outbound = {service: f"{_LOOPBACK}:{free_port(self._taken)}" for service in self._services}
        broker = mesh.broker
        if broker.startswith(_PLAIN_BROKER) and "@" not in broker:
            broker = _PLAIN_BROKER + self._link(_BROKER, broker.removeprefix(_PLAIN_BROKER))
        if mesh.join is None:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "mesh.json does not say where nodes join (join)")
        return {
            "node": self.name,
            "trust_domain": mesh.trust_domain,
            "data_dir": str(self.data_dir),
            "root": mesh.root,
            "control_plane": {
                "addresses": [self._link(_CONTROL_PLANE, mesh.control_plane)],
                "join_addresses": [self._link(_CONTROL_PLANE, mesh.join)],
            },
            "identity": {
                "source": "embedded",
                "ca": str(ca),
                "join_token_file": str(self.home / "join-token"),
                "workloads": self._workloads(),
            },
            "broker": broker,
            "outbound": [
                {"workload": workload, "service": service, "listen": listen, "identify": "loopback"}
                for workload, service, listen in self._listeners()
            ],
            "services": {service: {"addresses": [address]} for service, address in self._services.items()},
            "admin": {"listen": self._admin},
        }

    def _listeners(self) -> list[tuple[str, str, str]]:
        calm = [(self.calm.name, service, listen) for service, listen in self.outbound.items()]
        self.sweeping = f"{_LOOPBACK}:{free_port(self._taken)}"
        return [*calm, (self.noisy.name, next(iter(self._services)), self.sweeping)]

    def _link(self, member: str, address: str) -> str:
        def pids() -> Mapping[str, int]:
            pid = None if self._process is None else self._process.pid
            return {} if pid is None else {self.name: pid}

        link = Link(member, address, self._network, Diallers(pids))
        link.bind()
        self._serving.append(asyncio.get_running_loop().create_task(link.serve()))
        self._links.append(link)
        return link.address

    # what an attempt needs

    async def status(self) -> operator_pb2.NodeStatus:
        """Return what it says of itself. Raises MeshError when it does not answer."""
        own = self._mesh.model_copy(update={"nodes": {self.name: NodeEntry(admin=self._admin)}})
        async with operator_client.node(own, self._directory, self.name) as client:
            return await client.status()

    async def until(self, wanted: str, *, timeout_s: float = READY_S, attested: bool = False) -> bool:
        """Wait until its lease is `wanted` (and, if asked, a quorum vouches for it); False when it never was."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(MeshError):
                status = await self.status()
                if status.lease == wanted and (not attested or status.attestation.standing == "ATTESTED"):
                    return True
            await asyncio.sleep(POLL_S)
        return False

    def svid(self, who: SpiffeId) -> Svid:
        """Return one of its certificates. Raises StateError when it has none yet."""
        found = SvidStore(self.data_dir / "identity").load(who)
        if found is None:
            raise StateError(Reason.IDENTITY_UNAVAILABLE, f"the probe node has no certificate of {who}")
        return found

    def identity(self, who: SpiffeId) -> Identity:
        """Return how one of its synthetic workloads connects."""
        svid = self.svid(who)
        anchors = (self.data_dir / "identity" / "ca.pem").read_bytes()
        return Identity(anchors, svid.chain_pem, svid.key_pem)

    # breaking it

    def cut(self) -> None:
        """Cut it off from control plane and broker: connections are reset, new ones refused."""
        fault = Fault(reset=True)
        self._network.apply(between([{self.name}, {_CONTROL_PLANE, _BROKER}], one_way=False), fault)

    def heal(self) -> None:
        """Mend its links and its clock."""
        self._network.heal()
        self._clock.set(0)

    def skew(self, milliseconds: int) -> None:
        """Move its clock."""
        self._clock.set(milliseconds)

    def log_tail(self) -> str:
        """Return the end of its log."""
        return "" if self._process is None else self._process.log_tail()

    async def remove(self) -> None:
        """End it, have the control plane forget it, and delete its keys; never raises."""
        if self._process is not None:
            await self._process.kill()
        await asyncio.gather(*(link.stop() for link in self._links), return_exceptions=True)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self._links, self._serving = [], []
        with contextlib.suppress(MeshError):
            async with operator_client.operator(self._mesh, self._directory) as client:
                await client.forget_node(self.name)


def listeners_of(mesh: MeshFile, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return service -> node -> address of its inbound listener, for those that have one. Every replica counts."""
    found: dict[str, dict[str, str]] = {}
    for node, entry in sorted(mesh.nodes.items()):
        for service, address in entry.inbound.items():
            if service in wanted:
                found.setdefault(service, {})[node] = address
    return found


def services_of(mesh: MeshFile, wanted: Sequence[str]) -> dict[str, str]:
    """Return service -> address of one inbound listener, for those that have one."""
    return {service: next(iter(nodes.values())) for service, nodes in listeners_of(mesh, wanted).items()}
