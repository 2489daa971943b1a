"""A simulated node in gossip: the product's member, rounds and tree heads, in the order of the gossip loop."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

from egm.v1 import gossip_pb2 as pb
from sidecar.core.gossip import Rounds, Talk
from tests.sim.kernel import Future, UnreachableError
from tests.sim.realm import DOMAIN, NODES, endorsed
from trust import gossip
from trust.announce import parse_announcement
from trust.attestation.credential import log_origin
from trust.checkpoint import sign_checkpoint
from trust.denials import Spread
from trust.edge.gossip import Member
from trust.errors import MeshError
from trust.gossip import Head
from trust.heads import Heads
from trust.misbehaviour import proof_id
from trust.revocation import read_directive
from trust.spiffe import SpiffeId

if TYPE_CHECKING:
    from tests.sim.node import Node


class Talking:
    """One node's gossip since it started."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.heads = Heads(endorsed)
        self._signed: dict[tuple[int, bool], Head] = {}
        self.member = Member(
            node.me,
            f"boot{node.boots}",
            node.keeper,
            timestamp=lambda: node.newest,
            announced=lambda raw: node.look(
                node.feed.announced(parse_announcement(raw), now_ms=node.monotonic_ms())
            ),
            heads=self._shown,
            saw=self.saw,
            policy=lambda: node.base,
        )
        self.rounds = Rounds(now_ms=node.monotonic_ms())
        self.rounds.met(node.world.random.sample([one for one in NODES if one != node.name], len(NODES) - 1))
        self._news: list[str] = []
        node.keeper.subscribe(self._learned)

    def tick(self) -> None:
        """Talk when it is time to."""
        now_ms = self.node.monotonic_ms()
        if self.rounds.wake_at_ms() <= now_ms:
            self._talk(self.rounds.tick(now_ms=now_ms))

    def saw(self, head: Head) -> None:
        """Take a tree head; accuse whom it convicts."""
        proof = self.heads.saw(head)
        if proof is not None:
            try:
                self.node.keeper.accuse(proof)
            except MeshError:
                self.node.world.observer.unproven += 1

    def answered(self, message: pb.GossipMessage, peer: SpiffeId) -> pb.GossipMessage:
        """Answer one message, as `GossipServicer.Exchange`."""
        told = self.member.receive(message, peer)
        heads = self.member.heads() if told.heads else ()
        return self.member.message(gossip.answer(told, self.member.inventory(), heads=heads))

    def _shown(self) -> list[Head]:
        node = self.node
        shows = "equivocates" in node.lies and not node.hides
        lie = node.fork_at if shows and node.world.chance(0.5) else None
        size = node.ledger.durable_size
        head = self._signed.get((size, lie is None))
        if head is None:
            checkpoint = node.ledger.tree(other_face_from=lie).checkpoint(log_origin(node.me))
            note = sign_checkpoint(checkpoint, node.private.sign, public_key=node.public)
            head = self._signed[size, lie is None] = Head(note, node.endorsement)
        return [head, *self.heads.show(3)]

    def _learned(self, spread: Spread) -> None:
        self._news.append(read_directive(spread.directive).id if spread.directive else proof_id(spread.proof))
        self._talk(self.rounds.learned(now_ms=self.node.monotonic_ms()))

    def _talk(self, talks: list[Talk]) -> None:
        news = tuple(self._news)
        if talks and not self.rounds.hot:
            self._news = []
        for talk in talks:
            self.node.world.spawn(self.node, self._exchange(talk.peer, news))

    async def _exchange(self, peer: str, news: tuple[str, ...]) -> None:
        node, world = self.node, self.node.world
        other, them = world.nodes[peer], SpiffeId.of(DOMAIN, "node", peer)

        def send(message: pb.GossipMessage, timeout: float = 0.0) -> Future:
            world.attacker.overheard(node.name, peer, message)
            return world.rpc(node.name, peer, lambda: other.talking.answered(message, node.me))

        try:
            await self.member.exchange(SimpleNamespace(Exchange=send), them, news)  # type: ignore[arg-type]
        except (UnreachableError, MeshError):
            self.rounds.failed(peer, now_ms=node.monotonic_ms())
        else:
            self.rounds.answered(peer)
