"""A mesh in simulated time: the sidecars' production cores, a control plane, a bad network, disks and clocks.

Every choice is drawn from one seeded generator and every event is taken from one ordered queue, so a seed
replays exactly. What is simulated is the world; what decides is `BundleState`, `FeedState` and `Pipeline`.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar.core.bundle_state import BundleState, Effect, Persist, Record, Swap, Turned
from sidecar.core.call import Permitted, RefusedError
from sidecar.core.feed_state import FeedState, Refresh, poll_interval_ms
from sidecar.core.pipeline import Pipeline
from tests.support.sidecar_core import ALICE, ALLOW, PAY, RuleDecider, attempt, mesh, verified
from trust.announce import Announced
from trust.errors import MeshError, StateError
from trust.verified import VerifiedPolicy

TTL_S, GRACE_S = 6, 9
LEASE_MS, GRACE_MS = TTL_S * 1000, GRACE_S * 1000
SKEW_MS = 1_000  # how wrong a wall clock may be without being called broken
START_MS = 1_800_000_000_000
DELIVERY_MS = 400  # the longest delay of a message that is not lost
# Every period brings a poll; two lost ones still leave one in time (sidecar.core.feed_state).
CONVERGE_PERIODS = 8


class Violation(AssertionError):
    """An invariant of the design does not hold."""


@dataclass
class Published:
    """What the control plane would serve now. `permits`: whether alice may pay under each version."""

    version: int = 1
    timestamp: int = 1
    signed_ms: int = START_MS
    permits: dict[int, bool] = field(default_factory=lambda: {1: True})

    def policy(self) -> VerifiedPolicy:
        return verified(
            self.version,
            timestamp=self.timestamp,
            lease_expires_ms=self.signed_ms + LEASE_MS,
            digest=f"d{self.version}",
        )


class Node:
    """One sidecar: its cores, what its disk holds, and its two clocks."""

    def __init__(self, name: str, world: "World") -> None:
        self.name, self._world = name, world
        self.disk = Record()
        self.cached: VerifiedPolicy | None = None  # what its TUF client would load again
        self.cached_rules: dict[int, bool] = {}
        self.skew_ms = world.random.randint(-SKEW_MS, SKEW_MS)
        self.up = False
        self.accepted = 0  # highest base version that it ever enforced, as an observer wrote it down
        self.signed_ms = 0  # when the newest lease that reached it was signed, true time
        self.boots = 0

    def now_ms(self) -> int:
        return self._world.now_ms + self.skew_ms

    def monotonic_ms(self) -> int:
        return self._world.now_ms - self._booted_ms + 5_000

    def boot(self) -> None:
        self.up, self.boots = True, self.boots + 1
        self._booted_ms = self._world.now_ms
        self.state = BundleState(self.disk, monotonic_ms=self.monotonic_ms())
        self.feed = FeedState(poll_ms=poll_interval_ms(TTL_S))
        self.pipeline = Pipeline(
            node=self.name,
            trust_domain="mesh.local",
            boot_id=f"{self.name}{self.boots}",
            state=self.state,
            clock=self,
        )
        if self.cached is not None:
            self.offer(self.cached, resumed=True)
        self._world.after(0, self._tick, self.boots)

    def crash(self) -> None:
        self.up = False

    def offer(self, policy: VerifiedPolicy, *, resumed: bool = False) -> None:
        """Do what the driver does: offer, then run the effects in order, perhaps dying between two."""
        rules = self._world.published.permits
        allowed = {(ALICE, PAY): ALLOW} if rules[policy.base.version] else {}
        engine = RuleDecider(mesh=mesh(4, TTL_S, GRACE_S), rules=allowed)
        try:
            effects = self.state.offer(
                policy, engine, now_ms=self.now_ms(), monotonic_ms=self.monotonic_ms(), resumed=resumed
            )
        except StateError:
            return
        self.run(effects)

    def run(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self._world.random.random() < self._world.torn:
                self.crash()  # before this effect was carried out; it comes back by the schedule
                return
            if isinstance(effect, Persist):
                self.disk = effect.record
            elif isinstance(effect, (Swap, Turned)):
                self.pipeline.governance_changed()

    def call(self) -> Permitted | None:
        try:
            return self.pipeline.authorize(attempt(), None, now_ms=self.now_ms())
        except RefusedError:
            return None

    def hear(self, announced: Announced) -> None:
        if self.up:
            self._look(self.feed.announced(announced, now_ms=self.monotonic_ms()))

    def _tick(self, boot: int) -> None:
        if not self.up or boot != self.boots:
            return
        self.run(self.state.tick(now_ms=self.now_ms(), monotonic_ms=self.monotonic_ms()))
        self.run([self.state.checkpoint(self.monotonic_ms())])
        if self.up:
            self._look(self.feed.tick(now_ms=self.monotonic_ms()))
            self._world.after(100, self._tick, boot)

    def _look(self, refresh: Refresh | None) -> None:
        if refresh is None:
            return
        boot = self.boots
        answer = self._world.serve(self.name)
        delay = self._world.random.randint(1, DELIVERY_MS)
        self._world.after(delay, self._arrived, boot, answer)

    def _arrived(self, boot: int, answer: VerifiedPolicy | None) -> None:
        if not self.up or boot != self.boots:
            return
        jitter = self._world.random.random()
        if answer is None:
            self.feed.failed(now_ms=self.monotonic_ms(), jitter=jitter)
            return
        known = self.cached
        if known is None or answer.versions["timestamp"] >= known.versions["timestamp"]:
            self.cached = answer  # a TUF client keeps nothing older than it has
            self.signed_ms = max(self.signed_ms, answer.lease_expires_ms - LEASE_MS)
        try:
            self.offer(answer)
        finally:
            again = self.feed.refreshed(
                answer.versions["timestamp"], now_ms=self.monotonic_ms(), jitter=jitter
            )
        if self.up:
            self._look(again)


class World:
    """Everything, at one moment. `step` runs the next event; `check` is asked after each."""

    def __init__(self, seed: int, nodes: int = 3) -> None:
        self.random = random.Random(seed)
        self.now_ms = START_MS
        self.torn = 0.002
        self.events = 0
        self.control_plane_up = True
        self.cut: set[str] = set()  # nodes that reach nothing
        self.lossy = 0.1
        self.published = Published()
        self.history: list[VerifiedPolicy] = [self.published.policy()]
        self._queue: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = 0
        self.nodes = [Node(f"n{index}", self) for index in range(nodes)]
        for node in self.nodes:
            self.after(self.random.randint(0, 200), self._boot, node)
        self.after(0, self._renew)
        self.after(500, self._trouble)
        self.quiet = False

    def after(self, delay_ms: int, action: Callable[..., None], *arguments: object) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._number, action, arguments))

    def step(self) -> None:
        at, _, action, arguments = heapq.heappop(self._queue)
        self.now_ms = at
        self.events += 1
        action(*arguments)
        self.check()

    def serve(self, node: str) -> VerifiedPolicy | None:
        """What a fetch by `node` brings: nothing, the newest, or (a lying source) something older."""
        if node in self.cut or not self.control_plane_up or self.random.random() < self.lossy:
            return None
        if not self.quiet and self.random.random() < 0.05:
            return self.random.choice(self.history)
        return self.published.policy()

    def _boot(self, node: Node) -> None:
        if not node.up:
            node.boot()

    def _renew(self) -> None:
        if self.control_plane_up:
            self.published.timestamp += 1
            self.published.signed_ms = self.now_ms
            self.history.append(self.published.policy())
            self._announce()
        self.after(LEASE_MS // 3, self._renew)

    def _announce(self) -> None:
        for node in self.nodes:
            for _ in range(self.random.choice((0, 1, 1, 2))):  # lost, delivered, delivered twice
                version = self.published.timestamp
                if self.random.random() < 0.1:
                    version += self.random.randint(-5, 1_000)  # replayed or forged: a hint, nothing more
                if node.name not in self.cut:
                    hint = Announced(max(1, version), b"")
                    self.after(self.random.randint(1, DELIVERY_MS), node.hear, hint)

    def _trouble(self) -> None:
        if self.quiet:
            return
        node = self.random.choice(self.nodes)
        what = self.random.randrange(8)
        if what == 0 and self.control_plane_up:
            self.published.version += 1
            self.published.permits[self.published.version] = self.random.random() < 0.6
            self.published.timestamp += 1
            self.published.signed_ms = self.now_ms
            self.history.append(self.published.policy())
            self._announce()
        elif what == 1:
            self.cut ^= {node.name}
        elif what == 2:
            self.control_plane_up = not self.control_plane_up
        elif what == 3 and node.up:
            node.crash()
            self.after(self.random.randint(0, 30_000), self._boot, node)
        elif what == 4:
            node.skew_ms += self.random.choice((-3_600_000, -60_000, 30_000, 3_600_000))
        elif what == 5:
            node.skew_ms = self.random.randint(-SKEW_MS, SKEW_MS)
        elif what == 6:
            self.lossy = self.random.choice((0.0, 0.1, 0.5))
        for dead in self.nodes:
            if not dead.up:
                self.after(self.random.randint(0, 5_000), self._boot, dead)
        self.after(self.random.randint(50, 2_000), self._trouble)

    def heal(self) -> None:
        """End all trouble: everything up, connected, and with a clock that is right."""
        self.quiet, self.cut, self.lossy, self.torn = True, set(), 0.0, 0.0
        if not self.control_plane_up:
            self.control_plane_up = True
        for node in self.nodes:
            node.skew_ms = 0
            if not node.up:
                node.boot()

    def run(self, events: int) -> None:
        """Run `events` events of trouble, heal, and demand convergence."""
        for _ in range(events):
            self.step()
        self.heal()
        until = self.now_ms + CONVERGE_PERIODS * LEASE_MS // 3
        while self.now_ms < until:
            self.step()
        for node in self.nodes:
            if node.accepted != self.published.version:
                raise Violation(
                    f"invariant 8: {node.name} is at {node.accepted}, not {self.published.version}"
                )
            if (node.call() is not None) != self.published.permits[self.published.version]:
                raise Violation(f"invariant 8: {node.name} does not decide by the newest policy")

    def check(self) -> None:
        """Hold every node against the invariants, as an observer who knows the true time."""
        for node in self.nodes:
            if not node.up:
                continue
            held = node.state.in_force
            version = 0 if held is None else held.version
            if held is not None and version < node.accepted:
                raise Violation(f"invariant 3: {node.name} went from version {node.accepted} to {version}")
            node.accepted = max(node.accepted, version)
            permitted = node.call()
            if permitted is None:
                continue
            if not self.published.permits[permitted.decision.policy_version]:
                raise Violation(f"invariant 4: {node.name} used a right that version {version} withdrew")
            # The newest lease was signed then; nobody may be allowed longer than the signed times after it,
            # but for how wrong a clock may be when a node starts.
            late = self.now_ms - (node.signed_ms + LEASE_MS + GRACE_MS) - 2 * SKEW_MS
            if late > 0 and node.boots == 1:
                raise Violation(f"invariant 2: {node.name} allowed {late} ms after lease and grace")


def run_seed(seed: int, events: int = 1_500) -> int:
    """Run one seed; return how many events it had.

    Raises:
        Violation: naming the invariant, the seed, and the command that replays it.
    """
    world = World(seed)
    try:
        world.run(events)
    except (Violation, MeshError) as error:
        raise Violation(
            f"{error}\nseed {seed}, event {world.events}: python -m tests.sim --seed {seed}"
        ) from error
    return world.events
