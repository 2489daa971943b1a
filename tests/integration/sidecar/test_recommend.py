"""From observing to enforcing: a service at level 1, what it was called by, the draft, level 4; and the live view."""

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Targets

from control_plane.edge.analytics_client import AnalyticsClient
from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.mesh_file import MeshFile
from egm.v1 import analytics_pb2
from tests.support import sidecars
from tests.support.cli import Outcome, egm
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.interop_service import SERVICE
from tests.support.sidecar_mesh import Mesh, policy
from tests.support.sidecars import LOOPBACK, RunningSidecar
from trust.errors import Reason
from trust.spiffe import SpiffeId

UNARY = f"/{SERVICE}/UnaryCall"
CALLS = 7


def book(mesh: Mesh) -> Path:
    """Write a mesh directory with an operator's credentials."""
    directory = mesh.home / "mesh"
    operator = SpiffeId.of(TRUST_DOMAIN, "operator", "olga")
    issue_to_directory(
        CertificateAuthority.open(mesh.domain.directory / "ca"), operator, directory / "operator"
    )
    root = str(mesh.domain.directory / "root.json")
    MeshFile(trust_domain=TRUST_DOMAIN, root=root, control_plane=mesh.cp.listen).save(directory)
    return directory


async def run(directory: Path, *arguments: object) -> Outcome:
    """Run one command; it must succeed."""
    done = await asyncio.to_thread(egm, *arguments, mesh=directory)
    assert done.code == 0, (arguments, done.stdout, done.stderr)
    return done


@contextlib.asynccontextmanager
async def both(mesh: Mesh) -> AsyncIterator[tuple[RunningSidecar, dict[str, str]]]:
    """Run both sidecars; give the caller's, and where alice and bob dial."""
    async with sidecars.running(mesh.callee()) as callee:
        config: dict[str, Any] = mesh.caller(callee.inbound["echo"])
        bob = {"workload": "bob", "service": "echo", "listen": LOOPBACK, "identify": "loopback"}
        config["outbound"] = [*config["outbound"], bob]
        async with sidecars.running(config) as caller:
            doors = {str(o["workload"]): str(o["addr"]) for o in caller.events[0]["outbound"]}
            await callee.enforces(1)
            await caller.enforces(1)
            yield caller, doors


async def test_what_was_observed_at_level_one_is_what_passes_at_level_four(mesh: Mesh) -> None:
    """The whole way an operator goes, with the commands that the documentation names; bob never called."""
    await mesh.publish(policy(level=1, allow=()))
    directory = book(mesh)
    async with both(mesh) as (caller, doors):
        for _ in range(CALLS):
            assert await sidecars.unary(doors["alice"], UNARY) == b""
        await _shipped(mesh)
        seen = (await run(directory, "analytics", "--since", "1h", "--json")).data["all"]
        assert seen["would_deny"] == {"NO_POLICY_PERMITS": CALLS}
        await asyncio.to_thread(_watch_live, directory)
        draft = mesh.home / "draft"
        little = await asyncio.to_thread(egm, "policy", "recommend", "-o", draft, mesh=directory)
        assert (little.code, "--min-calls 7" in little.stderr) == (2, True)
        made = await run(
            directory, "policy", "recommend", "-o", draft, "--min-calls", 1, "--level", 4, "--json"
        )
        assert (made.data["edges"], made.data["permits"]) == (1, 1)
        assert (await run(directory, "policy", "lint", draft, "--json")).data["ok"]
        tested = (await run(directory, "policy", "test", draft, "--json")).data
        assert (tested["passed"], tested["failed"]) == (2, 0)
        proposal = (
            await run(directory, "policy", "propose", draft, "--title", "least privilege", "--json")
        ).data
        await _publish(mesh, str(proposal["id"]))
        await caller.enforces(2)
        assert await sidecars.unary(doors["alice"], UNARY) == b""
        assert await sidecars.unary(doors["bob"], UNARY) is Reason.NO_POLICY_PERMITS


async def _shipped(mesh: Mesh) -> None:
    """Wait until every call and its end are in the sums."""
    async with mesh.cp.channel() as channel:
        client = AnalyticsClient(channel)
        for _ in range(600):
            request = analytics_pb2.AnalyticsRequest(since_ms=int(time.time() * 1000) - 600_000)
            found = (await client.query(request)).all
            if (found.calls, sum(found.ended.values())) == (CALLS, CALLS):
                return
            await asyncio.sleep(0.05)
    raise AssertionError(f"never summed up: {found}")


async def _publish(mesh: Mesh, proposal: str) -> None:
    async with mesh.cp.operator() as operator:
        metadata: Metadata[Targets] = Metadata.from_bytes((await operator.proposal(proposal)).metadata)
        for name in ("approver-1", "approver-2"):
            await operator.add_signature(proposal, *mesh.domain.signature(name, metadata))
        await operator.publish(proposal)


def _watch_live(directory: Path) -> None:
    """Run `egm top` in a real terminal of 160 by 50, until it shows the edge; end it as a person does."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "EGM_MESH": str(directory)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "control_plane.cli.main", "top", "--interval", "0.5"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    screen = b""
    try:
        ends = time.monotonic() + 60
        while b"alice > echo" not in screen or screen.count(b"busiest edges") < 2:
            assert time.monotonic() < ends, screen.decode(errors="replace")
            if select.select([master], [], [], 1)[0]:
                screen += os.read(master, 65_536)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            assert time.monotonic() < ends, screen.decode(errors="replace")
            if select.select([master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    screen += os.read(master, 65_536)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert process.returncode == 0
    assert screen.startswith(b"\x1b[?1049h")  # its own screen, so that the terminal is as before afterwards
    assert b"\x1b[?1049l" in screen
    shown = screen.decode(errors="replace")
    assert "Traceback" not in shown
    assert all(word in shown for word in ("READY", "calls/s", "p95 ms", f"would be refused {CALLS}"))
