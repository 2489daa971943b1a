"""One assessment of a running mesh, from the first look to the grades. Leaves nothing behind but its traces.

Those are records of the reserved method in ledgers and index, entries in the control plane's audit (a join token, a
proposal that was refused and withdrawn, a node that was forgotten), and what detectors made of its attempts.
"""

import asyncio
import importlib.metadata
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.edge import decisions, outage, policies, reactive, records
from control_plane.assess.edge.attempts import Attempts, safe_identity
from control_plane.assess.edge.calls import Identity
from control_plane.assess.edge.collect import Installation, collect
from control_plane.assess.edge.permits import Mint, Shown
from control_plane.assess.edge.probe_node import NAME_PREFIX, ProbeNode, Started, services_of
from control_plane.assess.edge.trust import credential
from control_plane.assess.model import Assessment, Basis, Check, Outcome, grade
from control_plane.assess.observations import CRYPTOGRAPHIC, observe
from control_plane.edge import operator_client
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.release import Release
from trust.edge.clock import SystemClock
from trust.errors import InputError, MeshError, Reason, StateError

FULL: Final = "full"
SAFE: Final = "safe"
AT_ONCE: Final = 8  # services that are tried at the same time
_PROBE_NODE: Final = "no probe node in a safe assessment; run egm assess --probe full"

Say = Callable[[str], None]


