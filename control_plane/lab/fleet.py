"""The processes of a lab mesh, their disks and the links between them: what can be started, killed and put back."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from control_plane.lab.bootstrap import prepare, publish
from control_plane.lab.diallers import OPERATOR, Diallers
from control_plane.lab.disks import copy_disk
from control_plane.lab.links import Connect, Link, Streams, connect
from control_plane.lab.member import SkewFile
from control_plane.lab.mesh import CONTROL_PLANE, LOOPBACK, DevelopmentMesh, Plan
from control_plane.lab.namespaces import Namespaces
from control_plane.lab.network import Network
from control_plane.lab.plan import BROKER, NAMESPACES, LabPlan, Service
from control_plane.lab.ports import free_port
from control_plane.lab.processes import Process
from trust.address import split_address
from trust.edge.files import write_atomic
from trust.errors import InputError, Reason, StateError

TWIN: Final = "-twin"
SETTLE_S: Final = 60.0
_PUBLISHER: Final = "control-plane"
_PORT_POLL_S: Final = 0.05


class Fleet:
    """Starts and ends every process of one mesh below one directory."""

    def __init__(self, plan: LabPlan, directory: Path, network: Network) -> None:
        self.plan, self.directory, self._network = plan, directory, network
        self.processes: dict[str, Process] = {}  # by member; services as "service NAME"
        self.mesh: DevelopmentMesh | None = None
        self._links: dict[str, Link] = {}  # by what is behind them
        self._serving: list[asyncio.Task[None]] = []
        self._taken: set[int] = set()
        self._namespaces: Namespaces | None = None
        if plan.network == NAMESPACES:
            self._namespaces = Namespaces(plan.members())
            network.carrier = self._namespaces.follow

    @property
    def running(self) -> DevelopmentMesh:
        """The mesh. Raises StateError before it was started."""
        if self.mesh is None:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "the lab mesh is not running; start it first")
        return self.mesh

    def process(self, name: str) -> Process:
        """Return a member's process.

        Raises:
            InputError: NOT_FOUND, naming the members there are.
        """
        if (found := self.processes.get(name)) is None:
            known = ", ".join(sorted(self.processes))
            raise InputError(Reason.NOT_FOUND, f"no member {name!r} in this mesh; there are: {known}")
        return found

    # start and end

    async def start(self, archive: bytes) -> int:
        """Start everything; return the version of the first policy, which every node enforces then.

        Raises:
            MeshError: what could not be started, and where its log is.
        """
        if self._namespaces is not None:
            await asyncio.to_thread(self._namespaces.make)
        await asyncio.to_thread(prepare, self.directory, self.plan.trust_domain)
        found = await asyncio.gather(*(self._start_service(*item) for item in self.plan.services.items()))
        publisher, listener = await self._start_broker()
        plan = Plan(
            self.plan.trust_domain,
            dict(zip(self.plan.services, found, strict=True)),
            self.plan.workloads,
            broker=publisher,
            node_broker=listener,
            placement={name: (*node.services, *node.workloads) for name, node in self.plan.nodes.items()},
            witnesses=self.plan.witnesses,
            attestation_s=self.plan.attestation_s,
        )
        self.mesh = DevelopmentMesh(
            self.directory,
            plan,
            self.processes,
            process=self._egm,
            reached=self._reached,
            host=self._host,
        )
        await self.mesh.start_control_plane()
        version = await publish(self.mesh, archive, title="The first policy of the lab")
        await self.mesh.start_nodes()
        await self.mesh.settled(version=version, timeout_s=SETTLE_S)
        self.mesh.mesh.save(self.directory)
        return version

    async def close(self) -> None:
        """Kill every process and close every link, whatever state they are in."""
        for name in list(self.processes):
            with contextlib.suppress(InputError, StateError):
                self.resume(name)
        await asyncio.gather(*(process.kill() for process in self.processes.values()), return_exceptions=True)
        await asyncio.gather(*(link.stop() for link in self._links.values()), return_exceptions=True)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self._links.clear()
        if self._namespaces is not None:
            await asyncio.to_thread(self._namespaces.remove)

    def pause(self, name: str) -> None:
        """Freeze a process (SIGSTOP), as a long pause of its machine would."""
        os.kill(self._pid(name), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a frozen process go on."""
        os.kill(self._pid(name), signal.SIGCONT)

    def _pid(self, name: str) -> int:
        if (pid := self.process(name).pid) is None:
            raise StateError(Reason.SOURCE_UNAVAILABLE, f"{name} does not run")
        return pid

    # disks and clocks

    def skew_file(self, name: str) -> SkewFile:
        """Return the file that moves a member's clock."""
        return SkewFile(self.directory / "clocks" / name)

    def disk(self, name: str) -> Path:
        """Return the directory that a member keeps its state in."""
        if name == CONTROL_PLANE:
            return self.directory / "control-plane" / "data"
        if name not in self.plan.nodes:
            raise InputError(
                Reason.INPUT_INVALID, f"{name!r} has no disk of its own; name a node or {CONTROL_PLANE}"
            )
        return self.directory / "nodes" / name / "data"

    async def snapshot(self, name: str) -> Path:
        """Copy a member's disk as it is at one moment, as a snapshot of its machine would; return the copy."""
        disk, copy = self.disk(name), self.directory / "snapshots" / name
        with self._frozen(name):
            await asyncio.to_thread(copy_disk, disk, copy, self.process(name).pid)
        return copy

    async def put_back(self, name: str) -> None:
        """Kill a member, put its last snapshot in the place of its disk, and start it."""
        copy = self.directory / "snapshots" / name
        if not copy.is_dir():
            raise StateError(
                Reason.NOT_FOUND, f"there is no snapshot of {name}; take one with snapshot({name!r})"
            )
        await self.process(name).kill()
        await asyncio.to_thread(copy_disk, copy, self.disk(name), None)
        await self.process(name).start()

    async def twin(self, name: str) -> dict[str, str]:
        """Start a second process with the identity and a copy of the disk of node `name`.

        Returns:
            "WORKLOAD SERVICE" -> the address at which the twin takes that workload's calls.
        """
        home = self.directory / "nodes" / (name + TWIN)
        with self._frozen(name):
            await asyncio.to_thread(copy_disk, self.disk(name), home / "data", self.process(name).pid)
        config = yaml.safe_load((self.directory / "nodes" / name / "sidecar.yaml").read_text())
        config["data_dir"] = str(home / "data")
        for listener in (config["admin"], *config.get("inbound", ())):
            listener["listen"] = f"{self._host(name)}:{free_port(self._taken)}"
        for listener in config["outbound"]:
            listener["listen"] = f"{LOOPBACK}:{free_port(self._taken)}"
        path = home / "sidecar.yaml"
        write_atomic(path, yaml.safe_dump(config, sort_keys=False).encode())
        log = self.directory / "logs" / f"{name}{TWIN}.log"
        process = self._egm(name + TWIN, ["sidecar", "run", "-c", str(path), "--json"], log)
        self.processes[name + TWIN] = process
        await process.start()
        return {
            f"{one['workload']} {one['service']}": self.entry(name, one["listen"])
            for one in config["outbound"]
        }

    def entry(self, node: str, address: str) -> str:
        """Return where the lab, and programs beside it, reach a loopback listener of a node."""
        if self._namespaces is None:
            return address
        key = f"{node} {address}"
        if key not in self._links:
            link = Link(node, address, self._network, lambda _peer, _own: OPERATOR, self._connect(node))
            self._links[key] = self._serve(link)
        return self._links[key].address

    def _connect(self, node: str) -> Connect:
        """Return what dials from where a node is."""
        inside = self._namespaces
        if inside is None:
            return connect

        async def from_inside(at: tuple[str, int]) -> Streams:
            return await asyncio.open_connection(sock=await inside.connect(node, at))

        return from_inside

    @contextlib.contextmanager
    def _frozen(self, name: str) -> Iterator[None]:
        if not self.process(name).running:
            yield
            return
        self.pause(name)
        try:
            yield
        finally:
            self.resume(name)

    # parts

    def _host(self, member: str) -> str:
        return LOOPBACK if self._namespaces is None else self._namespaces.host(member)

    def _member(self, of: str, role: str, *arguments: str, clock: str | None = None) -> list[str]:
        """Return the program of one role, where member `of` has its network."""
        program = [sys.executable, "-m", "control_plane.lab.member", "--parent", str(os.getpid())]
        if clock is not None:
            self.skew_file(clock).create()
            program += ["--clock", str(self.directory / "clocks" / clock)]
        program = [*program, role, *arguments]
        node = of.removesuffix(TWIN)
        return program if self._namespaces is None else self._namespaces.program(node, program)

    def _egm(self, name: str, arguments: Sequence[str], log: Path) -> Process:
        program = self._member(name, "egm", clock=name)
        return Process(name, arguments, log=log, program=program, forked=None)

    async def _start_service(self, name: str, service: Service) -> str:
        if service.address is not None:
            return service.address
        address, node = f"{LOOPBACK}:{free_port(self._taken)}", self.plan.node_of(name)
        log = self.directory / "logs" / f"service-{name}.log"
        if service.is_sample:
            process = Process(name, [], log=log, program=self._member(node, "sample", address), forked=None)
        else:
            port = address.rpartition(":")[2]
            command = [part.replace("{port}", port).replace("{address}", address) for part in service.command]
            process = PlainProcess(
                name,
                self._member(node, "exec", *command),
                address,
                log=log,
                environment=service.environment,
                connect=self._connect(node),
            )
        self.processes[f"service {name}"] = process
        await process.start()
        return address

    async def _start_broker(self) -> tuple[str, str]:
        """Start the broker; return its URL for the control plane and for nodes."""
        home = self.directory / "broker"
        home.mkdir(parents=True, exist_ok=True)
        password = secrets.token_urlsafe(24)
        write_atomic(home / "password", password.encode(), mode=0o600)
        listen = f"{self._host(BROKER)}:{free_port(self._taken)}"
        program = self._member(BROKER, "broker", listen, str(home), str(home / "password"))
        log = self.directory / "logs" / f"{BROKER}.log"
        self.processes[BROKER] = process = Process(BROKER, [], log=log, program=program, forked=None)
        await process.start()
        link = self._reached(BROKER, listen)
        return f"mqtt://{_PUBLISHER}:{password}@{link}", f"mqtt://{link}"

    def _reached(self, member: str, address: str) -> str:
        """Return the address of the link to a listener of a member."""
        if self._namespaces is not None:
            return address
        if address not in self._links:
            self._links[address] = self._serve(Link(member, address, self._network, Diallers(self._pids)))
        return self._links[address].address

    def _serve(self, link: Link) -> Link:
        link.bind()
        self._serving.append(asyncio.get_running_loop().create_task(link.serve()))
        return link

    def _pids(self) -> Mapping[str, int]:
        return {name: pid for name, process in self.processes.items() if (pid := process.pid) is not None}


class PlainProcess(Process):
    """A program that knows nothing of the lab: it is ready when its port answers; its whole group is ended."""

    tells = False

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        address: str,
        *,
        log: Path,
        environment: Mapping[str, str],
        connect: Connect,
    ) -> None:
        super().__init__(name, [], log=log, environment=environment, program=program, forked=None)
        self._address, self._connect = split_address(address), connect

    async def until_ready(self, process: asyncio.subprocess.Process) -> dict[str, object]:
        """Wait until the port takes a connection."""
        while process.returncode is None:
            try:
                _, writer = await self._connect(self._address)
            except OSError:
                await asyncio.sleep(_PORT_POLL_S)
                continue
            writer.close()
            return {}
        raise ValueError("ended")
