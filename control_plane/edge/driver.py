"""Runs one control plane: opens everything in order, serves until told to stop, drains."""

import asyncio
import functools
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from tuf.api.metadata import Root

from control_plane.config import EMBEDDED_BROKER, ControlPlaneConfig
from control_plane.core.bundle_checks import check_bundles
from control_plane.edge.approvals import ApprovalOffice
from control_plane.edge.broker import EmbeddedBroker
from control_plane.edge.ca import CertificateAuthority
from control_plane.edge.callers import CheckedCallers
from control_plane.edge.data_lock import only_one
from control_plane.edge.denials import DenialDesk
from control_plane.edge.distribution import Announcements, DistributionServicer
from control_plane.edge.fleet import FleetServicer, NodeReports
from control_plane.edge.health import Health
from control_plane.edge.join import JoinServicer
from control_plane.edge.observing import check_channels
from control_plane.edge.operator import OperatorServicer
from control_plane.edge.own_identity import OwnIdentity
from control_plane.edge.publisher import Publisher
from control_plane.edge.records import RecordsServicer
from control_plane.edge.repository_files import RepositoryFiles
from control_plane.edge.responder import responder_signer
from control_plane.edge.retention import Retention
from control_plane.edge.shadow import ShadowDesk
from control_plane.edge.signing import OnlineKeyring
from control_plane.edge.status import StatusSource
from control_plane.edge.store.database import Database
from control_plane.edge.tokens import StoredTokens
from control_plane.edge.watching import Watch
from egm.v1 import distribution_pb2_grpc, join_pb2_grpc, node_pb2_grpc, operator_pb2_grpc, record_pb2_grpc
from trust import limits
from trust.address import split_address
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import FixedInternalErrors
from trust.edge.mqtt import BrokerUrl, MqttAnnouncer
from trust.edge.serving import SteadyServer, new_server
from trust.edge.tls import ServerCredentials, server_options
from trust.errors import InputError, Reason
from trust.mesh import MeshSettings
from trust.repository import RepositoryState, parse_metadata
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

HEALTH_PERIOD_S: Final = 1.0
# No request is larger than the metadata of one proposal; files come in chunks far below that.
MAX_REQUEST_BYTES: Final = 2 * limits.MAX_METADATA_BYTES
Ready = Callable[[dict[str, object]], None]


async def run(config: ControlPlaneConfig, *, ready: Ready, stop: asyncio.Event | None = None) -> None:
    """Run a control plane until SIGTERM or SIGINT (or `stop`, which then replaces the signals).

    Args:
        config: checked configuration.
        ready: called once, when everything answers, with `{"event": "ready", "listen": …, …}`.
        stop: for those who run it inside another program.

    Raises:
        InputError, StateError: it cannot start; the detail says what to do.
    """
    stopping = stop or _signals()
    async with AsyncExitStack() as stack:
        plane = await _open(config, stack)
        addresses = await plane.serve(stack)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in plane.background()]
            ready({"event": "ready", **addresses})
            logger.info("ready: %s", addresses)
            await stopping.wait()  # a background task that fails ends the group, and this wait
            await plane.drain()
            for task in tasks:
                task.cancel()
    logger.info("stopped")


