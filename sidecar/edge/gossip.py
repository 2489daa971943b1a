"""Gossip of one node: rounds with peers and control planes, and a stream of news from a control plane."""

import asyncio
import contextlib
import functools
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import grpc
import grpc.aio

from egm.v1 import gossip_pb2, gossip_pb2_grpc
from sidecar.core.gossip import Requests, Rounds, Talk
from trust.backoff import RECONNECT
from trust.denials import Spread
from trust.edge.gossip import Member
from trust.edge.grpc_errors import closed_is_a_failure, readable
from trust.edge.tls import Channels
from trust.errors import MeshError
from trust.gossip import Told
from trust.misbehaviour import proof_id
from trust.ports import Clock
from trust.revocation import read_directive
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

logger = logging.getLogger(__name__)

TICK_S: Final = 0.25  # how soon what is over ends
_STABLE_S: Final = 10.0
_CONTROL_PLANE: Final = "control-plane "  # before an address: no node has a name with a space


class Gossiper:
    """Talks to others until cancelled. One event loop."""

    def __init__(
        self,
        member: Member,
        channels: Channels,
        clock: Clock,
        *,
        control_planes: Sequence[str],
        peers: Callable[[], Mapping[str, str]],
        shuffled: Callable[[], list[str]],
    ) -> None:
        """Take the parts.

        Args:
            member: what is held, heard and said.
            channels: mTLS channels.
            clock: monotonic time.
            control_planes: HOST:PORT of each.
            peers: other nodes, NAME -> HOST:PORT.
            shuffled: their names in random order.
        """
        self._member, self._channels, self._clock = member, channels, clock
        self._control_planes, self._peers, self._shuffled = tuple(control_planes), peers, shuffled
        self._trust_domain = member.me.trust_domain
        self._rounds = Rounds(now_ms=clock.monotonic_ms(), me=member.me.name)
        self._wake = asyncio.Event()
        self._news: list[str] = []  # ids that are new here: pushed with the next messages
        self._fresh = self._origin = False
        self._relay: int | None = None  # how many others those that told the news asked this node to tell
        self._requests = Requests()
        self._told_to_all = False  # while news is read that everybody is being told
        self._talking: dict[str, asyncio.Task[None]] = {}
        self.watching: str | None = None  # the control plane whose stream is open
        member.keeper.subscribe(self._learned)
        member.asked = self._asked
        self.met()

    def met(self) -> None:
        """Take the peers that are known now."""
        planes = [f"{_CONTROL_PLANE}{address}" for address in self._control_planes]
        self._rounds.met(self._shuffled(), centres=planes)

    @contextlib.contextmanager
    def from_everybody_s_source(self) -> Iterator[None]:
        """Take what every node is told at this moment (a control plane's stream, the broker): no rumour is needed."""
        self._told_to_all = True
        try:
            yield
        finally:
            self._told_to_all = False

    async def run(self) -> None:
        """Talk, listen, and let denials end, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._talk_forever(), name="gossip rounds")
                group.create_task(self._tick_forever(), name="denials")
                group.create_task(self._watch_forever(), name="gossip watch")
        finally:
            talking = list(self._talking.values())
            for task in talking:
                task.cancel()
            await asyncio.gather(*talking, return_exceptions=True)

    def failures(self) -> Mapping[str, int]:
        """Return how often in a row each peer that fails has failed."""
        return self._rounds.failures()

    def _learned(self, spread: Spread) -> None:
        if self._told_to_all:
            return  # the exchanges of the next periods mend what the teller does not reach
        name = read_directive(spread.directive).id if spread.directive else proof_id(spread.proof)
        self._news.append(name)
        self._origin |= self._member.hearing is None
        self._fresh = True
        self._wake.set()  # the loop takes together what came together

    def _asked(self, told: Told) -> None:
        """Pass on what a peer asks to pass on, news here or not: another may have been quicker, and asked less."""
        held = self._member.keeper.denials
        directives, proofs = set(held.directives.values()), set(held.proofs.values())
        held_here = [read_directive(one).id for one in told.directives if one in directives]
        held_here += [proof_id(one) for one in told.proofs if one in proofs]
        names, relay = self._requests.granted(held_here, told.relay)
        if not names:
            return
        self._news += [name for name in names if name not in self._news]
        self._relay = max(relay, self._relay or 0)
        self._fresh = True
        self._wake.set()

    async def _talk_forever(self) -> None:
        while True:
            now_ms = self._clock.monotonic_ms()
            if self._fresh:
                talks = self._rounds.learned(now_ms=now_ms, relay=self._relay, origin=self._origin)
                self._fresh, self._origin, self._relay = False, False, None
            else:
                talks = self._rounds.tick(now_ms=now_ms)
            self._start(talks)
            if self._fresh:
                continue
            wait_ms = self._rounds.wake_at_ms() - self._clock.monotonic_ms()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait_ms, 1) / 1000):
                    await self._wake.wait()

    def _start(self, talks: Sequence[Talk]) -> None:
        """Talk to each, one exchange at a time; only news goes out while another is under way."""
        news = tuple(self._news)
        if talks and not self._rounds.hot:
            self._news = []
        for talk in talks:
            self._begin(talk, news)

    def _begin(self, talk: Talk, news: tuple[str, ...]) -> None:
        key = f"{talk.peer} (news)" if news else talk.peer
        if key in self._talking:
            return
        task = asyncio.get_running_loop().create_task(self._talk(talk, news), name=f"gossip {key}")
        self._talking[key] = task
        task.add_done_callback(functools.partial(self._forget, key))

    def _forget(self, key: str, task: asyncio.Task[None]) -> None:
        if self._talking.get(key) is task:
            del self._talking[key]

    async def _talk(self, talk: Talk, news: tuple[str, ...]) -> None:
        """Exchange with a peer; when it cannot be reached, those it was to tell hear of it from here."""
        if not await self._exchanged(talk, news):
            for other in self._rounds.instead(talk):
                self._begin(other, news)

    async def _exchanged(self, talk: Talk, news: tuple[str, ...]) -> bool:
        peer = talk.peer
        found = self._reach(peer)
        if found is None:
            return False
        address, who, dns = found
        try:
            channel = self._channels.get(address, client=self._member.me, server_dns=dns)
            await self._member.exchange(gossip_pb2_grpc.GossipStub(channel), who, news, relay=talk.relay)
        except grpc.aio.AioRpcError as error:
            logger.debug("gossip with %s: %s %s", peer, error.code().name, error.details())
            self._rounds.failed(peer, now_ms=self._clock.monotonic_ms())
        except MeshError as error:
            logger.debug("gossip with %s: %s", peer, error)
            self._rounds.failed(peer, now_ms=self._clock.monotonic_ms())
        else:
            self._rounds.answered(peer)
            return True
        return False

    def _reach(self, peer: str) -> tuple[str, SpiffeId, str] | None:
        """Return address, identity and DNS name of a peer; a control plane is one of its kind."""
        if peer.startswith(_CONTROL_PLANE):
            address = peer.removeprefix(_CONTROL_PLANE)
            return (
                address,
                SpiffeId(self._trust_domain, "control-plane"),
                control_plane_dns(self._trust_domain),
            )
        address = self._peers().get(peer, "")
        node = SpiffeId.of(self._trust_domain, "node", peer)
        return (address, node, node.dns_name) if address else None

    async def _tick_forever(self) -> None:
        while True:
            self._member.keeper.tick()
            await asyncio.sleep(TICK_S)

    async def _watch_forever(self) -> None:
        """Keep one stream of news open, from whichever control plane answers."""
        loop = asyncio.get_running_loop()
        attempt = failures = 0
        while self._control_planes:
            address = self._control_planes[attempt % len(self._control_planes)]
            attempt += 1
            started = loop.time()
            try:
                await self._watch(address)
            except (grpc.aio.AioRpcError, MeshError) as error:
                logger.debug("watching %s for denials: %s", address, error)
            finally:
                self.watching = None
            failures = 1 if loop.time() - started >= _STABLE_S else failures + 1
            await asyncio.sleep(RECONNECT.delay_ms(failures, random.random()) / 1000)  # noqa: S311 (spreads load)

    async def _watch(self, address: str) -> None:
        dns = control_plane_dns(self._trust_domain)
        channel = self._channels.get(address, client=self._member.me, server_dns=dns)
        stub = gossip_pb2_grpc.GossipStub(channel)
        who = SpiffeId(self._trust_domain, "control-plane")
        with closed_is_a_failure():
            async for message in stub.Watch(gossip_pb2.WatchGossipRequest()):
                self.watching = address
                with self.from_everybody_s_source():
                    self._member.receive(readable(message), who)
