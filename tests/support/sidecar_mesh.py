"""A control plane, a callee's sidecar and a caller's sidecar, wired as a person would wire them."""

from pathlib import Path
from typing import Any

from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running, publish
from tests.support.emergency import FIRST
from tests.support.interop_service import SERVICE, InteropService
from trust.policy.source import build

METHODS = f"{SERVICE}/UnaryCall, {SERVICE}/FullDuplexCall"


def policy(
    *, level: int = 4, ttl_s: int = 60, grace_s: int = 120, allow: tuple[str, ...] = ("alice",)
) -> bytes:
    """Return a base bundle in which `allow` may call the service `echo`."""
    return build(policy_files(level=level, ttl_s=ttl_s, grace_s=grace_s, allow=allow))


def policy_files(
    *, level: int = 4, ttl_s: int = 60, grace_s: int = 120, allow: tuple[str, ...] = ("alice",)
) -> dict[str, bytes]:
    """Return the folder of `policy`."""
    permits = "".join(
        f'@id("{name}-may")\npermit(principal == Workload::"spiffe://{TRUST_DOMAIN}/workload/{name}", '
        f'action in Action::"{SERVICE}", resource == Service::"echo");\n'
        for name in allow
    )
    return {
        "bundle.yaml": (
            f"name: test\ndescription: t\ntrust_domain: {TRUST_DOMAIN}\nlevel: {level}\n"
            f"lease: {{ttl_s: {ttl_s}, grace_s: {grace_s}}}\n"
            f"services: {{echo: {{grpc_services: [{METHODS}]}}}}\n"
        ).encode(),
        "policies/p.cedar": permits.encode(),
        "tests/t.yaml": b"[]\n",
    }


def emergency_policy(
    *, ended: tuple[str, ...] = (), released: tuple[str, ...] = (), **settings: Any
) -> bytes:
    """Return the bundle of `policy` that also names an emergency key, and what the quorum has ended."""
    files = policy_files(**settings)
    more = (
        f"emergency_keys: {{{FIRST.name}: {FIRST.public.hex()}}}\nended_revocations: [{', '.join(ended)}]\n"
        f"released_proofs: [{', '.join(released)}]\n"
    )
    return build(files | {"bundle.yaml": files["bundle.yaml"] + more.encode()})


class Mesh:
    """A control plane, a callee's sidecar `b` with the service, and a caller's sidecar `a` for alice and bob."""

    def __init__(self, home: Path, domain: Domain, cp: Running, echo: InteropService, address: str) -> None:
        self.home, self.domain, self.cp, self.echo, self.address = home, domain, cp, echo, address
        self.metadata: Any = None

    async def publish(self, bundle: bytes) -> None:
        """Sign and publish the next version."""
        self.metadata = self.domain.base(self.metadata, bundle)
        async with self.cp.operator() as operator:
            await publish(operator, self.domain, self.metadata, bundle)

    async def enrol(self) -> None:
        """Write join tokens for both nodes."""
        await sidecars.token(self.cp, self.home / "b", "b", "echo")
        await sidecars.token(self.cp, self.home / "a", "a", "alice", "bob")

    def callee(self, **changes: Any) -> dict[str, Any]:
        """Return the configuration of node b."""
        inbound = [{"service": "echo", "listen": sidecars.LOOPBACK, "upstream": {"address": self.address}}]
        return sidecars.settings(self.cp, self.home / "b", self.domain, node="b", inbound=inbound, **changes)

    def caller(self, inbound: str, workload: str = "alice", **changes: Any) -> dict[str, Any]:
        """Return the configuration of node a."""
        outbound = [
            {"workload": workload, "service": "echo", "listen": sidecars.LOOPBACK, "identify": "loopback"}
        ]
        config = sidecars.settings(
            self.cp,
            self.home / "a",
            self.domain,
            node="a",
            outbound=outbound,
            services={"echo": {"addresses": [inbound]}},
        )
        config["identity"]["workloads"] = ["alice", "bob"]
        return config | changes
