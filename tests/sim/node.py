"""One simulated sidecar: production cores, desk, notary, keeper and stores; only their world is simulated.

What is written here and in `attesting`, `witnessing`, `talking` and `calling` stands in for the edges that own sockets
and tasks (driver, door, attestation loop, gossip loop), and does in the same order what they do.
"""

import functools
from typing import TYPE_CHECKING

from sidecar.core.bundle_state import BundleState, Effect, Persist, Record, Swap
from sidecar.core.endorsements import Endorsements
from sidecar.core.feed_state import FeedState, Refresh, poll_interval_ms
from sidecar.core.pipeline import Pipeline
from sidecar.core.trust_state import TrustState
from tests.sim.attesting import Attesting
from tests.sim.calling import Calling
from tests.sim.kernel import Disk, SimPath, UnreachableError
from tests.sim.ledger import SimLedger
from tests.sim.policy_client import Policing
from tests.sim.realm import DOMAIN, LEASE_MS, NODES, endorsed, endorsement_of, signing_key
from tests.sim.streaming import Streaming
from tests.sim.talking import Talking
from tests.sim.witnessing import Witnessing
from trust.edge.denial_keeper import DenialKeeper
from trust.errors import MeshError
from trust.misbehaviour import Anchors
from trust.spiffe import SpiffeId
from trust.verified import VerifiedPolicy

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.policy_client import Files


