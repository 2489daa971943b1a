"""A real evidence file: two sidecars that vouch for each other, and two executions under two policies."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from control_plane.edge.evidence_export import Sources, export_evidence, repository_in
from sidecar.edge.provenance import LEDGER_DIRECTORY
from tests.support import sidecars
from tests.support.attested_mesh import Attested, attested
from tests.support.control_plane import Domain
from tests.support.control_plane import running as control_plane
from tests.support.interop_service import UNARY, ask
from tests.support.sidecar_mesh import Mesh, policy_files
from trust.edge.ledger import Reader
from trust.errors import Reason
from trust.record import Intent, Outcome, parse_record


@dataclass(frozen=True)
class Made:
    """The file, what a reader trusts, and where it was taken from."""

    data: bytes
    root: bytes
    ca: bytes
    home: Path
    executions: tuple[bytes, ...]

    @property
    def ledgers(self) -> dict[str, Path]:
        """Node to ledger."""
        return {node: self.home / node / "data" / LEDGER_DIRECTORY for node in ("a", "b")}

    @property
    def repository(self) -> Path:
        """The control plane's."""
        return self.home / "cp-1" / "data" / "repository"

    @property
    def sources(self) -> Sources:
        """Where the policy of the first execution is; no node has it any more."""
        return Sources(repository=repository_in(self.repository))


async def _answered(a: sidecars.RunningSidecar) -> None:
    for _ in range(60):  # in its first second a callee refuses permits
        answer = await sidecars.unary(a.outbound, UNARY, ask(size=1))
        if answer == b"\0":
            return
        assert answer in {Reason.PERMIT_UNVERIFIABLE, Reason.ATTESTATION_UNKNOWN}, answer
        await asyncio.sleep(0.1)
    raise AssertionError("no call was answered")


Then = Callable[[Mesh], Awaitable[None]]


async def _nothing(_mesh: Mesh) -> None:
    pass


async def _calls(home: Path, domain: Domain, then: Then) -> None:
    """One call under the first policy; then another policy, a caller's sidecar started again, and one more call."""
    async with control_plane(domain) as cp, sidecars.upstream() as (echo, address):
        mesh = Mesh(home, domain, cp, echo, address)
        await mesh.enrol()
        world = Attested(mesh, names=("a", "b"))
        await world.publish()
        async with world.running("b") as callee:
            for version in (1, 2):
                if version == 2:
                    await world.publish(files=policy_files(level=5, allow=("alice", "bob")))
                async with world.running("a") as caller:
                    a, b = caller["a"], callee["b"]
                    await a.enforces(version)
                    await b.enforces(version)
                    await attested(a, b)
                    await _answered(a)
                    if version == 2:
                        await then(mesh)


def executed(ledger: Path) -> list[bytes]:
    """Return the executions that were allowed and completed, from a node's ledger, in order."""
    records = [parse_record(frame.record) for frame in Reader(ledger).scan()]
    done = {r.execution_id for r in records if isinstance(r, Outcome)}
    return [r.execution_id for r in records if isinstance(r, Intent) and r.allowed and r.execution_id in done]


def make(home: Path, then: Then = _nothing) -> Made:
    """Run the mesh in `home`, and export its two executions; `then` runs while everything still does."""
    domain = Domain.create(home / "domain").at(home)
    asyncio.run(_calls(home, domain, then))
    ledgers = {node: home / node / "data" / LEDGER_DIRECTORY for node in ("a", "b")}
    both = set(executed(ledgers["a"])) & set(executed(ledgers["b"]))
    chosen = tuple(sorted(both))
    assert len(chosen) == 2
    made = Made(b"", domain.root, (domain.directory / "ca" / "ca.pem").read_bytes(), home, chosen)
    return replace(made, data=export_evidence(chosen, ledgers, sources=made.sources)[0])
