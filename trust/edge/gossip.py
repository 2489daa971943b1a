"""Gossip on the wire: what a member answers its peers and people, and one exchange with a peer.

Who asks is decided by the caller of these servicers (`check`); what is said is verified by whoever keeps it.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import grpc.aio

from egm.v1 import gossip_pb2 as pb
from egm.v1 import gossip_pb2_grpc as rpc
from trust import gossip, limits
from trust.denials import Spread
from trust.edge.denial_keeper import DenialKeeper, shown
from trust.edge.grpc_errors import abort, readable
from trust.errors import CapacityError, EvidenceError, MeshError, Reason
from trust.gossip import Head, Inventory, Told
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Check = Callable[[Context, frozenset[str]], Awaitable[SpiffeId]]

PEERS: Final = frozenset({"node", "control-plane"})
PEOPLE: Final = frozenset({"operator", "node", "control-plane"})
MAX_WATCHERS: Final = limits.MAX_WATCHERS


class Blobs:
    """Pieces of evidence by their SHA-256, for peers that meet a reference to one; the oldest leaves."""

    def __init__(self, *, count: int = limits.MAX_BLOBS, max_bytes: int = limits.MAX_BLOBS_BYTES) -> None:
        """Hold nothing."""
        self._count, self._max_bytes, self._bytes = count, max_bytes, 0
        self._held: dict[bytes, bytes] = {}

    def put(self, data: bytes) -> bytes:
        """Keep a piece; return its SHA-256 (32 bytes)."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._held:
            self._held[digest] = data
            self._bytes += len(data)
            while len(self._held) > self._count or self._bytes > self._max_bytes:
                self._bytes -= len(self._held.pop(next(iter(self._held))))
        return digest

    def get(self, sha256: bytes) -> bytes | None:
        """Return a piece, or None when it is not here."""
        return self._held.get(sha256)