class Node:
    """One member. `lies` holds in which ways it does not follow the protocol."""

    def __init__(self, name: str, world: "Mesh") -> None:
        self.name, self.world = name, world
        self.me = SpiffeId.of(DOMAIN, "node", name)
        self.private = signing_key(name)
        self.public = self.private.public
        self.endorsement = endorsement_of(name)
        self.disk = Disk(name, lambda: world.chance(world.torn))
        self.ledger = SimLedger(self)
        self.skew_ms = world.random.randint(-1_000, 1_000)
        self.refunds: list[bytes] = []  # what alice beside it wants approved
        self.lies: set[str] = set()
        self.fork_at: int | None = None  # from which record on it has two histories
        self.rewrote_at: int | None = None  # which record it changed, or where it cut
        self.hides = False  # in gossip shows one history alone
        self.up, self.boots, self._booted_ms = False, 0, 0

    # clock and life

    def now_ms(self) -> int:
        """Return the wall clock."""
        return self.world.now_ms + self.skew_ms

    def monotonic_ms(self) -> int:
        """Return the monotonic clock."""
        return self.world.now_ms - self._booted_ms + 5_000

    def trusted_ms(self) -> int:
        """Return the wall clock, never behind signed time."""
        return self.state.trusted_now_ms(self.now_ms(), self.monotonic_ms())

    def boot(self) -> None:
        """Start from what the disk holds."""
        self.up, self.boots, self._booted_ms = True, self.boots + 1, self.world.now_ms
        world, disk = self.world, self.disk
        record = disk.files.get("record", Record())
        self.state = BundleState(record, monotonic_ms=self.monotonic_ms())
        self.feed = FeedState(poll_ms=poll_interval_ms(LEASE_MS / 1000))
        self.newest: tuple[int, bytes] = (0, b"")
        self.base: tuple[int, bytes] = (0, b"")
        self.policing = Policing(self)
        self.keeper = DenialKeeper(
            SimPath(disk, "denials.json"),  # type: ignore[arg-type]
            DOMAIN,
            now_ms=self.trusted_ms,
            monotonic_ms=self.monotonic_ms,
            anchors=self._anchors,
            changed=lambda _changed: self.pipeline.governance_changed(),
        )
        self.trust = TrustState(
            self.me,
            lambda: None if self.state.in_force is None else self.state.in_force.engine.mesh,
            trusted=lambda now_ms: self.state.trusted_now_ms(now_ms, self.monotonic_ms()),
            denials=self.keeper.denials,
            verified=lambda credential: self.talking.vouched(credential.data),
        )
        self.streaming = Streaming(self)
        self.pipeline = Pipeline(
            node=self.name,
            trust_domain=DOMAIN,
            boot_id=f"{self.name}{self.boots}",
            state=self.state,
            clock=self,
            denials=self.keeper.denials,
            attested=self._attested,
            doubtful=self.streaming.doubtful,
            vouched=lambda caller, now_ms: self.trust.check_caller(caller, now_ms=now_ms),
        )
        self.endorsements = Endorsements(lambda: b"", DOMAIN)
        for name in NODES:
            self.endorsements.hold(endorsed(endorsement_of(name)))
        self.calling = Calling(self)
        self.calling.begin()
        self.attesting = Attesting(self)
        self.talking = Talking(self)
        self.witness = Witnessing(self)
        policy = self.policing.load()
        if policy is not None:
            self._kept()
            self._take(policy, resumed=True)
        world.after(0, self._tick, self.boots)

    def crash(self) -> None:
        """Die; the disk keeps what was durable."""
        self.up = False
        self.ledger.crash()

    def equivocated(self) -> bool:
        """Whether its ledger has two faces by now."""
        return (
            "equivocates" in self.lies
            and self.fork_at is not None
            and self.ledger.durable_size > self.fork_at
        )

    def _attested(self, now_ms: int, monotonic_ms: int) -> bool:
        return "boasts" in self.lies or self.trust.attested(now_ms, monotonic_ms)

    # policy

    def offer(self, files: "Files") -> int | None:
        """Have the client verify and keep files, and take up what they say; return the lease's version, or None."""
        try:
            policy = self.policing.take(files)
        except MeshError:
            return None
        self._kept()
        self._take(policy)
        return policy.versions["timestamp"]

    def _kept(self) -> None:
        self.newest, self.base = self.policing.client.newest, self.policing.client.base
        self.world.observer.kept(self)

    def _take(self, policy: VerifiedPolicy, *, resumed: bool = False) -> None:
        try:
            effects = self.state.offer(
                policy,
                self.world.engines.of(policy),
                now_ms=self.now_ms(),
                monotonic_ms=self.monotonic_ms(),
                resumed=resumed,
            )
        except MeshError:
            return
        self.world.observer.leased(self, policy, resumed=resumed)
        self.run(effects)

    def run(self, effects: list[Effect]) -> None:
        """Run effects in their order."""
        for effect in effects:
            if isinstance(effect, Persist):
                self.disk.write("record", effect.record)
            elif isinstance(effect, Swap):
                self.keeper.govern(effect.now_in_force.engine.mesh)
                self.pipeline.governance_changed()
            else:
                self.pipeline.governance_changed()

    def look(self, refresh: Refresh | None) -> None:
        """Do what the feed asks for."""
        if refresh is not None:
            self.world.spawn(self, self._refresh())

    async def _refresh(self) -> None:
        version = None
        for source in ("cp", *self.world.random.sample([one for one in NODES if one != self.name], 2)):
            try:
                files = await self.world.rpc(
                    self.name, source, functools.partial(self.world.policy.served, source, self.name)
                )
            except UnreachableError:
                continue
            if files is None:
                continue
            version = self.offer(files)
            if version is not None:
                break
        now_ms, jitter = self.monotonic_ms(), self.world.random.random()
        if version is None:
            self.feed.failed(now_ms=now_ms, jitter=jitter)
        else:
            self.look(self.feed.refreshed(version, now_ms=now_ms, jitter=jitter))

    def _tick(self, boot: int) -> None:
        if not self.up or boot != self.boots:
            return
        now_ms, mono_ms = self.now_ms(), self.monotonic_ms()
        self.run(self.state.tick(now_ms=now_ms, monotonic_ms=mono_ms))
        if self.world.chance(0.1) and self.state.in_force is not None:
            self.run([self.state.checkpoint(mono_ms)])
        self.keeper.tick()
        self.look(self.feed.tick(now_ms=mono_ms))
        self.witness.tick()
        self.attesting.tick()
        self.calling.tick()
        self.streaming.tick()
        self.talking.tick()
        self.world.after(250, self._tick, boot)

    def _anchors(self) -> Anchors:
        return Anchors(DOMAIN, b"simulated", self.trust.roster, b"")
