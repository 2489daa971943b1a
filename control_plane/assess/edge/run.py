"""One assessment of a running mesh, from the first look to the grades. Leaves nothing behind but its traces.

Those are records of the reserved method in ledgers and index, entries in the control plane's audit (a join token, a
proposal that was refused and withdrawn, a node that was forgotten), and what detectors made of its attempts.
"""

import asyncio
import contextlib
import importlib.metadata
import secrets
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from control_plane.assess import ordinary
from control_plane.assess.bypass import LOCAL_ONLY
from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.edge import decisions, outage, policies, reactive, records
from control_plane.assess.edge.attempts import Attempts, safe_identity
from control_plane.assess.edge.calls import Identity
from control_plane.assess.edge.collect import Installation, collect
from control_plane.assess.edge.index import past as past_calls
from control_plane.assess.edge.ledgers import ledgers
from control_plane.assess.edge.past import past
from control_plane.assess.edge.permits import Mint, Shown
from control_plane.assess.edge.probe_node import NAME_PREFIX, ProbeNode, Started, listeners_of, services_of
from control_plane.assess.edge.shared import Shared, Stopped, counters
from control_plane.assess.edge.trust import credential
from control_plane.assess.model import Assessment, Check, at, grade
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
_BRIEFLY_S: Final = 2.0  # for records of a node that says it writes none, or did not answer
_SKEW_MS: Final = 5_000
_ABANDONED_MS: Final = (
    10 * 60_000
)  # longer than any run: of a probe node that nobody has heard of for so long
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
        self._recorded: set[str] = set()  # services of which a record has reached the index
        self._stop = threading.Event()

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
            policy = await stack.enter_async_context(Stopped(self._policy(installation, client), self._stop))
            await self._sweep(client)
            node = await self._probe_node(stack, installation)
            if node is not None:
                await reactive.disturb(node, self.run_id)
            await self._services(installation, client, node, started_ms)
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
                    recorded=sorted(self._recorded),
                ),
            )
        self._remarks(installation)
        return self._assessment(installation, started_ms)

    def _check_services(self, installation: Installation) -> None:
        if installation.facts.published_version is None:
            raise StateError(
                Reason.SOURCE_UNAVAILABLE,
                f"the control plane at {self._mesh.control_plane} cannot be asked ({installation.refused}): without it "
                "no level above 0 can be measured; see 'egm doctor'",
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

    async def _guarded(
        self, what: str, work: Awaitable[Sequence[Check]], into: list[Check] | None = None
    ) -> None:
        """Keep the checks; what could not be tried stays unknown, and why is a note of the report."""
        kept = self._checks if into is None else into
        try:
            kept += await work
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
            found += await asyncio.to_thread(
                policies.client_checks, root, source, policies.patient(self._stop)
            )
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
        listeners = listeners_of(self._mesh, list(installation.facts.services))
        turns = asyncio.Semaphore(AT_ONCE)
        mint = None if node is None else await self._mint(installation, node)
        identity, caller = await self._stranger(node)
        calm = identity if node is None else await asyncio.to_thread(node.identity, node.calm)
        shared = Shared(installation, client, node, mint, identity, calm, caller, since_ms)

        async def one(service: str, member: str, address: str) -> None:
            async with turns:
                self._say(f"trying the sidecar of {service} on {member}")
                found = await self._listener(shared, service, member, address)
                several = len(listeners[service]) > 1
                self._checks += [at(member, check) for check in found] if several else found

        async def whole(service: str) -> None:
            await self._guarded(
                f"direct calls to {service}", self._one(past(installation, service, self.run_id))
            )
            await self._guarded(f"decisions about {service}", self._decisions(installation, service))
            await self._guarded(
                f"records of {service}", self._one(self._ordinary(installation, client, service))
            )
            serving = installation.facts.services[service].serving
            read = asyncio.to_thread(ledgers, installation, service, serving)
            await self._guarded(f"ledgers of {service}", read)

        # ledgers are read last: by then they hold records of ours
        every = [(service, *one) for service, nodes in sorted(listeners.items()) for one in nodes.items()]
        await asyncio.gather(*(one(*listener) for listener in every))
        await asyncio.gather(*(whole(service) for service in sorted(listeners)))

    async def _listener(self, shared: Shared, service: str, member: str, address: str) -> list[Check]:
        """Try one sidecar of a service: what one replica does says nothing of the others."""
        installation, node = shared.installation, shared.node
        attempts = Attempts(
            installation,
            service,
            address,
            run=self.run_id,
            identity=shared.identity,
            calm=shared.calm,
            decoy=await asyncio.to_thread(shared.decoy, service),
        )
        found: list[Check] = []
        before = await self._counted(member)
        where = f"{service} on {member}"
        await self._guarded(f"identities at {where}", attempts.identities(), found)
        shown: list[Shown] = []
        if node is not None:
            try:
                if shared.mint is None:
                    raise StateError(Reason.PERMIT_UNVERIFIABLE, "the probe node cannot mint permits")
                checks, shown = await attempts.permits(shared.mint)
                found += checks
            except (MeshError, OSError) as error:
                self._notes.append(f"permits at {where}: {error}"[:300])
        found.append(counters(service, before, await self._counted(member), attempts.answered))
        untrusted = (installation.facts.nodes[member].levels or {}).get(service) == 0  # it writes nothing
        checks, traced = await records.recorded(
            shared.client,
            shared.caller,
            service,
            (member,),
            shared.since_ms,
            shown=shown,
            said=attempts.said,
            patience_s=records.ARRIVAL_S if attempts.alive and not untrusted else _BRIEFLY_S,
        )
        found += checks
        if traced:
            self._recorded.add(service)
        if node is not None:
            lineage = records.lineage(shared.client, service, shown)
            await self._guarded(f"lineage of {where}", self._one(lineage), found)
            endorsements = None if shared.mint is None else shared.mint.endorsements
            proof = records.evidence(
                installation, self._directory, service, (member,), shown, endorsements=endorsements
            )
            await self._guarded(f"evidence of {where}", self._one(proof), found)
        return found

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

    async def _ordinary(self, installation: Installation, client: OperatorClient, service: str) -> Check:
        found, level = (
            await past_calls(client, installation, service),
            installation.facts.services[service].signed_level,
        )
        now_ms = self._clock.now_ms() + installation.facts.skew_ms
        return await asyncio.to_thread(
            ordinary.judge, service, level, installation.engine, found, now_ms=now_ms
        )

    async def _decisions(self, installation: Installation, service: str) -> list[Check]:
        stranger = f"{NAME_PREFIX}{self.run_id}"
        every, strange = await decisions.decisions(installation, self._directory, service, stranger)
        return decisions.judged(installation, service, every, strange)

    async def _counted(self, member: str) -> int | None:
        """Return how many decisions a node has counted; None when it does not answer."""
        try:
            async with operator_client.node(self._mesh, self._directory, member) as client:
                return sum((await client.status()).decisions.values())
        except MeshError:
            return None

    async def _sweep(self, client: OperatorClient) -> None:
        """Forget probe nodes of assessments that were killed: they are no members, and nobody else removes them."""
        if self._probe != FULL:
            return
        with contextlib.suppress(MeshError):  # the probe node of this run does not depend on it
            now_ms = (await client.status()).now_ms
            for one in await client.nodes():
                if one.node.startswith(NAME_PREFIX) and now_ms - one.last_seen_ms > _ABANDONED_MS:
                    await client.forget_node(one.node)

    def _remarks(self, installation: Installation) -> None:
        """Note what a reader of the grade must know, whatever the grade is."""
        facts = installation.facts
        for check in sorted(self._checks, key=lambda one: one.subject):
            if check.id == "bypass-closed" and check.answered.startswith(LOCAL_ONLY):
                self._notes.append(
                    f"{check.subject}: {check.answered}; whoever runs a process there executes without governance. Use "
                    "a Unix socket, or the interceptor's hand-over, where that matters"
                )
        if abs(facts.skew_ms) > _SKEW_MS:
            self._notes.append(
                f"the control plane's clock is {facts.skew_ms / 1000:+.0f} s off this machine's: permits of the probe "
                "node may be refused for their time, and what is called fresh here may not be; set the clocks"
            )
        for name, node in sorted(facts.nodes.items()):
            if node.unreachable and name not in self._mesh.nodes:
                self._notes.append(f"{name}: {node.unreachable}; add it there, or 'egm node forget {name}'")

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


__all__ = ["CRYPTOGRAPHIC", "FULL", "SAFE", "Assessor", "counters"]
