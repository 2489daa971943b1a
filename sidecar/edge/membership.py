"""A node as a member among peers: what is denied, what it tells and hears, and whom it gives policy files.

DIR/denials.json    what is revoked and proven (trust.edge.denial_keeper)
DIR/peers.json      other nodes (sidecar.edge.peers)
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import grpc.aio
from google.protobuf.message import DecodeError

from egm.v1 import distribution_pb2_grpc, gossip_pb2, gossip_pb2_grpc
from sidecar.config import SidecarConfig
from sidecar.core.bundle_state import InForce
from sidecar.core.readiness import Alarms
from sidecar.edge.gossip import Gossiper
from sidecar.edge.peer_files import AnySource, PeerDistribution, PeerFiles, RotatingSource, peer_source
from sidecar.edge.peers import PeerBook
from trust import limits
from trust.accusation import by_checkpoints, by_evidence, by_metadata
from trust.announce import denials_topic
from trust.attestation.roster import Roster
from trust.attestation.statement import open_evidence
from trust.attestation.witness import ContradictionError
from trust.denials import Changed
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.gossip import EmergencyServicer, GossipServicer, Member
from trust.edge.grpc_errors import abort
from trust.edge.lookout import Lookout
from trust.edge.mqtt import BrokerUrl, MqttListener
from trust.edge.tls import Channels, peer_of
from trust.edge.tuf_client import PolicyClient
from trust.errors import EvidenceError, MeshError, Reason
from trust.gossip import Head
from trust.identity import IdentitySource
from trust.misbehaviour import Anchors
from trust.node_key import NodeKey, verify_endorsement
from trust.ports import Clock, FileSource
from trust.repository import metadata_path
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE
from trust.x509 import validity

logger = logging.getLogger(__name__)

DENIALS_FILE: Final = "denials.json"
PEERS_FILE: Final = "peers.json"
_LONELY_FAILURES: Final = 5  # rounds in a row
_MAX_READ: Final = 1_024
_COMPARE_AGAIN_MS: Final = 3_000

Context = grpc.aio.ServicerContext[Any, Any]


class Membership:
    """The parts, made before there is an identity and started with one."""

    def __init__(
        self,
        config: SidecarConfig,
        root: bytes,
        *,
        boot_id: str,
        client: PolicyClient,
        identity: IdentitySource,
        clock: Clock,
        trusted_now_ms: Callable[[], int],
        alarms: Alarms,
        changed: Callable[[], None],
    ) -> None:
        """Read what was denied and who was known.

        Args:
            config: of this node.
            root: the trust anchor, TUF root metadata.
            boot_id: unique per start.
            client: the policy that is held.
            identity: certificates and CA.
            clock: wall and monotonic time.
            trusted_now_ms: wall time, never behind signed time.
            alarms: where problems are shown.
            changed: decides open streams again.

        Raises:
            InputError: CONFIG_INVALID: it cannot be read what was revoked.
        """
        self._config, self._root, self._client = config, root, client
        self._identity, self._clock, self._alarms = identity, clock, alarms
        self.me = config.spiffe_id("node", config.node)
        self._rostered: Roster | None = None  # the witnesses of the policy in force
        self.peers = PeerBook(config.data_dir / PEERS_FILE, config.node, config.peers)
        self.denials = DenialKeeper(
            config.data_dir / DENIALS_FILE,
            config.trust_domain,
            now_ms=trusted_now_ms,
            monotonic_ms=clock.monotonic_ms,
            anchors=self._anchors,
            changed=lambda _changed: self._denied(_changed, changed),
            alarm=self._alarm,
            clear=alarms.clear,
            beside=True,
        )
        self._lookout = Lookout(self.denials, self._node_key, self._roster)
        self._read: dict[tuple[bytes, ...], tuple[SpiffeId, int]] = {}  # certificates: whose, until when (ms)
        self.head: Callable[[], Head | None] = lambda: None  # of our own ledger; set when it is open
        self.announced: Callable[[bytes], None] = lambda _timestamp: (
            None
        )  # takes a newer lease; set by the driver
        self.member = Member(
            self.me,
            boot_id,
            self.denials,
            timestamp=lambda: client.newest,
            announced=self._announced,
            heads=lambda: self._lookout.shown_heads(self.head()),
            saw=self._lookout.saw,
            policy=lambda: client.base,
            split=self._split,
            credentials=self._lookout.shown_credentials,
            vouched=self._lookout.vouched,
        )
        self._comparing: dict[str, asyncio.Task[None]] = {}
        self._compare_again_ms: dict[str, int] = {}  # by peer: when its other content is looked at again
        self.gossiper: Gossiper | None = None

    # policy

    def swapped(self, now_in_force: InForce) -> None:
        """Apply a policy that comes into force; nothing is decided under it before."""
        mesh = now_in_force.engine.mesh
        roster = self._rostered = mesh.roster()
        self.denials.govern(mesh)
        if roster is not None:
            known = {name: one.address for name, one in roster.witnesses.items() if one.address}
            self.peers.signed(known)
            self._met()

    def source(self, control_plane: RotatingSource) -> AnySource:
        """Return where policy files come from: the control plane, then peers."""
        loop = asyncio.get_running_loop()
        return AnySource(control_plane, self._identity, self.me, self._in_turn, loop=loop)

    def named(self, peers: list[tuple[str, str]]) -> None:
        """Take the peers that the control plane names."""
        if self.peers.named(peers):
            self._met()

    # attestation

    def gained(self, credential: bytes) -> None:
        """Take this node's own trust credential: kept for peers that meet its digest, and shown to them."""
        self.member.blobs.put(credential)
        self._lookout.gained(credential)

    def vouched(self, credential: bytes) -> None:
        """Take a trust credential of a caller: what witnesses vouched for elsewhere may contradict it."""
        self._lookout.vouched(credential)

    def contradicted(self, error: ContradictionError) -> bool:
        """Accuse a node whose two statements this node, as its witness, saw; return whether they prove anything."""
        try:
            now, before = open_evidence(error.now_evidence), open_evidence(error.before_evidence)
            proof = by_evidence(before, now, error.now_endorsement)
            if proof is None:
                notes = (before.statement.checkpoint, now.statement.checkpoint)
                proof = by_checkpoints(
                    now.statement.node,
                    *notes,
                    error.now_endorsement,
                    path=error.consistency,
                    prefix=error.root,
                )
            if proof is None:
                return False
            self.denials.accuse(proof)
        except MeshError as reason:
            logger.warning("a node contradicts itself (%s), but nothing is proven: %s", error.kind, reason)
            return False
        return True

    def witnessed(self, head: Head) -> None:
        """Show others the tree head that this node, as a witness, was shown: they may have been shown another."""
        self._lookout.saw(head)

    # life cycle

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve peers and people on the admin listener."""
        files = PeerFiles(self._client, self._root)
        gossip_pb2_grpc.add_GossipServicer_to_server(GossipServicer(self.member, self.check), server)
        gossip_pb2_grpc.add_EmergencyServicer_to_server(EmergencyServicer(self.denials, self.check), server)
        distribution_pb2_grpc.add_DistributionServicer_to_server(PeerDistribution(files, self.check), server)

    def start(
        self, channels: Channels, broker: BrokerUrl
    ) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """Return what must run, by name."""
        self._identity.subscribe(self._lookout.heads.forget_keys)
        self.gossiper = Gossiper(
            self.member,
            channels,
            self._clock,
            control_planes=self._config.control_plane.addresses,
            peers=self.peers.addresses,
            shuffled=self.peers.shuffled,
        )
        loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"gossip": self.gossiper.run}
        if broker.enabled:
            topic = denials_topic(self._config.trust_domain)
            listener = MqttListener(broker, self._config.trust_domain, self._heard, topic=topic)
            loops["denials by broker"] = listener.run
        return loops

    def notes(self) -> tuple[str, ...]:
        """Return what is wrong with the links to others, for the alarms of the status."""
        if self.gossiper is None:
            return ()
        lost = [name for name, count in self.gossiper.failures().items() if count >= _LONELY_FAILURES]
        others = self.peers.addresses()
        if others and all(name in lost for name in others):
            return (
                f"no peer answers ({', '.join(sorted(others)[:5])}); are their admin listeners reachable?",
            )
        return ()

    async def check(self, context: Context, kinds: frozenset[str]) -> SpiffeId:
        """Return who calls, if it is a member of one of `kinds`; else end the call."""
        try:
            peer = self._peer(context)
            if peer.kind not in kinds or not peer.name or "/" in peer.name:
                allowed = ", ".join(sorted(kinds))
                raise EvidenceError(Reason.NOT_AUTHORIZED, f"{peer} may not ask this; allowed: {allowed}")
        except MeshError as error:
            await abort(context, error)
        return peer

    # inside

    def _peer(self, context: Context) -> SpiffeId:
        """Return who the connection proves; a certificate that was read before is checked for its time alone."""
        shown = tuple(context.auth_context().get("x509_pem_cert", ()))
        now_ms = self._clock.now_ms()
        known = self._read.get(shown)
        if known is not None and now_ms < known[1]:
            return known[0]
        peer = peer_of(context, trust_domain=self._config.trust_domain, now_ms=now_ms)
        if len(self._read) >= _MAX_READ:
            self._read.clear()
        self._read[shown] = (peer, validity(shown[0])[1])
        return peer

    def _met(self) -> None:
        if self.gossiper is not None:
            self.gossiper.met()

    def _in_turn(self) -> Mapping[str, str]:
        """Return the peers to ask for files, in random order."""
        known = self.peers.addresses()
        return {name: known[name] for name in self.peers.shuffled() if name in known}

    def _denied(self, change: Changed, changed: Callable[[], None]) -> None:
        own = self.denials.denials.of_node(str(self.me))
        if own is not None:
            self._alarm("own-denial", f"this node is denied, so it refuses everything: {own.why}")
        else:
            self._alarms.clear("own-denial")
        changed()

    def _announced(self, timestamp: bytes) -> None:
        self.announced(timestamp)

    def _heard(self, payload: bytes) -> None:
        """Take what the broker retains; unverified."""
        try:
            message = gossip_pb2.GossipMessage.FromString(payload)
        except DecodeError:
            raise EvidenceError(Reason.REVOCATION_INVALID, "the broker's message is not gossip") from None
        with contextlib.nullcontext() if self.gossiper is None else self.gossiper.from_everybody_s_source():
            self.denials.take(list(message.directives), list(message.proofs))

    def _split(self, peer: SpiffeId) -> None:
        """Compare policy metadata with a peer that holds another content of our version; at most one at a time."""
        now_ms = self._clock.monotonic_ms()
        if now_ms < self._compare_again_ms.get(peer.name, now_ms):
            return  # whoever says so in every message is neither news nor worth a fetch each time
        if len(self._compare_again_ms) >= limits.MAX_GOSSIP_SENDERS:
            del self._compare_again_ms[next(iter(self._compare_again_ms))]
        self._compare_again_ms[peer.name] = now_ms + _COMPARE_AGAIN_MS
        text = f"{peer} holds another content of base policy version {self._client.base[0]}: a split view"
        self._alarm("split view", text)
        if not self._comparing and peer.name in self.peers.addresses():
            task = asyncio.get_running_loop().create_task(self._compare(peer), name="split view")
            self._comparing[peer.name] = task
            task.add_done_callback(lambda _: self._comparing.clear())

    async def _compare(self, peer: SpiffeId) -> None:
        address = self.peers.addresses().get(peer.name)
        if address is None:
            return
        source = peer_source(self._identity, self.me, peer, address)
        try:
            proof = await asyncio.to_thread(self._split_proof, source)
            if proof is not None:
                self.denials.accuse(proof)
        except (MeshError, OSError) as error:
            logger.warning("the split view with %s is not proven yet: %s", peer, error)
        finally:
            source.close()

    def _split_proof(self, source: FileSource) -> bytes | None:
        """Fetch the peer's metadata of our version; return the proof that both were signed, unverified."""
        version, stored = self._client.base[0], self._client.stored()
        if stored is None:
            return None
        other = b"".join(source.fetch(metadata_path(BASE_ROLE, version)))
        return by_metadata(BASE_ROLE, stored.roles[BASE_ROLE], other, stored.roots)

    def _node_key(self, endorsement: bytes) -> NodeKey:
        return verify_endorsement(
            endorsement, self._identity.anchors_pem(), self._config.trust_domain, self._clock.now_ms()
        )

    def _anchors(self) -> Anchors:
        return Anchors(self._config.trust_domain, self._identity.anchors_pem(), self._roster(), self._root)

    def _roster(self) -> Roster | None:
        return self._rostered

    def _alarm(self, kind: str, text: str) -> None:
        if self._alarms.set(kind, text):
            logger.error("alarm: %s", text)
