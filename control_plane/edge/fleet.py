"""Nodes' reports: kept in memory at once, written to the store in batches, so that a large fleet costs few writes."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

import grpc.aio

from control_plane.core.fleet import Change, check_report, check_room, is_change
from control_plane.core.text import one_line
from control_plane.edge.callers import current_caller
from control_plane.edge.distribution import Announcements
from control_plane.edge.store import fleet
from control_plane.edge.store.database import Database
from egm.v1 import node_pb2, node_pb2_grpc, operator_pb2
from trust import limits
from trust.announce import parse_announcement
from trust.errors import EvidenceError, Reason, StateError
from trust.ports import Clock
from trust.x509 import validity

logger = logging.getLogger(__name__)

FLUSH_PERIOD_S: Final = 1.0
_MAX_CHANGES: Final = 10 * limits.MAX_NODE_HISTORY  # of all nodes, that wait for the store
_STATE_CHARS: Final = 32  # as wide as the columns (control_plane.edge.store.models.node_history)
_LEASE_CHARS: Final = 16
Context = grpc.aio.ServicerContext[Any, Any]


class Reports(Protocol):
    """What nodes last said; `NodeReports` is one."""

    async def records(self) -> Sequence[fleet.StoredNode]:
        """Return the last report of every node."""


class NodeReports:
    """The last report of every node this control plane heard of since it started."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[str] = set()
        self._addresses: dict[str, str] = {}  # of admin listeners
        self._ring: dict[str, int] = {}  # node -> place in `_in_order`; empty: to be made anew
        self._in_order: list[str] = []
        self._pending: dict[str, fleet.StoredNode] = {}
        self._changes: list[tuple[str, int, Change]] = []
        self._last: dict[str, Change] = {}
        self._flushing = asyncio.Lock()

    def peers_of(self, node: str) -> list[tuple[str, str]]:
        """Return other nodes and where they answer, at most MAX_PEERS: those that follow `node` on a ring of digests.

        So every node is named to as many others as it is told of, and a change moves few.
        """
        if not self._ring:
            names = sorted(self._addresses, key=lambda name: hashlib.sha256(name.encode()).digest())
            self._ring = {name: place for place, name in enumerate(names)}
            self._in_order = names
        count, start = len(self._in_order), self._ring.get(node, -1) + 1
        places = range(start, start + min(count, limits.MAX_PEERS + 1))
        chosen = [name for place in places if (name := self._in_order[place % count]) != node]
        return [(name, self._addresses[name]) for name in chosen[: limits.MAX_PEERS]]

    async def load(self) -> None:
        """Learn which nodes the store knows."""
        async with self._database.read() as connection:
            for stored in await fleet.all_nodes(connection):
                self._known.add(stored.node)
                self._reached(stored.node, operator_pb2.NodeStatus.FromString(stored.status).admin_address)
                self._last[stored.node] = _change(operator_pb2.NodeStatus.FromString(stored.status))

    def take(self, status: operator_pb2.NodeStatus, *, at_ms: int, certificate_not_after_ms: int) -> None:
        """Keep one report.

        Raises:
            CapacityError: LIMIT_EXCEEDED, for a new node when there are too many.
        """
        node = status.node
        check_room(len(self._known), is_new=node not in self._known)
        self._known.add(node)
        self._reached(node, status.admin_address)
        self._pending[node] = fleet.StoredNode(
            node, at_ms, certificate_not_after_ms, status.SerializeToString()
        )
        change = _change(status)
        if is_change(self._last.get(node), change):
            self._last[node] = change
            self._changes.append((node, at_ms, change))
            del self._changes[:-_MAX_CHANGES]  # bounded also while the store is away

    def forget(self, node: str) -> None:
        """Forget what `node` said; should it report again, it is listed again."""
        self._known.discard(node)
        self._addresses.pop(node, None)
        self._ring = {}
        self._pending.pop(node, None)
        self._last.pop(node, None)
        self._changes = [change for change in self._changes if change[0] != node]

    def _reached(self, node: str, address: str) -> None:
        if address:
            if node not in self._addresses:
                self._ring = {}
            self._addresses[node] = address[: limits.MAX_ADDRESS_CHARS]

    async def flush(self) -> None:
        """Write what is pending; after a failure it stays pending."""
        async with self._flushing:
            pending, self._pending = self._pending, {}
            changes, self._changes = self._changes, []
            if not pending and not changes:
                return
            try:
                async with self._database.write() as connection:
                    # in one order, so that two control planes never deadlock
                    await fleet.save_nodes(connection, [pending[node] for node in sorted(pending)])
                    for node, at_ms, change in changes:
                        await fleet.add_history(
                            connection,
                            node,
                            at_ms=at_ms,
                            state=change.state,
                            policy_version=change.policy_version,
                            lease=change.lease,
                            keep=limits.MAX_NODE_HISTORY,
                        )
            except BaseException:
                self._pending = pending | self._pending
                self._changes = changes + self._changes
                raise

    async def run(self) -> None:
        """Flush from time to time until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(FLUSH_PERIOD_S)
                try:
                    await self.flush()
                except StateError as error:
                    logger.warning("node reports cannot be stored, will retry: %s", error)
        finally:
            with contextlib.suppress(StateError):  # reported above already, or the store closed first
                await self.flush()

    async def records(self) -> list[fleet.StoredNode]:
        """Return the last report of every node, also those that other control planes received."""
        await self.flush()
        async with self._database.read() as connection:
            return await fleet.all_nodes(connection)


class FleetServicer(node_pb2_grpc.FleetServicer):
    """egm.v1.Fleet."""

    def __init__(self, reports: NodeReports, announcements: Announcements, clock: Clock) -> None:
        self._reports, self._announcements, self._clock = reports, announcements, clock

    async def Report(self, request: operator_pb2.NodeStatus, context: Context) -> node_pb2.ReportAck:
        """Take a node's word about itself; answer with the newest lease there is."""
        caller = current_caller()
        check_report(caller, request.node, size_bytes=request.ByteSize())
        certificates = list(context.auth_context().get("x509_pem_cert", ()))
        if len(certificates) != 1:
            raise EvidenceError(Reason.CALLER_UNIDENTIFIED, "the caller presented no client certificate")
        self._reports.take(
            request, at_ms=self._clock.now_ms(), certificate_not_after_ms=validity(certificates[0])[1]
        )
        latest = self._announcements.latest
        peers = self._reports.peers_of(caller.name)
        return node_pb2.ReportAck(
            timestamp_version=0 if latest is None else parse_announcement(latest).version,
            peers=[node_pb2.Peer(node=name, address=address) for name, address in peers],
        )


def _change(status: operator_pb2.NodeStatus) -> Change:
    return Change(
        one_line(status.state, _STATE_CHARS), status.policy_version, one_line(status.lease, _LEASE_CHARS)
    )
