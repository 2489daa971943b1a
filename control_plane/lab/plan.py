"""What a lab mesh consists of: nodes, the services and workloads on each, and the policy that starts in force."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import yaml

from control_plane.edge.source_folder import read_folder
from control_plane.lab.mesh import CONTROL_PLANE
from egm.sample.v1 import shop_pb2
from trust.errors import InputError, Reason
from trust.policy.source import SETTINGS
from trust.spiffe import check_name

Files = Mapping[str, str | bytes | None]  # of a policy folder, by path; None: taken away
PolicyChange = Path | Files | Callable[[dict[str, bytes]], Files]

BROKER: Final = "broker"
RESERVED: Final = frozenset({CONTROL_PLANE, BROKER, "operator"})
SAMPLE_SERVICES: Final = tuple(sorted(s.full_name for s in shop_pb2.DESCRIPTOR.services_by_name.values()))
LINKS: Final = "links"
NAMESPACES: Final = "namespaces"
NETWORKS: Final = (LINKS, NAMESPACES)
LEASE_S: Final = 4  # short, so that a partition shows soon
GRACE_S: Final = 4
_ROLE: Final = "member"
_UNITS_MS: Final = (("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000))  # "ms" ends in "s", too


@dataclass(frozen=True, slots=True)
class Service:
    """A service of the mesh. Without address and command it is the sample service.

    Args:
        address: HOST:PORT or unix:///PATH of one that runs already.
        command: starts one; {port} and {address} in it are filled in. The lab ends it with the mesh.
        environment: for the command, added to that of the lab.
        grpc_services: "package.Service" names that the default policy allows, and that `call` finds it by.
    """

    address: str | None = None
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    grpc_services: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.address is not None and self.command:
            raise InputError(Reason.INPUT_INVALID, "a service has an address or a command, not both")

    @property
    def is_sample(self) -> bool:
        """Whether the lab brings this service."""
        return self.address is None and not self.command

    @property
    def names(self) -> tuple[str, ...]:
        """The gRPC services it has."""
        return tuple(self.grpc_services) or (SAMPLE_SERVICES if self.is_sample else ())


@dataclass(frozen=True, slots=True)
class Node:
    """One sidecar: the services beside it, and other workloads that call through it."""

    services: Mapping[str, Service] = field(default_factory=dict)
    workloads: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class LabPlan:
    """What to run.

    Args:
        nodes: by name; `LabPlan.of("a", "b", "c")` makes nodes with a sample service of the same name each.
        policy: folder, or its files (path -> text); None: every workload may call every service.
        level: instead of the policy's own.
        descriptors: FileDescriptorSet of your services, so that requests and replies can be written as mappings.
        lease_s, grace_s: of the default policy alone.
        witnesses: nodes that vouch for others at level 5, unless the policy names some; None: all of them.
        attestation_s: how long their cosignatures count then.
        network: LINKS, a proxy in front of each listener; NAMESPACES, one network namespace per member (Linux, root),
            which can only be cut.
        seed: decides jitter and losses of links.
    """

    nodes: Mapping[str, Node]
    policy: Path | Mapping[str, str | bytes] | None = None
    level: int | None = None
    descriptors: bytes | None = None
    lease_s: int = LEASE_S
    grace_s: int = GRACE_S
    trust_domain: str = "mesh.local"
    network: str = LINKS
    seed: int = 0
    witnesses: Sequence[str] | None = None
    attestation_s: int | None = None

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise InputError(
                Reason.INPUT_INVALID, f"network {self.network!r}: use one of {', '.join(NETWORKS)}"
            )
        self.check_witnesses(self.witnesses)
        if not self.nodes:
            raise InputError(Reason.INPUT_INVALID, 'a mesh needs a node: LabPlan.of("a", "b", "c")')
        owners: dict[str, str] = {}
        for name, node in self.nodes.items():
            check_name(name)
            if name in RESERVED:
                raise InputError(Reason.INPUT_INVALID, f"{name!r} is the lab's own name; rename the node")
            if not node.services and not node.workloads:
                raise InputError(Reason.INPUT_INVALID, f"node {name!r} has neither services nor workloads")
            for one in (*node.services, *node.workloads):
                check_name(one)
                if self.network == NAMESPACES and one in node.services and node.services[one].address:
                    raise InputError(
                        Reason.INPUT_INVALID,
                        f"service {one!r} runs outside the mesh; in a namespace the lab must start it",
                    )
                if owners.setdefault(one, name) != name or (one in node.services and one in node.workloads):
                    raise InputError(
                        Reason.INPUT_INVALID, f"{one!r} is named twice; names are of the whole mesh"
                    )

    def check_witnesses(self, names: Sequence[str] | None) -> None:
        """Refuse witnesses that are no nodes.

        Raises:
            InputError: INPUT_INVALID, naming one.
        """
        if names is not None and (not names or set(names) - set(self.nodes)):
            wrong = ", ".join(sorted(set(names) - set(self.nodes))) or "nobody"
            raise InputError(
                Reason.INPUT_INVALID,
                f"witnesses: {wrong}: name nodes of this mesh: {', '.join(self.nodes)}",
            )

    @classmethod
    def of(
        cls,
        *names: str,
        level: int | None = None,
        lease_s: int = LEASE_S,
        grace_s: int = GRACE_S,
        policy: Path | Mapping[str, str | bytes] | None = None,
        network: str = LINKS,
        seed: int = 0,
    ) -> "LabPlan":
        """Return a plan of nodes with a sample service of the same name each."""
        nodes = {name: Node({name: Service()}) for name in names}
        return cls(nodes, policy, level=level, lease_s=lease_s, grace_s=grace_s, network=network, seed=seed)

    @property
    def services(self) -> dict[str, Service]:
        """Every service, by name."""
        return {name: service for node in self.nodes.values() for name, service in node.services.items()}

    @property
    def workloads(self) -> tuple[str, ...]:
        """Every workload: the services, and those that only call."""
        return tuple(one for node in self.nodes.values() for one in (*node.services, *node.workloads))

    def node_of(self, workload: str) -> str:
        """Return the node that speaks for a workload.

        Raises:
            InputError: NOT_FOUND, naming those there are.
        """
        for name, node in self.nodes.items():
            if workload in node.services or workload in node.workloads:
                return name
        known = ", ".join(self.workloads)
        raise InputError(Reason.NOT_FOUND, f"no workload {workload!r} in this mesh; there are: {known}")

    def at_level(self, level: int | None) -> "LabPlan":
        """Return the same plan at another level."""
        return replace(self, level=level)

    def members(self) -> tuple[str, ...]:
        """Everything that can be cut off."""
        return (*self.nodes, CONTROL_PLANE, BROKER)

    def starting_policy(self) -> dict[str, bytes]:
        """Return the files of the policy that the mesh begins with.

        Raises:
            InputError: INPUT_INVALID, when the folder cannot be read.
        """
        if self.policy is None:
            return self.policy_files()
        return dict(read_folder(self.policy)) if isinstance(self.policy, Path) else as_bytes(self.policy)

    def policy_files(self) -> dict[str, bytes]:
        """Return the default policy: every workload may call every method that the services name."""
        settings = {
            "name": "lab",
            "description": "Every member may call every service.",
            "trust_domain": self.trust_domain,
            "lease": {"ttl_s": self.lease_s, "grace_s": self.grace_s},
            "services": {name: {"grpc_services": list(s.names)} for name, s in self.services.items()},
            "roles": {_ROLE: list(self.workloads)},
        }
        policies = "\n".join(
            f'@id("members-call-{name}")\n'
            f'permit (principal in Role::"{_ROLE}", action, resource == Service::"{name}");\n'
            for name in self.services
        )
        text = yaml.safe_dump(settings, sort_keys=False)
        return {SETTINGS: text.encode(), "policies/members.cedar": policies.encode()}


def as_bytes(files: Files) -> dict[str, bytes]:
    """Return the files there are, as bytes; None stands for one that is taken away."""
    kept = {path: data for path, data in files.items() if data is not None}
    return {path: data.encode() if isinstance(data, str) else data for path, data in kept.items()}


def parse_duration_ms(text: str | float) -> int:
    """Return "+90s", "-2m", "500ms", "1h" or a number of seconds in milliseconds.

    Raises:
        InputError: INPUT_INVALID, saying how to write one.
    """
    with contextlib.suppress(ValueError, OverflowError):  # no number, or none that is finite
        if isinstance(text, int | float):
            return round(text * 1000)
        for unit, factor in _UNITS_MS:
            if text.endswith(unit):
                return round(float(text.removesuffix(unit)) * factor)
    raise InputError(Reason.INPUT_INVALID, f"{text!r} is not a duration; write 500ms, 90s, -2m or 1h")


def changed(files: Mapping[str, bytes], change: PolicyChange | None) -> dict[str, bytes]:
    """Return the files of a policy folder after a change: another folder, files to replace, or a function of them."""
    if isinstance(change, Path):
        return dict(read_folder(change))
    if change is None:
        return dict(files)
    if callable(change):
        return as_bytes(change(dict(files)))
    return as_bytes({**files, **change})