class _Plane:
    """The parts of a running control plane."""

    def __init__(
        self,
        status: StatusSource,
        *,
        reports: NodeReports,
        announcements: Announcements,
        files: RepositoryFiles,
        broker_url: str,
        denials: DenialDesk,
        approvals: ApprovalOffice,
        watch: Watch,
    ) -> None:
        """Take the parts, opened."""
        self._denials, self._approvals, self._watch = denials, approvals, watch
        self._config, self._status, self._reports = status.config, status, reports
        self._announcements, self._files, self._broker_url = announcements, files, broker_url
        self._records = RecordsServicer(
            status.database, status.clock, watch.intake(status), trust_domain=status.config.trust_domain
        )
        self._health = Health()
        self._servers: list[grpc.aio.Server] = []

    async def serve(self, stack: AsyncExitStack) -> dict[str, object]:
        """Start both listeners; return where they are."""
        self._check_health()
        status, clock = self._status, self._status.clock
        tokens = StoredTokens(status.database)
        joining = JoinServicer(status.ca, tokens, clock)
        struck = self._denials.keeper.denials.struck  # witnesses whose word does not count
        operators = OperatorServicer(status, reports=self._reports, tokens=tokens, struck=struck)
        distribution = DistributionServicer(self._files, self._announcements)
        fleet = FleetServicer(self._reports, self._announcements, clock)
        shadow = ShadowDesk(status.database, status.publisher, clock, trust_domain=self._config.trust_domain)

        def add_all(server: grpc.aio.Server) -> None:
            operator_pb2_grpc.add_OperatorServicer_to_server(operators, server)
            distribution_pb2_grpc.add_DistributionServicer_to_server(distribution, server)
            node_pb2_grpc.add_FleetServicer_to_server(fleet, server)
            record_pb2_grpc.add_RecordsServicer_to_server(self._records, server)
            join_pb2_grpc.add_JoinServicer_to_server(joining, server)
            self._denials.add_to(server)
            self._approvals.add_to(server)
            self._watch.add_to(server)
            shadow.add_to(server)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

        def add_join(server: grpc.aio.Server) -> None:
            join_pb2_grpc.add_JoinServicer_to_server(joining, server)

        main, listen = self._bound(self._config.listen, add_all, require_client=True)
        join, join_listen = self._bound(self._config.join_listen, add_join, require_client=False)
        for server in (main, join):
            stack.push_async_callback(server.stop, 0)
            await server.start()
            self._servers.append(server)
        return {
            "name": self._config.name,
            "trust_domain": self._config.trust_domain,
            "listen": listen,
            "advertise": self._config.advertise or listen,
            "join_listen": join_listen,
            "broker": self._broker_url,
            "pid": os.getpid(),
        }

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """Return everything that runs beside the servers."""
        return [
            self._status.publisher.run(),
            self._status.announcer.run(),
            self._status.identity.run(),
            self._reports.run(),
            Retention(
                self._status.database, self._status.clock, days=self._config.index_retention_days
            ).run(),
            self._watch_health(),
            *self._denials.background(),
            *self._watch.background(),
        ]

    async def drain(self) -> None:
        """Take no new calls, let those in flight finish."""
        logger.info("draining")
        self._health.drain()
        self._announcements.close()
        self._records.close()
        self._denials.member.close()
        await asyncio.gather(*(server.stop(limits.DRAIN_GRACE_S) for server in self._servers))
        await self._watch.close()

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S)
            self._check_health()

    def _check_health(self) -> None:
        self._health.set_serving(not self._status.unhealthy())

    def _bound(
        self, address: str, add: Callable[[grpc.aio.Server], None], *, require_client: bool
    ) -> tuple[SteadyServer, str]:
        """Return a bound server for what `add` registers, and its real address.

        Args:
            address: "host:port".
            add: registers the services; called again whenever the server must be built again.
            require_client: only callers with a certificate of the mesh, checked again at every call.
        """
        identity = self._status.identity
        credentials = ServerCredentials(identity.source, identity.spiffe_id, require_client=require_client)
        options = dict(server_options()) | {"grpc.max_receive_message_length": MAX_REQUEST_BYTES}
        interceptors: list[Any] = [FixedInternalErrors()]
        if require_client:
            interceptors.append(
                CheckedCallers(trust_domain=self._config.trust_domain, clock=self._status.clock)
            )

        def build(at: str) -> tuple[grpc.aio.Server, int]:
            server = new_server(interceptors=interceptors, options=list(options.items()))
            add(server)
            return server, server.add_secure_port(at, credentials())

        try:
            server = SteadyServer(build, address)
        except RuntimeError:
            raise InputError(
                Reason.CONFIG_INVALID, f"cannot listen on {address}; is another process using that port?"
            ) from None
        return server, f"{address.rpartition(':')[0]}:{server.port}"


