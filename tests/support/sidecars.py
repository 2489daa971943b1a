"""Sidecars for tests: the real driver in the test's event loop, in front of an interoperability service."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import yaml

from sidecar.config_file import parse_config
from sidecar.edge import driver
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running
from tests.support.eventually import eventually
from tests.support.interop_service import InteropService
from trust.edge.clock import SystemClock
from trust.edge.files import write_atomic
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import Reason
from trust.ports import Clock

LOOPBACK = "127.0.0.1:0"


@dataclass
class RunningSidecar:
    """A sidecar that listens; `task` ends when it has drained."""

    sidecar: driver.Sidecar
    task: asyncio.Task[None]
    events: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def inbound(self) -> Mapping[str, str]:
        """Service -> address."""
        return dict(self.events[0]["inbound"])

    @property
    def outbound(self) -> str:
        """The only outbound listener."""
        return str(self.events[0]["outbound"][0]["addr"])

    @property
    def admin(self) -> str:
        """The admin listener."""
        return str(self.events[0]["admin"])

    @property
    def version(self) -> int:
        """The policy version in force; 0 for none."""
        held = self.sidecar.view.state.in_force
        return 0 if held is None else held.version

    async def enforces(self, version: int) -> None:
        """Wait for a policy version."""
        await eventually(lambda: self.version >= version, f"policy version {version} in force")


def settings(cp: Running | None, home: Path, domain: Domain, **changes: Any) -> dict[str, Any]:
    """Return a sidecar configuration without listeners."""
    listen, join = (cp.listen, cp.join_listen) if cp is not None else ("127.0.0.1:1", "127.0.0.1:1")
    return {
        "node": "n1",
        "trust_domain": TRUST_DOMAIN,
        "data_dir": str(home / "data"),
        "root": str(domain.directory / "root.json"),
        "control_plane": {"addresses": [listen], "join_addresses": [join]},
        "identity": {
            "source": "embedded",
            "ca": str(domain.directory / "ca" / "ca.pem"),
            "join_token_file": str(home / "join-token"),
        },
        "admin": {"listen": LOOPBACK},
        **changes,
    }


async def token(cp: Running, home: Path, node: str, *workloads: str) -> None:
    """Write a join token where `settings` expects it."""
    async with cp.operator() as operator:
        made = await operator.create_join_token(node, list(workloads), 600)
    write_atomic(home / "join-token", made.token.encode(), mode=0o600)


def start(
    config: Mapping[str, Any],
    ready: Callable[[Mapping[str, Any]], None] = lambda _event: None,
    clock: Clock | None = None,
) -> tuple[driver.Sidecar, asyncio.Task[None]]:
    """Start the real driver without waiting for anything; by the system's clock, unless another is given."""
    loaded = parse_config(yaml.safe_dump(dict(config)), base=Path("/"), env={})
    sidecar = driver.Sidecar(loaded, ready=ready, stop=asyncio.Event(), clock=clock or SystemClock())
    return sidecar, asyncio.create_task(sidecar.run())


@contextlib.asynccontextmanager
async def running(config: Mapping[str, Any], clock: Clock | None = None) -> AsyncIterator[RunningSidecar]:
    """Run the real driver until the block ends; it must drain without an error."""
    events: list[Mapping[str, Any]] = []
    listening = asyncio.Event()

    def ready(event: Mapping[str, Any]) -> None:
        events.append(event)
        listening.set()

    sidecar, task = start(config, ready, clock)
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        await task
    try:
        yield RunningSidecar(sidecar, task, events)
    finally:
        sidecar.stop.set()
        await task


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[tuple[InteropService, str]]:
    """Serve the interoperability service in plaintext."""
    service = InteropService()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port(LOOPBACK)
    await server.start()
    try:
        yield service, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def unary(address: str, path: str, request: bytes = b"{}", **options: Any) -> bytes | Reason:
    """Call in plaintext; return the answer, or the reason of the mesh's refusal."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer: bytes = await channel.unary_unary(path, None, None)(request, timeout=10, **options)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error).reason
        return answer
