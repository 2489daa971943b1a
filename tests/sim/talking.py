"""A simulated node in gossip: the product's member, rounds, heads and credentials, in the order of the gossip loop."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

from egm.v1 import gossip_pb2 as pb
from sidecar.core.gossip import Requests, Rounds, Talk
from tests.sim.kernel import Future, UnreachableError
from tests.sim.realm import DOMAIN, NODES, endorsed
from trust import gossip
from trust.announce import parse_announcement
from trust.attestation.credential import log_origin
from trust.checkpoint import sign_checkpoint
from trust.denials import Spread
from trust.edge.gossip import Member
from trust.edge.lookout import Lookout
from trust.errors import MeshError
from trust.gossip import Head, Told
from trust.misbehaviour import proof_id
from trust.revocation import read_directive
from trust.spiffe import SpiffeId

if TYPE_CHECKING:
    from tests.sim.node import Node


class Talking:
    """One node's gossip since it started."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.lookout = Lookout(node.keeper, endorsed, lambda: node.trust.roster)
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
            credentials=self.lookout.shown_credentials,
            vouched=self.lookout.vouched,
        )
        self.rounds = Rounds(now_ms=node.monotonic_ms(), me=node.name)
        self.requests = Requests()
        self.member.asked = self._asked
        self._fresh = self._origin = False
        self._relay: int | None = None
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
        proof = self.lookout.heads.saw(head)
        if proof is not None:
            try:
                self.node.keeper.accuse(proof)
            except MeshError:
                self.node.world.observer.unproven += 1

    def vouched(self, credential: bytes) -> None:
        """Take a trust credential, of a caller or this node's own."""
        self.lookout.vouched(credential)

    def answered(self, message: pb.GossipMessage, peer: SpiffeId) -> pb.GossipMessage:
        """Answer one message, as `GossipServicer.Exchange`."""
        told = self.member.receive(message, peer)
        heads = self.member.heads() if told.heads else ()
        credentials = self.member.credentials() if told.heads or told.credentials else ()
        answer = gossip.answer(told, self.member.inventory(), heads=heads, credentials=credentials)
        return self.member.message(answer)

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
        return [head, *self.lookout.heads.show(3)]

    def _learned(self, spread: Spread) -> None:
        self._news.append(read_directive(spread.directive).id if spread.directive else proof_id(spread.proof))
        self._origin |= self.member.hearing is None
        self._wake()

    def _asked(self, told: Told) -> None:
        held = self.node.keeper.denials
        names = [read_directive(one).id for one in told.directives if one in held.directives.values()]
        names += [proof_id(one) for one in told.proofs if one in held.proofs.values()]
        granted, relay = self.requests.granted(names, told.relay)
        if granted:
            self._news += [name for name in granted if name not in self._news]
            self._relay = max(relay, self._relay or 0)
            self._wake()

    def _wake(self) -> None:
        """Tell of what came together, in the next event."""
        if not self._fresh:
            self._fresh = True
            self.node.world.after(0, self._tell, self.node.boots)

    def _tell(self, boot: int) -> None:
        node = self.node
        if node.up and node.boots == boot:
            talks = self.rounds.learned(now_ms=node.monotonic_ms(), relay=self._relay, origin=self._origin)
            self._fresh, self._origin, self._relay = False, False, None
            self._talk(talks)

    def _talk(self, talks: list[Talk]) -> None:
        news = tuple(self._news)
        if talks and not self.rounds.hot:
            self._news = []
        for talk in talks:
            self.node.world.spawn(self.node, self._exchange(talk, news))

    async def _exchange(self, talk: Talk, news: tuple[str, ...]) -> None:
        node, world, peer = self.node, self.node.world, talk.peer
        other, them = world.nodes[peer], SpiffeId.of(DOMAIN, "node", peer)

        def send(message: pb.GossipMessage, timeout: float = 0.0) -> Future:
            world.attacker.overheard(node.name, peer, message)
            return world.rpc(node.name, peer, lambda: other.talking.answered(message, node.me))

        try:
            await self.member.exchange(SimpleNamespace(Exchange=send), them, news, relay=talk.relay)  # type: ignore[arg-type]
        except (UnreachableError, MeshError):
            self.rounds.failed(peer, now_ms=node.monotonic_ms())
            for following in self.rounds.instead(talk):
                node.world.spawn(node, self._exchange(following, news))
        else:
            self.rounds.answered(peer)
