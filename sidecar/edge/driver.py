"""One sidecar, from configuration to drained: starts the parts in order, keeps them going, stops them in order.

Order of start: health, identity, listeners (which refuse, without policy), policy from disk, feeds and reports.
Order of stop: health says NOT_SERVING, listeners drain, the rest ends.
"""

import asyncio
import contextlib
import functools
import logging
import secrets
import signal
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import grpc.aio

from egm.v1 import credentials_pb2_grpc, node_pb2_grpc
from sidecar.config import SidecarConfig
from sidecar.core.bundle_state import BundleState
from sidecar.core.pipeline import Pipeline
from sidecar.core.readiness import Alarms
from sidecar.core.trust_state import TrustState
from sidecar.edge import telemetry
from sidecar.edge.admin import NodeServicer
from sidecar.edge.announcer import Announcer, Ready
from sidecar.edge.approvals import ApprovalDuty, approval_duty
from sidecar.edge.attestation import Attestation
from sidecar.edge.attestation_parts import Parts as AttestationParts
from sidecar.edge.attestation_parts import accepted_builds
from sidecar.edge.callees import Callees
from sidecar.edge.callers import CallerWatch
from sidecar.edge.credentials import CredentialClient, CredentialsServicer
from sidecar.edge.health import Health
from sidecar.edge.journal import LogJournal
from sidecar.edge.listeners import Listeners, Parts, own_server
from sidecar.edge.members import make_identity, members, read_root, start_patiently
from sidecar.edge.membership import Membership
from sidecar.edge.meter_file import MeterDuty, opened_budgets
from sidecar.edge.policy_keeper import PolicyKeeper
from sidecar.edge.policy_sources import control_plane_files, policy_feed
from sidecar.edge.provenance import CREDENTIALS_DIRECTORY, Provenance
from sidecar.edge.record_file import load_record
from sidecar.edge.reports import Reporter
from sidecar.edge.shadow import ShadowRunner
from sidecar.edge.status import NodeView
from sidecar.edge.upstream import UPSTREAM_OPTIONS
from trust.attestation.credential import Credential
from trust.edge.clock import SystemClock
from trust.edge.credential_files import KeptCredentials
from trust.edge.mqtt import BrokerUrl
from trust.edge.tls import Channels, ServerCredentials, server_options
from trust.edge.tuf_client import PolicyClient
from trust.ports import Clock

logger = logging.getLogger(__name__)


