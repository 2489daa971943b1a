"""The control plane's part in denying: takes directives and proofs, keeps them, and tells every node and the broker.

It decides nothing: a directive counts by its emergency key, a proof by itself, and every node verifies both again.

DATA_DIR/denials.json    see trust.edge.denial_keeper
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import grpc.aio

from control_plane.edge.callers import current_caller
from egm.v1 import gossip_pb2, gossip_pb2_grpc
from trust import limits
from trust.announce import denials_topic
from trust.attestation.roster import Roster
from trust.denials import Changed, Spread
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.gossip import EmergencyServicer, GossipServicer, Member
from trust.edge.lookout import Lookout
from trust.edge.mqtt import BrokerUrl, MqttAnnouncer
from trust.errors import InputError
from trust.gossip import everything
from trust.identity import IdentitySource
from trust.mesh import MeshSettings
from trust.misbehaviour import Anchors
from trust.node_key import NodeKey, verify_endorsement
from trust.ports import Clock
from trust.spiffe import SpiffeId

logger = logging.getLogger(__name__)

DENIALS_FILE: Final = "denials.json"
TICK_S: Final = 0.25

Context = grpc.aio.ServicerContext[Any, Any]


class DenialDesk:
    """What one control plane knows to be denied. One event loop."""

    def __init__(
        self,
        data_dir: Path,
        me: SpiffeId,
        boot_id: str,
        *,
        identity: IdentitySource,
        root: bytes,
        clock: Clock,
        broker: BrokerUrl,
        timestamp: Callable[[], tuple[int, bytes]],
    ) -> None:
        """Read what was denied before; it counts from the first `govern` on.

        Args:
            data_dir: of this control plane.
            me: its SPIFFE ID.
            boot_id: unique per start.
            identity: supplies the CA certificates.
            root: the trust anchor, TUF root metadata.
            clock: wall and monotonic time.
            broker: where denials are retained.
            timestamp: the newest timestamp.json, version and bytes.

        Raises:
            InputError: CONFIG_INVALID: it cannot be read what was revoked.
        """
        self._trust_domain, self._identity, self._root, self._clock = me.trust_domain, identity, root, clock
        self._rostered: Roster | None = None  # the witnesses of the published policy
        # the base version published, and the SHA-256 of its targets metadata; set by the driver
        self.policy: Callable[[], tuple[int, bytes]] = lambda: (0, b"")
        self.problems: dict[str, str] = {}
        self.keeper = DenialKeeper(
            data_dir / DENIALS_FILE,
            me.trust_domain,
            now_ms=clock.now_ms,
            monotonic_ms=clock.monotonic_ms,
            anchors=self._anchors,
            changed=self._changed,
            alarm=self._alarm,
            clear=self._clear,
            beside=True,
        )
        self._lookout = Lookout(self.keeper, self._node_key, self._roster)
        identity.subscribe(self._lookout.heads.forget_keys)
        self.member = Member(
            me,
            boot_id,
            self.keeper,
            timestamp=timestamp,
            policy=self._published,
            split=self._split,
            heads=self._lookout.shown_heads,
            saw=self._lookout.saw,
            credentials=self._lookout.shown_credentials,
            vouched=self._lookout.vouched,
        )
        self._announcer = MqttAnnouncer(broker, me.trust_domain, topic=denials_topic(me.trust_domain))
        self._stale = asyncio.Event()  # what is retained at the broker is older than what is denied
        self._stale.set()
        self.keeper.subscribe(self._news)

    def govern(self, mesh: MeshSettings) -> None:
        """Apply the settings of the published policy."""
        self._rostered = mesh.roster()
        self.keeper.govern(mesh)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve nodes and operators; who may ask was checked before (control_plane.core.roles)."""
        gossip_pb2_grpc.add_GossipServicer_to_server(GossipServicer(self.member, _caller), server)
        gossip_pb2_grpc.add_EmergencyServicer_to_server(EmergencyServicer(self.keeper, _caller), server)

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs beside the server."""
        return [self._tick_forever(), self._announce_forever(), self._announcer.run()]

    async def _tick_forever(self) -> None:
        while True:
            self.keeper.tick()
            await asyncio.sleep(TICK_S)

    async def _announce_forever(self) -> None:
        """Keep the broker's retained message current."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._announcer.announce(announcement(self.member))
            except InputError as error:
                self._alarm("denials by broker", f"not announced, nodes hear of them by gRPC alone: {error}")

    def _changed(self, change: Changed) -> None:
        self._stale.set()

    def _news(self, spread: Spread) -> None:
        self._stale.set()

    def _published(self) -> tuple[int, bytes]:
        return self.policy()

    def _split(self, peer: SpiffeId) -> None:
        text = f"{peer} holds another content of the base policy version that is published: a split view"
        self._alarm("split view", text)

    def _node_key(self, endorsement: bytes) -> NodeKey:
        return verify_endorsement(
            endorsement, self._identity.anchors_pem(), self._trust_domain, self._clock.now_ms()
        )

    def _anchors(self) -> Anchors:
        return Anchors(self._trust_domain, self._identity.anchors_pem(), self._rostered, self._root)

    def _roster(self) -> Roster | None:
        return self._rostered

    def _clear(self, kind: str) -> None:
        self.problems.pop(kind, None)

    def _alarm(self, kind: str, text: str) -> None:
        if self.problems.get(kind) != text:
            self.problems[kind] = text
            logger.error("alarm: %s", text)


def announcement(member: Member) -> bytes:
    """Return what the broker retains: directives first, as many items as fit."""
    told = everything(member.inventory())
    directives, proofs = list(told.directives), list(told.proofs)
    while True:
        message = gossip_pb2.GossipMessage(held_sha256=told.held_sha256, directives=directives, proofs=proofs)
        if message.ByteSize() <= limits.MAX_ANNOUNCEMENT_BYTES:
            return message.SerializeToString()
        (proofs or directives).pop()


async def _caller(context: Context, kinds: frozenset[str]) -> SpiffeId:
    return current_caller()