class Assessor:
    """Assesses one mesh once."""

    def __init__(
        self,
        mesh: MeshFile,
        directory: Path,
        *,
        probe: str = FULL,
        only: str | None = None,
        say: Say = lambda _: None,
        started: Started = lambda _name, _process: None,
    ) -> None:
        """Prepare.

        Args:
            mesh: the address book.
            directory: of the mesh.
            probe: "safe" tries only what needs no new member of the mesh; "full" adds a probe node and a proposal.
            only: one service alone.
            say: told what is being done.
            started: told of the probe node's process.
        """
        self._mesh, self._directory, self._probe, self._only, self._say = mesh, directory, probe, only, say
        self._started = started
        self.run_id = secrets.token_hex(6)
        self._clock = SystemClock()
        self._checks: list[Check] = []
        self._notes: list[str] = []

    async def run(self) -> Assessment:
        """Return the assessment.

        Raises:
            MeshError: there is no service to assess, the operator's credentials cannot be used, or the control plane
                does not answer (SOURCE_UNAVAILABLE).
        """
        started_ms = self._clock.now_ms()
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(operator_client.operator(self._mesh, self._directory))
            self._say("looking at policy, nodes and control plane")
            installation = await collect(self._mesh, self._directory, client, self._only)
            self._check_services(installation)
            self._checks += observe(installation.facts)
            policy = asyncio.create_task(self._policy(installation, client))
            node = await self._probe_node(stack, installation)
            try:
                if node is not None:
                    await reactive.disturb(node, self.run_id)
                await self._services(installation, client, node, started_ms)
            finally:
                self._checks += await policy
            if node is not None:
                self._say("letting the lease of the probe node run out")
                await self._guarded("outage", self._outage(installation, node))
            self._say("looking at alerts, analytics, detection and incidents")
            callers = await self._callers(node)
            await self._guarded(
                "levels 1 and 2",
                reactive.checks(
                    installation,
                    self._directory,
                    client,
                    node,
                    callers=callers,
                    run=self.run_id,
                    since_ms=started_ms,
                ),
            )
        return self._assessment(installation, started_ms)

    def _check_services(self, installation: Installation) -> None:
        if installation.facts.published_version is None:
            raise StateError(
                Reason.SOURCE_UNAVAILABLE,
                f"the control plane at {self._mesh.control_plane} does not answer: without it no level above 0 can be "
                "measured; start it, see 'egm doctor'",
            )
        if not installation.facts.services:
            raise InputError(
                Reason.NOT_FOUND,
                "there is no service in this mesh: neither signed policy nor a node names one",
            )
        if self._only is not None and not installation.facts.services[self._only].serving:
            known = sorted({service for node in self._mesh.nodes.values() for service in node.inbound})
            raise InputError(
                Reason.NOT_FOUND,
                f"no node of this mesh serves {self._only!r}, only: {', '.join(known) or 'none'}; a service that is "
                "not behind the mesh is graded with --target HOST:PORT",
            )

    async def _guarded(self, what: str, work: Awaitable[Sequence[Check]]) -> None:
        """Keep the checks; what could not be tried stays unknown, and why is a note of the report."""
        try:
            self._checks += await work
        except MeshError as error:
            self._notes.append(f"{what}: {error.reason}: {error.detail[:300]}")
        except (OSError, ValueError) as error:
            self._notes.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")

    # the mesh as a whole

    async def _policy(self, installation: Installation, client: OperatorClient) -> list[Check]:
        found: list[Check] = []
        if installation.in_force is None or installation.in_force.policy is None:
            return found
        found.append(policies.short_quorum(installation.in_force))
        release = Release(self._mesh, self._directory, client)
        root = await asyncio.to_thread(Path(self._mesh.root).read_bytes)
        source = policies.source_of(self._mesh, self._directory)
        try:
            found += await asyncio.to_thread(policies.client_checks, root, source, time.sleep)
        except MeshError as error:
            self._notes.append(f"policy client: {error.reason}: {error.detail[:200]}")
        finally:
            source.close()
        if self._probe == FULL:
            found.append(await policies.unsigned(installation, release, client))
        return found

    async def _probe_node(self, stack: AsyncExitStack, installation: Installation) -> ProbeNode | None:
        if self._probe != FULL:
            self._notes.append(_PROBE_NODE)
            return None
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="egm-assess-")))
        services = services_of(self._mesh, list(installation.facts.services))
        if not services:
            return None
        self._say("starting a probe node")
        try:
            node = await stack.enter_async_context(
                ProbeNode(self._mesh, self._directory, home, services, started=self._started)
            )
            attested = bool(installation.facts.policy.witnesses)
            if not await node.until("FRESH", attested=attested):
                status = await node.status()
                why = "; ".join(status.not_ready) or status.state
                self._notes.append(f"the probe node did not become ready: {why[:300]}")
        except MeshError as error:
            self._notes.append(f"the probe node could not be started: {error.reason}: {error.detail[:300]}")
            return None
        if attested:
            await self._guarded("trust credential", credential(installation, node))
        return node

    async def _outage(self, installation: Installation, node: ProbeNode) -> list[Check]:
        engine = installation.engine
        lease_s = 0 if engine is None else engine.mesh.lease.ttl_s + engine.mesh.lease.grace_s
        return await outage.outage(node, sorted(node.outbound), run=self.run_id, lease_s=lease_s)

    # one service

    async def _services(
        self, installation: Installation, client: OperatorClient, node: ProbeNode | None, since_ms: int
    ) -> None:
        addresses = services_of(self._mesh, list(installation.facts.services))
        turns = asyncio.Semaphore(AT_ONCE)
        mint = None if node is None else await self._mint(installation, node)

        async def one(service: str, address: str) -> None:
            async with turns:
                self._say(f"trying the sidecar of {service}")
                await self._service(installation, client, node, mint, service, address, since_ms)

        await asyncio.gather(*(one(service, address) for service, address in sorted(addresses.items())))

    async def _service(  # noqa: PLR0917 (what it is about)
        self,
        installation: Installation,
        client: OperatorClient,
        node: ProbeNode | None,
        mint: Mint | None,
        service: str,
        address: str,
        since_ms: int,
    ) -> None:
        identity, caller = await self._stranger(node)
        calm = identity if node is None else await asyncio.to_thread(node.identity, node.calm)
        attempts = Attempts(installation, service, address, run=self.run_id, identity=identity, calm=calm)
        serving = installation.facts.services[service].serving
        before = await self._counted(serving)
        await self._guarded(f"identities at {service}", attempts.identities())
        await self._guarded(f"direct calls to {service}", self._one(attempts.bypass()))
        await self._guarded(f"decisions about {service}", self._decisions(installation, service))
        shown: list[Shown] = []
        endorsements: Path | None = None
        if node is not None:
            try:
                if mint is None:
                    raise StateError(Reason.PERMIT_UNVERIFIABLE, "the probe node cannot mint permits")
                endorsements = mint.endorsements
                checks, shown = await attempts.permits(mint)
                self._checks += checks
            except (MeshError, OSError) as error:
                self._notes.append(f"permits at {service}: {error}"[:300])
        self._checks.append(counters(service, before, await self._counted(serving)))
        found, _ = await records.recorded(client, caller, service, serving, since_ms, permits=bool(shown))
        self._checks += found
        if node is not None:
            await self._guarded(f"lineage of {service}", self._one(records.lineage(client, service, shown)))
            proof = records.evidence(
                installation, self._directory, service, serving, shown, endorsements=endorsements
            )
            await self._guarded(f"evidence of {service}", self._one(proof))
        ledgers = asyncio.to_thread(records.ledgers, installation, service, serving)
        await self._guarded(f"ledgers of {service}", ledgers)

    async def _stranger(self, node: ProbeNode | None) -> tuple[Identity, str]:
        if node is not None:
            return await asyncio.to_thread(node.identity, node.workload), str(node.workload)
        directory = Path(self._mesh.operator)
        directory = directory if directory.is_absolute() else self._directory / directory
        identity = await asyncio.to_thread(safe_identity, directory)
        from trust.x509 import spiffe_id_of

        return identity, str(spiffe_id_of(identity.chain))

    async def _callers(self, node: ProbeNode | None) -> list[str]:
        """Return everybody who calls for us."""
        if node is not None:
            return [str(node.workload), str(node.calm), str(node.noisy)]
        return [(await self._stranger(None))[1]]

    async def _mint(self, installation: Installation, node: ProbeNode) -> Mint | None:
        policy = None if installation.in_force is None else installation.in_force.policy
        version, sha256 = (0, "00" * 32) if policy is None else (policy.base.version, policy.base.sha256)
        try:
            return await asyncio.to_thread(Mint, node, policy_version=version, policy_sha256=sha256)
        except MeshError as error:
            self._notes.append(f"the probe node cannot mint permits: {error.detail[:200]}")
            return None

    @staticmethod
    async def _one(work: Awaitable[Check]) -> list[Check]:
        return [await work]

    async def _decisions(self, installation: Installation, service: str) -> list[Check]:
        stranger = f"{NAME_PREFIX}{self.run_id}"
        every, strange = await decisions.decisions(installation, self._directory, service, stranger)
        return decisions.judged(installation, service, every, strange)

    async def _counted(self, serving: Sequence[str]) -> int | None:
        """Return how many decisions the serving nodes have counted; None when one does not answer."""
        total = 0
        for name in serving:
            try:
                async with operator_client.node(self._mesh, self._directory, name) as client:
                    total += sum((await client.status()).decisions.values())
            except MeshError:
                return None
        return total

    def _assessment(self, installation: Installation, started_ms: int) -> Assessment:
        facts, catalogue = installation.facts, load_catalogue()
        grades = tuple(
            grade(catalogue, name, self._checks, signed_level=service.signed_level)
            for name, service in sorted(facts.services.items())
        )
        return Assessment(
            run=self.run_id,
            started_ms=started_ms,
            ended_ms=self._clock.now_ms(),
            target=self._mesh.trust_domain,
            probe=self._probe,
            policy_version=facts.policy.version,
            version=importlib.metadata.version("egmesh"),
            services=grades,
            notes=tuple(self._notes),
        )


def counters(service: str, before: int | None, after: int | None) -> Check:
    """Judge the counters of decisions around our calls."""
    name, tried = "counters-moving", "read the node's counters of decisions before and after its own calls"
    if before is None or after is None:
        return Check(name, service, Outcome.UNKNOWN, Basis.PROBED, tried, "a node does not show its counters")
    evidence = {"before": str(before), "after": str(after)}
    if after > before:
        return Check(name, service, Outcome.HELD, Basis.PROBED, tried, "they counted the calls", evidence)
    return Check(name, service, Outcome.FAILED, Basis.PROBED, tried, "they did not move", evidence)


__all__ = ["CRYPTOGRAPHIC", "FULL", "SAFE", "Assessor", "counters"]