class Member:
    """What one member of the mesh holds, hears and says."""

    def __init__(
        self,
        me: SpiffeId,
        boot_id: str,
        keeper: DenialKeeper,
        *,
        timestamp: Callable[[], tuple[int, bytes]],
        announced: Callable[[bytes], None] = lambda _timestamp: None,
        heads: Callable[[], Sequence[Head]] = lambda: (),
        saw: Callable[[Head], None] = lambda _head: None,
        policy: Callable[[], tuple[int, bytes]] = lambda: (0, b""),
        split: Callable[[SpiffeId], None] = lambda _peer: None,
        credentials: Callable[[], Sequence[bytes]] = lambda: (),
        vouched: Callable[[bytes], None] = lambda _credential: None,
    ) -> None:
        """Take the parts.

        Args:
            me: who speaks.
            boot_id: unique per start.
            keeper: verifies, keeps and enforces directives and proofs.
            timestamp: the newest timestamp.json that was verified here, version and bytes.
            announced: takes a newer, unverified timestamp.json; may raise MeshError for garbage.
            heads: ledger heads to show, own first.
            saw: takes a ledger head that a peer showed.
            policy: the base version held, and the SHA-256 of its targets metadata.
            split: told of a peer that holds another content of that version.
            credentials: trust credentials to show, own first.
            vouched: takes a trust credential that a peer showed, unverified; must not raise for bad bytes.
        """
        self._credentials, self._vouched = credentials, vouched
        self.hearing: Told | None = None  # the message that is being taken in
        self.asked: Callable[[Told], None] = lambda _told: (
            None
        )  # takes a message that asks to pass its items on
        self._policy, self._split = policy, split
        self.me, self.keeper, self.blobs = me, keeper, Blobs()
        self._boot_id, self._timestamp, self._announced = boot_id, timestamp, announced
        self._heads, self._saw = heads, saw
        self._sequence = 0
        self._sequences = gossip.Sequences()
        self._watchers: set[asyncio.Queue[Told | None]] = set()  # None ends a watch
        self._closed = False
        self.exchanges = self.repeated = 0
        keeper.subscribe(self._spread)

    def inventory(self) -> Inventory:
        """Return what is held now."""
        return replace(self.keeper.inventory(*self._timestamp()), policy=self._policy())

    def heads(self) -> Sequence[Head]:
        """Return the ledger heads to show."""
        return self._heads()

    def credentials(self) -> Sequence[bytes]:
        """Return the trust credentials to show."""
        return self._credentials()

    def message(self, told: Told) -> pb.GossipMessage:
        """Return the next message of this boot."""
        self._sequence += 1
        return to_wire(told, sender=str(self.me), boot_id=self._boot_id, sequence=self._sequence)

    def receive(self, message: pb.GossipMessage, peer: SpiffeId) -> Told:
        """Take in what `peer` said; a peer without a name of its own (a path of one segment) is any of its kind.

        Raises:
            EvidenceError: INPUT_INVALID or NOT_AUTHORIZED: malformed, or it speaks for somebody else.
        """
        alike = not peer.name and message.sender.startswith(f"{peer}/")
        if message.sender != str(peer) and not alike:
            raise EvidenceError(Reason.NOT_AUTHORIZED, f"{peer} spoke as {message.sender[:200]}")
        told = from_wire(message)
        if not self._sequences.is_new(message.sender, message.boot_id[:64], message.sequence):
            self.repeated += 1
            return told
        self.exchanges += 1
        self.hearing = told
        try:
            self._take(told, peer)
        finally:
            self.hearing = None
        return told

    def _take(self, told: Told, peer: SpiffeId) -> None:
        self.keeper.take(told.directives, told.proofs)
        if told.timestamp_json and told.timestamp_version > self._timestamp()[0]:
            try:
                self._announced(told.timestamp_json)
            except MeshError as error:
                logger.debug("announcement of %s passed over: %s", peer, error)
        for head in told.heads:
            self._saw(head)
        for credential in told.credentials:
            self._vouched(credential)
        if told.relay is not None:
            self.asked(told)
        if told.splits_from(self._policy()):
            self._split(peer)

    async def exchange(
        self,
        stub: "rpc.GossipAsyncStub",
        peer: SpiffeId,
        news: Sequence[str] = (),
        *,
        relay: int | None = None,
    ) -> None:
        """Exchange with one peer, twice if the first shows that something differs.

        Args:
            stub: of the peer.
            peer: who it is.
            news: ids of what is new here; then nothing else is sent.
            relay: with news: how many members after it, by name, the peer is asked to tell.

        Raises:
            grpc.aio.AioRpcError: it did not answer.
            EvidenceError: it answered what nobody should.
        """
        # News travels light: heads and credentials are for the exchanges of a period.
        first = (
            replace(gossip.opening(self.inventory(), news=news), relay=relay)
            if news
            else gossip.opening(self.inventory(), heads=self._heads(), credentials=self._credentials())
        )
        answered = readable(await stub.Exchange(self.message(first), timeout=limits.GOSSIP_TIMEOUT_S))
        told = self.receive(answered, peer)
        second = gossip.follow_up(told, self.inventory())
        if second is not None:
            answered = readable(await stub.Exchange(self.message(second), timeout=limits.GOSSIP_TIMEOUT_S))
            self.receive(answered, peer)

    async def watch(self) -> AsyncIterator[Told]:
        """Yield what is held, then what is new here, until `close`.

        Raises:
            CapacityError: LIMIT_EXCEEDED, with too many watchers.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise CapacityError(Reason.LIMIT_EXCEEDED, f"{MAX_WATCHERS} watchers; exchange instead")
        queue: asyncio.Queue[Told | None] = asyncio.Queue(limits.MAX_PROOFS)
        self._watchers.add(queue)
        try:
            yield gossip.everything(self.inventory())
            while not self._closed and (told := await queue.get()) is not None:
                yield told
        finally:
            self._watchers.discard(queue)

    def close(self) -> None:
        """End every watch: the server is draining, and would wait for streams that have no end."""
        self._closed = True
        self._tell_watchers(None)

    def _spread(self, spread: Spread) -> None:
        told = Told(
            directives=(spread.directive,) if spread.directive else (),
            proofs=(spread.proof,) if spread.proof else (),
        )
        self._tell_watchers(told)

    def _tell_watchers(self, told: Told | None) -> None:
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()  # a watcher that is so slow learns the rest by exchanges
            queue.put_nowait(told)


class GossipServicer(rpc.GossipServicer):
    """egm.v1.Gossip."""

    def __init__(self, member: Member, check: Check) -> None:
        """Answer for `member` whoever `check` lets through."""
        self._member, self._check = member, check

    async def Exchange(self, request: pb.GossipMessage, context: Context) -> pb.GossipMessage:
        """Take in what the peer says, and answer with what it lacks."""
        peer = await self._check(context, PEERS)
        try:
            told = self._member.receive(request, peer)
        except MeshError as error:
            await abort(context, error)
        member = self._member
        heads = member.heads() if told.heads else ()
        credentials = member.credentials() if told.heads or told.credentials else ()
        return member.message(gossip.answer(told, member.inventory(), heads=heads, credentials=credentials))

    async def Watch(
        self, request: pb.WatchGossipRequest, context: Context
    ) -> AsyncIterator[pb.GossipMessage]:
        """Send what is held, then what is new."""
        await self._check(context, PEERS)
        try:
            async for told in self._member.watch():
                yield self._member.message(told)
        except MeshError as error:
            await abort(context, error)

    async def GetBlob(self, request: pb.GetBlobRequest, context: Context) -> pb.Blob:
        """Return one piece of evidence."""
        await self._check(context, PEERS)
        data = self._member.blobs.get(request.sha256)
        if data is None:
            name = request.sha256.hex()[:64]
            await abort(context, EvidenceError(Reason.NOT_FOUND, f"no evidence {name} here"))
        return pb.Blob(data=data)


class EmergencyServicer(rpc.EmergencyServicer):
    """egm.v1.Emergency."""

    def __init__(self, keeper: DenialKeeper, check: Check) -> None:
        """Answer for `keeper` whoever `check` lets through; a signature decides what counts, not who brings it."""
        self._keeper, self._check = keeper, check

    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeResponse:
        """Deny what a directive says."""
        await self._check(context, PEOPLE)
        try:
            name, news = self._keeper.revoke(request.directive)
        except MeshError as error:
            await abort(context, error)
        return pb.RevokeResponse(id=name, news=news)

    async def Accuse(self, request: pb.AccuseRequest, context: Context) -> pb.AccuseResponse:
        """Quarantine whom a proof convicts."""
        await self._check(context, PEOPLE)
        try:
            finding, news = self._keeper.accuse(request.proof)
        except MeshError as error:
            await abort(context, error)
        return pb.AccuseResponse(id=finding.id, news=news, accused=finding.accused, summary=finding.summary)

    async def ListDenials(self, request: pb.ListDenialsRequest, context: Context) -> pb.ListDenialsResponse:
        """Return everything that is denied here."""
        await self._check(context, PEOPLE)
        denials = self._keeper.denials
        return pb.ListDenialsResponse(
            denials=[pb.DenialEntry(**_entry(shown(one))) for one in denials.active],
            emergency_keys=self._keeper.emergency_keys,
            proofs=list(denials.proofs.values()),
        )


def to_wire(told: Told, *, sender: str, boot_id: str, sequence: int) -> pb.GossipMessage:
    """Encode a message."""
    return pb.GossipMessage(
        sender=sender,
        boot_id=boot_id,
        sequence=sequence,
        timestamp_version=told.timestamp_version,
        timestamp_json=told.timestamp_json,
        held_sha256=told.held_sha256,
        held=() if told.held is None else told.held,
        lists_held=told.held is not None,
        directives=told.directives,
        proofs=told.proofs,
        heads=[pb.SignedHead(checkpoint=h.checkpoint, endorsement=h.endorsement) for h in told.heads],
        policy_version=told.policy[0],
        policy_sha256=told.policy[1],
        credentials=told.credentials,
        relay=told.relay,
    )


def from_wire(message: pb.GossipMessage) -> Told:
    """Decode a message; its items are not verified.

    Raises:
        EvidenceError: INPUT_INVALID, for one out of bounds.
    """
    if message.ByteSize() > limits.MAX_GOSSIP_BYTES:
        raise EvidenceError(Reason.INPUT_INVALID, f"a gossip message over {limits.MAX_GOSSIP_BYTES} bytes")
    if len(message.heads) > limits.MAX_GOSSIP_HEADS:
        raise EvidenceError(Reason.INPUT_INVALID, f"more than {limits.MAX_GOSSIP_HEADS} heads in one message")
    if len(message.directives) + len(message.proofs) > limits.MAX_GOSSIP_ITEMS:
        text = f"more than {limits.MAX_GOSSIP_ITEMS} directives and proofs in one message"
        raise EvidenceError(Reason.INPUT_INVALID, text)
    if len(message.credentials) > limits.MAX_GOSSIP_CREDENTIALS:
        text = f"more than {limits.MAX_GOSSIP_CREDENTIALS} trust credentials in one message"
        raise EvidenceError(Reason.INPUT_INVALID, text)
    return Told(
        message.timestamp_version,
        message.timestamp_json,
        message.held_sha256,
        tuple(message.held) if message.lists_held else None,
        tuple(message.directives),
        tuple(message.proofs),
        tuple(Head(h.checkpoint, h.endorsement) for h in message.heads),
        (message.policy_version, message.policy_sha256),
        tuple(message.credentials),
        message.relay if message.HasField("relay") else None,
    )


def _entry(values: dict[str, object]) -> dict[str, Any]:
    return dict(values)
