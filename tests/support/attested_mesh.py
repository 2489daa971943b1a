"""Three real sidecars that witness each other: a (callers), b (the service), c (a third witness)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from control_plane.lab.ports import free_port
from sidecar.core.trust_state import Standing
from sidecar.edge.node_signer import KEY_FILE, load_or_make_key
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.eventually import eventually
from tests.support.sidecar_mesh import Mesh, policy_files
from tests.support.sidecars import RunningSidecar
from trust.attestation.roster import witness_key_name
from trust.note import KeyKind, Verifier
from trust.policy.source import build

NODES = ("a", "b", "c")


class Attested:
    """A mesh with a roster. Admin ports are kept, so that a node that comes back is found."""

    def __init__(
        self, mesh: Mesh, *, ttl_s: int = 60, names: Sequence[str] = NODES, **attestation: Any
    ) -> None:
        taken: set[int] = set()
        self.mesh = mesh
        self.admin = {name: f"127.0.0.1:{free_port(taken)}" for name in NODES}
        self.inbound = f"127.0.0.1:{free_port(taken)}"
        self.settings = {
            "ttl_s": ttl_s,
            "witnesses": {
                name: {
                    "key": witness_key(mesh.home / name / "data", name).encode(),
                    "address": self.admin[name],
                }
                for name in names
            },
            **attestation,
        }

    async def publish(
        self, *, level: int = 5, files: Mapping[str, bytes] | None = None, **changes: Any
    ) -> None:
        """Sign and publish a policy with the roster."""
        source = {**policy_files(level=level), **(files or {})}
        settings = {"attestation": {**self.settings, **changes}}
        bundle = source["bundle.yaml"] + yaml.safe_dump(settings).encode()
        await self.mesh.publish(build({**source, "bundle.yaml": bundle}))

    def config(self, name: str) -> dict[str, Any]:
        """Return the configuration of a node."""
        admin = {"listen": self.admin[name]}
        if name == "b":
            made = self.mesh.callee(admin=admin)
            made["inbound"][0]["listen"] = self.inbound
            return made
        made = self.mesh.caller(self.inbound, admin=admin)
        if name == "c":
            made["node"], made["data_dir"] = "c", str(self.mesh.home / "c" / "data")
            made["outbound"][0]["workload"] = "carol"
            made["identity"]["workloads"] = ["carol"]
            made["identity"]["join_token_file"] = str(self.mesh.home / "c" / "join-token")
        return made

    @asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[dict[str, RunningSidecar]]:
        """Run nodes; those that were never enrolled are enrolled."""
        if "c" in names and not (self.mesh.home / "c" / "join-token").exists():
            await sidecars.token(self.mesh.cp, self.mesh.home / "c", "c", "carol")
        async with AsyncExitStack() as stack:
            yield {
                name: await stack.enter_async_context(sidecars.running(self.config(name))) for name in names
            }


def witness_key(data_dir: Path, name: str) -> Verifier:
    """Return the witness key of a node that may not have started yet."""
    key = load_or_make_key(data_dir / KEY_FILE).public_key()
    return Verifier(witness_key_name(TRUST_DOMAIN, name), key.public_bytes_raw(), KeyKind.COSIGNATURE_V1)


def standing(node: RunningSidecar) -> Standing:
    """Return how a node stands now."""
    return Standing(node.sidecar.view.attestation().standing)


async def attested(*nodes: RunningSidecar) -> None:
    """Wait until every node holds a live credential."""
    for node in nodes:
        await eventually(
            lambda node=node: standing(node) is Standing.ATTESTED,  # type: ignore[misc]
            "a node becomes attested",
        )
