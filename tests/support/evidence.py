"""A real evidence file: two sidecars at level 5, two executions, exported from their ledgers."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from control_plane.edge.evidence_export import export_evidence
from sidecar.edge.provenance import LEDGER_DIRECTORY
from tests.support import sidecars
from tests.support.control_plane import Domain
from tests.support.control_plane import running as control_plane
from tests.support.interop_service import UNARY, ask
from tests.support.sidecar_mesh import Mesh, policy
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


async def _calls(home: Path, domain: Domain) -> None:
    async with control_plane(domain) as cp, sidecars.upstream() as (echo, address):
        mesh = Mesh(home, domain, cp, echo, address)
        await mesh.enrol()
        await mesh.publish(policy(level=5))
        async with (
            sidecars.running(mesh.callee()) as b,
            sidecars.running(mesh.caller(b.inbound["echo"])) as a,
        ):
            await a.enforces(1)
            await b.enforces(1)
            answered = 0
            for _ in range(60):  # in its first second a callee refuses permits
                answer = await sidecars.unary(a.outbound, UNARY, ask(size=1))
                if answer is Reason.PERMIT_UNVERIFIABLE:
                    await asyncio.sleep(0.1)
                    continue
                assert answer == b"\0"
                answered += 1
                if answered == 2:
                    return
            raise AssertionError("no call was answered")


def executed(ledger: Path) -> list[bytes]:
    """Return the executions that were allowed and completed, from a node's ledger, in order."""
    records = [parse_record(frame.record) for frame in Reader(ledger).scan()]
    done = {r.execution_id for r in records if isinstance(r, Outcome)}
    return [r.execution_id for r in records if isinstance(r, Intent) and r.allowed and r.execution_id in done]


def make(home: Path) -> Made:
    """Run the mesh in `home`, and export its last two executions."""
    domain = Domain.create(home / "domain").at(home)
    asyncio.run(_calls(home, domain))
    ledgers = {node: home / node / "data" / LEDGER_DIRECTORY for node in ("a", "b")}
    both = set(executed(ledgers["a"])) & set(executed(ledgers["b"]))
    chosen = tuple(sorted(both))[-2:]
    assert len(chosen) == 2
    data, _ = export_evidence(chosen, ledgers)
    return Made(data, domain.root, (domain.directory / "ca" / "ca.pem").read_bytes(), home, chosen)