async def run(
    config: SidecarConfig,
    *,
    ready: Ready = lambda _event: None,
    stop: asyncio.Event | None = None,
    clock: Clock | None = None,
) -> None:
    """Run one sidecar until SIGTERM, SIGINT or `stop`; then drain.

    Args:
        config: validated.
        ready: told {"event": "listening", ...} when every listener is bound, and {"event": "ready-to-serve",
            ...} when the node first became ready.
        stop: set it to stop, where there are no signals (tests).
        clock: real or fake.

    Raises:
        InputError: CONFIG_INVALID and others: the configuration cannot work; says what to change.
        MeshError: the control plane refused this node (a used token), or the disk holds damaged state.
    """
    sidecar = Sidecar(config, ready=ready, stop=stop or asyncio.Event(), clock=clock or SystemClock())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sidecar.stop.set)
    try:
        await sidecar.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class Sidecar:
    """The parts of one process and their order."""

    def __init__(self, config: SidecarConfig, *, ready: Ready, stop: asyncio.Event, clock: Clock) -> None:
        """Make what needs neither network nor identity; reads the root and the lease record."""
        self.config, self.stop, self.clock = config, stop, clock
        self.broker = BrokerUrl.parse(config.broker)
        self._record_path = config.data_dir / "policy-state.json"
        self._changed, doubtful = asyncio.Event(), asyncio.Event()
        boot_id = secrets.token_hex(8)
        alarms = Alarms()
        state = BundleState(load_record(self._record_path), monotonic_ms=clock.monotonic_ms())
        root = read_root(config.root)
        self.client = PolicyClient(config.data_dir / "tuf", root, clock=clock)
        self.identity, self.jwt = make_identity(config, clock)
        self.membership = Membership(
            config,
            root,
            boot_id=boot_id,
            client=self.client,
            identity=self.identity,
            clock=clock,
            trusted_now_ms=lambda: state.trusted_now_ms(clock.now_ms(), clock.monotonic_ms()),
            alarms=alarms,
            changed=self._denials_changed,
        )
        self._kept = KeptCredentials(config.data_dir / CREDENTIALS_DIRECTORY, clock.now_ms)
        self.trust = TrustState(
            config.spiffe_id("node", config.node),
            lambda: None if state.in_force is None else state.in_force.engine.mesh,
            references=lambda: accepted_builds(state.in_force),
            trusted=lambda now_ms: state.trusted_now_ms(now_ms, clock.monotonic_ms()),
            denials=self.membership.denials.denials,
            verified=self._verified,
        )
        self.pipeline = Pipeline(
            node=config.node,
            trust_domain=config.trust_domain,
            boot_id=boot_id,
            state=state,
            clock=clock,
            local_level=config.level,
            journal=LogJournal(alarms),
            doubtful=doubtful.set,
            denials=self.membership.denials.denials,
            attested=self.trust.attested,
            vouched=lambda caller, now_ms: self.trust.check_caller(caller, now_ms=now_ms),
        )
        services = {one.service for one in config.inbound} | {one.service for one in config.outbound}
        self.view = NodeView(
            node=config.node,
            boot_id=boot_id,
            services=frozenset(services),
            members=members(config),
            state=state,
            pipeline=self.pipeline,
            alarms=alarms,
            clock=clock,
            started_ms=clock.now_ms(),
        )
        self.health = Health()
        self.announcer = Announcer(self.view, self.health, ready, self._changed)
        self.source = self.membership.source(control_plane_files(config, self.identity))
        self.keeper = PolicyKeeper(
            client=self.client,
            source=self.source,
            state=state,
            pipeline=self.pipeline,
            clock=clock,
            record_path=self._record_path,
            alarms=alarms,
            trust_domain=config.trust_domain,
            local_level=config.level,
            changed=self._changed.set,
            doubtful=doubtful,
            swapped=self.membership.swapped,
        )
        self.provenance: Provenance | None = None
        self.approvals: ApprovalDuty | None = None  # set when it serves
        self.callees = Callees(config, lambda: state.in_force)
        self._own_servers: list[grpc.aio.Server] = []

    async def run(self) -> None:
        """Start, serve until `stop`, drain."""
        background: list[asyncio.Task[None]] = []
        watch = telemetry.start(self.view, self.config.trust_domain)
        try:
            await self._serve_health()
            background.append(asyncio.create_task(self.announcer.mirror(), name="readiness"))
            if not await self._identity_or_stop():
                return
            background.append(asyncio.create_task(self.identity.run(), name="identity"))
            await self._serve(background, watch)
        finally:
            await _cancel(background)
            await asyncio.gather(*(server.stop(0) for server in self._own_servers))
            self.keeper.checkpoint()
            self.source.close()
            if watch is not None:
                await asyncio.to_thread(watch.shutdown)

    async def _serve(self, background: list[asyncio.Task[None]], watch: "telemetry.Telemetry | None") -> None:
        async with contextlib.AsyncExitStack() as closing:  # the last first, wherever this ends
            channels = Channels(self.identity, options=UPSTREAM_OPTIONS)
            closing.push_async_callback(channels.close)
            self.provenance = provenance = await Provenance.open(
                self.config,
                identity=self.identity,
                channels=channels,
                pipeline=self.pipeline,
                state=self.view.state,
                callee=self.callees.callee,
                boot_id=self.view.boot_id,
                clock=self.clock,
                alarms=self.view.alarms,
                trust=self.trust,
                credentials=self._kept,
            )
            closing.push_async_callback(provenance.close)
            budgets = opened_budgets(self.config.data_dir, self.pipeline.meters, self.view.state, self.clock)
            closing.push_async_callback(budgets.close)
            provenance.notary.duties.add(MeterDuty(budgets))
            self.approvals = approvals = approval_duty(
                self.config, channels, self.view.state, self.clock, self.view.alarms
            )
            provenance.notary.duties.add(approvals)
            attestation = self._attestation(provenance, channels)
            self.view.attestation = attestation.status
            listeners = Listeners(
                Parts(
                    self.config,
                    self.pipeline,
                    self.identity,
                    channels,
                    self.clock,
                    self.callees.signed_workload,
                    watch,
                    provenance.notary,
                    self.jwt,
                )
            )
            closing.push_async_callback(listeners.stop, 0)
            addresses = await listeners.start()
            await self._serve_admin(attestation)
            self.view.listening = True
            self.announcer.listening(addresses)
            await self.keeper.resume()
            reporter = self._reporter(channels)
            feed = policy_feed(self.config, self.identity, self.keeper, self.broker, self.clock)
            self.membership.announced, self.membership.head = feed.offer, provenance.head
            loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
                "policy": self.keeper.run,
                "feed": feed.run,
                "reports": reporter.run,
                "shadow": self._shadow(channels).run,
                "provenance": provenance.run,
                "attestation": attestation.run,
                "callers": self._callers(provenance, channels).run,
                "approvals": approvals.run,
                "changes": functools.partial(self.announcer.run, addresses, reporter),
                **self.membership.start(channels, self.broker),
            }
            background += [asyncio.create_task(part(), name=name) for name, part in loops.items()]
            self.view.archiving, self.view.held = provenance.archiving, lambda: approvals.held
            self.view.notes = lambda: (
                *feed.notes(),
                *self.callees.notes(),
                *provenance.notes(),
                *self.membership.notes(),
                *budgets.notes(),
            )
            await self._until_stopped(background)
            self.view.draining = True
            await self.announcer.show()
            logger.info("draining for at most %s s", self.config.limits.drain_grace_s)
            await asyncio.gather(listeners.stop(self.config.limits.drain_grace_s), reporter.report())

    async def _until_stopped(self, background: list[asyncio.Task[None]]) -> None:
        """Wait for `stop`; a part that ends by itself is a bug or a dead end, and ends the process with it."""
        stopped = asyncio.create_task(self.stop.wait())
        try:
            done, _ = await asyncio.wait([stopped, *background], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        for task in done - {stopped}:
            task.result()
            raise RuntimeError(f"{task.get_name()} ended")

    async def _identity_or_stop(self) -> bool:
        """Wait for certificates; False when told to stop meanwhile."""

        def waiting(why: str) -> None:
            self.view.alarms.set("identity", why)

        starting = asyncio.create_task(start_patiently(self.identity.start, waiting))
        stopped = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return False
            await starting
        finally:
            await _cancel([starting, stopped])
        self.view.alarms.clear("identity")
        self.view.identity = self.identity
        self.identity.subscribe(self.source.rotate)
        return True

    # parts

    def _verified(self, credential: Credential) -> None:
        """Take a caller's credential: it is kept for evidence, and compared with what else was vouched for."""
        self._kept.peers.note(credential)
        self.membership.vouched(credential.data)

    def _attestation(self, provenance: Provenance, channels: Channels) -> Attestation:
        if provenance.signer is None:
            raise AssertionError("opened without a signer")
        return Attestation(
            AttestationParts(
                config=self.config,
                identity=self.identity,
                channels=channels,
                state=self.view.state,
                trust=self.trust,
                ledger=provenance.ledger,
                signer=provenance.signer,
                boot_id=self.view.boot_id,
                clock=self.clock,
                alarms=self.view.alarms,
                turned=self._denials_changed,
                addresses=self.membership.peers.addresses,
                gained=lambda credential: self.membership.gained(credential.data),
                accused=self.membership.contradicted,
                witnessed=self.membership.witnessed,
                quarantined=self.membership.denials.denied_nodes,
            )
        )

    def _callers(self, provenance: Provenance, channels: Channels) -> CallerWatch:
        """Return what keeps the streams of attested nodes open."""
        known = self.membership.peers.addresses
        client = CredentialClient(
            self.membership.me, channels, self.identity, known=known, told=self.trust.address_of
        )
        provenance.notary.fetch_from(client.by_digest, lambda: self.view.admin_address)
        return CallerWatch(self.trust, self.pipeline, client, self.clock)

    def _denials_changed(self) -> None:
        self.pipeline.governance_changed()

    def _reporter(self, channels: Channels) -> Reporter:
        return Reporter(
            channels,
            self.config.control_plane.addresses,
            node=self.config.spiffe_id("node", self.config.node),
            status=lambda: self.view.reported(self.trust.own()),
            period_s=self.config.limits.report_period_s,
            peers=self.membership.named,
        )

    def _shadow(self, channels: Channels) -> ShadowRunner:
        return ShadowRunner(
            channels,
            self.config.control_plane.addresses,
            node=self.config.spiffe_id("node", self.config.node),
            boot_id=self.view.boot_id,
            client=self.client,
            state=self.view.state,
            pipeline=self.pipeline,
            clock=self.clock,
            local_level=self.config.level,
        )

    async def _serve_health(self) -> None:
        await self.announcer.show()
        if self.config.health is None:
            return
        server, address = own_server(self.health.add_to, self.config.health.listen)
        self._own_servers.append(server)
        await server.start()
        logger.info("health on %s", address)

    async def _serve_admin(self, attestation: Attestation) -> None:
        def add(server: grpc.aio.Server) -> None:
            servicer = NodeServicer(self.view, self.config.trust_domain)
            node_pb2_grpc.add_NodeServicer_to_server(servicer, server)
            self.membership.add_to(server)
            attestation.add_to(server)
            own = CredentialsServicer(self.trust.own, self.membership.check)
            credentials_pb2_grpc.add_CredentialsServicer_to_server(own, server)
            self.health.add_to(server)

        node = self.config.spiffe_id("node", self.config.node)
        credentials = ServerCredentials(self.identity, node)
        server, address = own_server(add, self.config.admin.listen, credentials, server_options())
        self._own_servers.append(server)
        await server.start()
        self.view.admin_address = self.config.admin.told(address)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    started = list(tasks)
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)
