"""A development mesh: one control plane, one sidecar per service, one for the other workloads."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from control_plane.edge import operator_client
from control_plane.edge.domain import EMERGENCY_KEY
from control_plane.edge.mesh_file import MeshFile, NodeEntry, WorkloadEntry
from control_plane.lab.ports import free_port
from control_plane.lab.processes import Process
from trust import limits
from trust.attestation.roster import witness_key_name
from trust.edge.files import write_atomic
from trust.edge.node_key_file import KEY_FILE, load_or_make_key
from trust.errors import InputError, MeshError, Reason, StateError
from trust.note import KeyKind, Verifier
from trust.spiffe import check_name

CONTROL_PLANE: Final = "control-plane"  # the member; no node may have the name
WORKLOADS_NODE: Final = "workloads"  # the sidecar of every workload that is not itself a service
LOOPBACK: Final = "127.0.0.1"
SETTLE_TIMEOUT_S: Final = 30.0
JOIN_TOKEN_TTL_S: Final = 600
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: addresses of services that already listen, and the workloads that may call them."""

    trust_domain: str
    services: Mapping[str, str]  # service -> HOST:PORT or unix:///PATH
    workloads: Sequence[str] = ()
    broker: str = "embedded"  # as the control plane is told
    node_broker: str | None = None  # as the nodes are told; default: what the control plane says of it
    # node -> the services and other workloads it speaks for; default: a node per service, one for the others
    placement: Mapping[str, Sequence[str]] | None = None
    witnesses: Sequence[str] | None = None  # nodes that vouch for others at level 5; default: all
    attestation_s: int | None = None  # how long a cosignature counts; default: the policy format's

    def __post_init__(self) -> None:
        for name in (*self.services, *self.workloads, *(self.placement or ())):
            check_name(name)
        if self.placement is None and WORKLOADS_NODE in self.services:
            raise InputError(Reason.INPUT_INVALID, f"{WORKLOADS_NODE!r} names a node; rename the service")

    def nodes(self) -> dict[str, tuple[str, ...]]:
        """Return node -> workloads it speaks for."""
        if self.placement is not None:
            return {node: tuple(workloads) for node, workloads in self.placement.items()}
        nodes = {service: (service,) for service in self.services}
        others = tuple(sorted(set(self.workloads) - set(self.services)))
        return nodes | ({WORKLOADS_NODE: others} if others else {})


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One sidecar: the workloads it speaks for, and where it listens."""

    name: str
    workloads: Sequence[str]
    admin: str
    inbound: Mapping[str, str]  # service -> listener
    outbound: Mapping[tuple[str, str], str]  # (workload, service) -> listener


def own_process(name: str, arguments: Sequence[str], log: Path) -> Process:
    """Return the process `egm ARGUMENTS…` of a member."""
    return Process(name, arguments, log=log)


def on_loopback(_member: str) -> str:
    """Members are processes of one machine."""
    return LOOPBACK


def as_it_is(_member: str, address: str) -> str:
    """Members reach each other where they listen."""
    return address


@dataclass
class DevelopmentMesh:
    """The processes of one mesh, below one directory. Started again, it goes on where it stopped."""

    directory: Path
    plan: Plan
    processes: dict[str, Process] = field(default_factory=dict)
    file: MeshFile | None = None
    process: Callable[[str, Sequence[str], Path], Process] = own_process  # (member, arguments, log)
    # (member, where it listens) -> the address that the other members are told (the lab puts links between)
    reached: Callable[[str, str], str] = as_it_is
    # put into policies from level 2 on that say nothing of detection; None: leave them as they are
    detection: Mapping[str, object] | None = None
    # member -> the host that its listeners for other members bind; those of its own workloads are on the loopback
    host: Callable[[str], str] = on_loopback

    @property
    def control_plane(self) -> Process:
        """The control plane's process."""
        return self.processes[CONTROL_PLANE]

    @property
    def mesh(self) -> MeshFile:
        """The address book; only while the mesh runs."""
        if self.file is None:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "the mesh is not running")
        return self.file

    async def start_control_plane(self) -> None:
        """Start the control plane and write mesh.json without nodes, so that operators can reach it."""
        home = self.directory / "control-plane"
        taken: set[int] = set()
        domain = self.directory / "domain"
        config = {
            "name": "cp-1",
            "trust_domain": self.plan.trust_domain,
            "data_dir": str(home / "data"),
            "listen": _kept_address(home / "listen", taken, self.host(CONTROL_PLANE)),
            "join_listen": _kept_address(home / "join", taken, self.host(CONTROL_PLANE)),
            "root": str(domain / "root.json"),
            "online_keys": {
                "snapshot": str(domain / "online" / "snapshot.pem"),
                "timestamp": str(domain / "online" / "timestamp.pem"),
                "passphrase_file": str(domain / "online" / "passphrase"),
            },
            "ca": str(domain / "ca"),
            "identity": str(home / "identity"),
            "broker": _kept_broker(self.plan.broker, home / "broker", taken),
        }
        responder = domain / "keys" / f"{EMERGENCY_KEY}.pem"
        if responder.is_file():  # it answers incidents once policy says `respond: true`
            config["responder_key"] = str(responder)
        path = home / "control-plane.yaml"
        write_atomic(path, yaml.safe_dump(config, sort_keys=False).encode())
        log = self.directory / "logs" / f"{CONTROL_PLANE}.log"
        process = self.process(CONTROL_PLANE, ["control-plane", "run", "-c", str(path), "--json"], log)
        self.processes[CONTROL_PLANE] = process
        ready = await process.start()
        self.file = MeshFile(
            trust_domain=self.plan.trust_domain,
            root=str(domain / "root.json"),
            control_plane=str(ready["listen"]),
            join=str(ready["join_listen"]),
            broker=str(ready["broker"]),
            operator=str(self.directory / "operator"),
            domain=str(domain),
            approvers={key.stem: str(key) for key in sorted((domain / "keys").glob("approver-*.pem"))},
        )

    def roster(self) -> dict[str, object]:
        """Return who witnesses whom: the plan's witnesses every node, by default all (up to the limit) all.

        Makes keys and addresses.
        """
        taken: set[int] = set()
        chosen = self.plan.nodes() if self.plan.witnesses is None else self.plan.witnesses
        names = sorted(chosen)[: limits.MAX_WITNESSES]
        addresses = self._admin_addresses(taken)
        return {
            "witnesses": {
                name: {
                    "key": _witness_key(self._home(name) / "data", self.plan.trust_domain, name),
                    "address": self.reached(name, addresses[name]),
                }
                for name in names
            },
            **({} if self.plan.attestation_s is None else {"ttl_s": self.plan.attestation_s}),
        }

    def _admin_addresses(self, taken: set[int]) -> dict[str, str]:
        return {
            name: _kept_address(self._home(name) / "admin", taken, self.host(name))
            for name in self.plan.nodes()
        }

    async def start_nodes(self) -> None:
        """Enrol and start every sidecar."""
        taken: set[int] = set()
        self._admin_addresses(taken)  # they may be in the signed roster already: nothing else may take them
        plans = [self._node_plan(name, workloads, taken) for name, workloads in self.plan.nodes().items()]
        addresses = {
            service: self.reached(plan.name, listen)
            for plan in plans
            for service, listen in plan.inbound.items()
        }
        await asyncio.gather(*(self._start_node(plan, addresses) for plan in plans))
        nodes = {}
        workloads = {}
        for plan in plans:
            config = str(self._home(plan.name) / "sidecar.yaml")
            pid = self.processes[plan.name].pid
            nodes[plan.name] = NodeEntry(admin=plan.admin, inbound=dict(plan.inbound), config=config, pid=pid)
            for workload in plan.workloads:
                routes = {service: at for (who, service), at in plan.outbound.items() if who == workload}
                workloads[workload] = WorkloadEntry(outbound=routes, node=plan.name)
        self.file = self.mesh.model_copy(update={"nodes": nodes, "workloads": workloads})

    def _node_plan(self, name: str, workloads: Sequence[str], taken: set[int]) -> "NodePlan":
        def kept(listener: str, host: str) -> str:
            return _kept_address(self._home(name) / listener, taken, host)

        return NodePlan(
            name,
            workloads,
            admin=kept("admin", self.host(name)),
            inbound={
                service: kept("inbound" if service == name else f"inbound-{service}", self.host(name))
                for service in workloads
                if service in self.plan.services
            },
            outbound={
                (workload, service): kept(f"outbound-{workload}-{service}", LOOPBACK)
                for workload in workloads
                for service in self.plan.services
                if service != workload
            },
        )

    async def _start_node(self, plan: "NodePlan", addresses: Mapping[str, str]) -> None:
        home = self._home(plan.name)
        if not (home / "data" / "identity").exists():
            async with operator_client.operator(self.mesh, self.directory) as client:
                token = await client.create_join_token(plan.name, plan.workloads, JOIN_TOKEN_TTL_S)
            write_atomic(home / "join-token", token.token.encode(), mode=0o600)
        path = home / "sidecar.yaml"
        write_atomic(path, yaml.safe_dump(self._node_config(plan, addresses), sort_keys=False).encode())
        log = self.directory / "logs" / f"{plan.name}.log"
        process = self.process(plan.name, ["sidecar", "run", "-c", str(path), "--json"], log)
        self.processes[plan.name] = process
        await process.start()

    def _node_config(self, plan: "NodePlan", addresses: Mapping[str, str]) -> dict[str, object]:
        home = self._home(plan.name)
        config: dict[str, object] = {
            "node": plan.name,
            "trust_domain": self.plan.trust_domain,
            "data_dir": str(home / "data"),
            "root": self.mesh.root,
            "control_plane": {
                "addresses": [self.reached(CONTROL_PLANE, self.mesh.control_plane)],
                "join_addresses": [self.reached(CONTROL_PLANE, str(self.mesh.join))],
            },
            "identity": {
                "source": "embedded",
                "ca": str(self.directory / "domain" / "ca" / "ca.pem"),
                "join_token_file": str(home / "join-token"),
                "workloads": list(plan.workloads),
            },
            "broker": self.plan.node_broker or self.mesh.broker,
            "outbound": [
                {"workload": workload, "service": service, "listen": listen, "identify": "loopback"}
                for (workload, service), listen in plan.outbound.items()
            ],
            "services": {service: {"addresses": [address]} for service, address in addresses.items()},
            "admin": {"listen": plan.admin, "advertise": self.reached(plan.name, plan.admin)},
        }
        if plan.inbound:
            config["inbound"] = [
                {"service": service, "listen": listen, "upstream": {"address": self.plan.services[service]}}
                for service, listen in plan.inbound.items()
            ]
        return config

    async def settled(self, *, version: int, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until every node is ready and enforces at least policy `version`.

        Raises:
            StateError: SOURCE_UNAVAILABLE, naming the nodes that are not and why.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        waiting = dict.fromkeys(self.mesh.nodes, "no answer yet")
        while waiting and loop.time() < deadline:
            for name in list(waiting):
                try:
                    async with operator_client.node(self.mesh, self.directory, name) as client:
                        status = await client.status()
                except MeshError as error:
                    if not self.processes[name].running:
                        raise _not_ready({name: "it ended"}, self.directory / "logs") from error
                    waiting[name] = error.detail
                    continue
                if status.state == "READY" and status.policy_version >= version:
                    del waiting[name]
                else:
                    reasons = ", ".join(status.not_ready) or f"policy version {status.policy_version}"
                    waiting[name] = f"{status.state}: {reasons}"
            if waiting:
                await asyncio.sleep(_POLL_S)
        if waiting:
            raise _not_ready(waiting, self.directory / "logs")

    async def stop(self) -> None:
        """Stop everything, sidecars first."""
        ordered = [p for name, p in self.processes.items() if name != CONTROL_PLANE]
        await asyncio.gather(*(process.stop() for process in ordered))
        if CONTROL_PLANE in self.processes:
            await self.control_plane.stop()
        self.file = None

    def _home(self, node: str) -> Path:
        return self.directory / "nodes" / node


def _not_ready(waiting: Mapping[str, str], logs: Path) -> StateError:
    detail = "; ".join(f"{name}: {why}" for name, why in waiting.items())
    return StateError(Reason.SOURCE_UNAVAILABLE, f"not every node is ready: {detail}; see {logs}")


def _kept_address(file: Path, taken: set[int], host: str) -> str:
    """Return the address remembered in `file`, or choose a port of `host` and remember it."""
    if file.is_file():
        address = file.read_text().strip()
        taken.add(int(address.rpartition(":")[2]))
        return address
    address = f"{host}:{free_port(taken)}"
    write_atomic(file, address.encode())
    return address


def _witness_key(data_dir: Path, trust_domain: str, name: str) -> str:
    """Return the key with which a node will vouch for others; it is made here if the node never ran."""
    public = load_or_make_key(data_dir / KEY_FILE).public_key().public_bytes_raw()
    return Verifier(witness_key_name(trust_domain, name), public, KeyKind.COSIGNATURE_V1).encode()


def _kept_broker(broker: str, file: Path, taken: set[int]) -> str:
    return f"embedded://{_kept_address(file, taken, LOOPBACK)}" if broker == "embedded" else broker