async def _open(config: ControlPlaneConfig, stack: AsyncExitStack) -> _Plane:
    """Open store, keys, CA, broker and repository, in the order in which each needs the other."""
    clock = SystemClock()
    stack.enter_context(only_one(config.data_dir))
    root = await asyncio.to_thread(_read_root, config.root)
    ca = await asyncio.to_thread(CertificateAuthority.open, config.ca)
    me = SpiffeId.of(config.trust_domain, "control-plane", config.name)
    identity = await asyncio.to_thread(OwnIdentity, ca, me, config.identity, clock)
    keyring = await asyncio.to_thread(OnlineKeyring.open, config.online_keys)
    database = Database(config.store_url())
    stack.push_async_callback(database.close)
    await database.migrate()
    announcements = Announcements()
    broker, shown = await stack.enter_async_context(_broker(config))
    announcer = MqttAnnouncer(broker, config.trust_domain)

    async def announce(timestamp_json: bytes) -> None:
        announcements.publish(timestamp_json)
        await announcer.announce(timestamp_json)

    make = functools.partial(DenialDesk, identity=identity.source, root=root, clock=clock, broker=broker)
    denials = await asyncio.to_thread(
        make, config.data_dir, me, secrets.token_hex(8), timestamp=announcements.newest
    )
    approvals = ApprovalOffice(database, clock, trust_domain=config.trust_domain)

    def govern(mesh: MeshSettings) -> None:
        denials.govern(mesh)
        approvals.govern(mesh)

    files = RepositoryFiles(config.data_dir / "repository")
    check = functools.partial(check_bundles, trust_domain=config.trust_domain)
    publisher = Publisher(
        database,
        files,
        keyring,
        clock,
        announce=announce,
        check=check,
        renew_fraction=config.renew_fraction,
        governed=govern,
    )
    denials.policy = lambda: publisher.base
    await publisher.start(root, config.root)
    keyring.for_root(publisher.state)  # a control plane with the wrong keys must not look ready
    reports = NodeReports(database)
    await reports.load()
    status = StatusSource(config, database, publisher, announcer, identity, ca, clock)
    watch = await Watch.open(status, reports=reports, keeper=denials.keeper, broker=broker)
    stack.callback(watch.observing.close)
    approvals.opened = watch.observing.ticket_opened
    return _Plane(
        status,
        reports=reports,
        announcements=announcements,
        files=files,
        broker_url=shown,
        denials=denials,
        approvals=approvals,
        watch=watch,
    )


@asynccontextmanager
async def _broker(config: ControlPlaneConfig) -> AsyncIterator[tuple[BrokerUrl, str]]:
    """Give the URL to publish to, and the one that listeners use (without credentials)."""
    scheme, _, address = config.broker.partition("://")
    if scheme != EMBEDDED_BROKER:
        url = BrokerUrl.parse(config.broker)
        yield url, str(url)
        return
    host, port = split_address(address) if address else ("127.0.0.1", 0)
    broker = EmbeddedBroker(host, port, data_dir=config.data_dir)
    shown = await broker.start()
    try:
        yield BrokerUrl.parse(broker.publisher_url), shown
    finally:
        await broker.stop()


def _signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def check(config: ControlPlaneConfig) -> Mapping[str, object]:
    """Open every file that the configuration names, start nothing, and return what may be shown of it.

    Raises:
        InputError: the first thing that would keep a control plane from starting.
    """
    state = RepositoryState(root=_read_root(config.root))
    OnlineKeyring.open(config.online_keys).for_root(state)
    responder_signer(config)
    ca = CertificateAuthority.open(config.ca)
    if ca.trust_domain != config.trust_domain:
        raise InputError(
            Reason.CONFIG_INVALID,
            f"ca: {config.ca} is the CA of {ca.trust_domain}, but trust_domain is {config.trust_domain}",
        )
    check_channels(config)
    if not config.broker.startswith(EMBEDDED_BROKER):
        BrokerUrl.parse(config.broker)
    return {
        "name": config.name,
        "trust_domain": config.trust_domain,
        "listen": config.listen,
        "join_listen": config.join_listen,
        "store": config.store_kind(),
        "data_dir": str(config.data_dir),
        "ca_not_after_ms": ca.not_after_ms,
    }


def _read_root(path: Path) -> bytes:
    try:
        root = path.read_bytes()
    except OSError as error:
        raise InputError(
            Reason.CONFIG_INVALID, f"root: {error}; it is the root.json that 'egm init' wrote"
        ) from None
    parse_metadata(root, Root)
    return root
