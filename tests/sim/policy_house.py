"""Approvers and control plane of the simulated mesh: real TUF metadata, published, renewed, announced, and withheld.

A node verifies what it is served by `trust.chain`, as the policy client does; the same bytes are verified once.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuf.api.metadata import Root

from tests.sim.lies import resign
from tests.sim.realm import LEASE_MS, Settings, approvers, online, root
from tests.support.tuf_world import sign_raw, twin
from trust.chain import Stored, verify_metadata, verify_policy, verify_roots
from trust.errors import MeshError
from trust.repository import RepositoryState, first_targets, next_targets, publish, renew
from trust.verified import BASE_ROLE, BASE_TARGET, VerifiedPolicy

if TYPE_CHECKING:
    import random

    from tests.sim.mesh import Mesh
    from tests.sim.node import Node

LEASE_S = LEASE_MS // 1000


@dataclass(frozen=True)
class Files:
    """What a policy source serves."""

    timestamp: bytes
    snapshot: bytes
    targets: bytes
    archive: bytes


@functools.cache
def _trusted_root() -> Root:
    return verify_roots(root(), ())


class PolicyHouse:
    """What was published, what is served to whom, and what is announced."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self.up, self.broker_up = True, True
        self.settings = Settings(may_pay=True)
        self.version = 0
        self.history: list[Files] = []
        self.frozen: Files | None = None
        self._thawed_ms = 0
        self.victims: set[str] = set()  # who is shown a mesh in which nothing is published any more
        self._state = RepositoryState(root())
        self._archives: dict[int, bytes] = {}
        self._verified: dict[Files, VerifiedPolicy | MeshError] = {}

    def verified(self, files: Files) -> VerifiedPolicy:
        """Verify as the policy client does.

        Raises:
            MeshError: as `trust.chain`.
        """
        known = self._verified.get(files)
        if known is None:
            stored = Stored((), files.timestamp, files.snapshot, {BASE_ROLE: files.targets})
            try:
                known = verify_policy(verify_metadata(_trusted_root(), stored), lambda _sha256: files.archive)
            except MeshError as error:
                known = error
            self._verified[files] = known
        if isinstance(known, MeshError):
            raise known
        return known

    def served(self, source: str, to: str) -> Files | None:
        """What a source serves: the newest, or what its lies say."""
        dice = self.world.random
        if source != "cp":
            node = self.world.nodes[source]
            if "serves old policy" in node.lies and self.history:
                return dice.choice(self.history)
            kept: Files | None = node.disk.files.get("policy")
            return kept
        if self.frozen is not None and to in self.victims:
            return self.frozen
        if not self.world.quiet and self.world.chance(0.04):
            return dice.choice(self.history)  # somebody in between replays
        return self.history[-1]

    def publish(self, settings: Settings) -> None:
        """Two approvers sign, the control plane publishes."""
        archive, now_ms, observer = settings.archive(), self.world.now_ms, self.world.observer
        previous = self._state.role_metadata(BASE_ROLE)
        proposal = (
            first_targets(archive, now_ms=now_ms)
            if previous is None
            else next_targets(previous, archive, now_ms=now_ms)
        )
        signed = sign_raw(proposal, self.world.random.sample(approvers(), 2))
        self._take(
            publish(
                self._state, {BASE_ROLE: signed}, {BASE_TARGET: archive}, online(),
                now_ms=now_ms, lease_ttl_s=LEASE_S,
            )
        )  # fmt: skip
        self.settings, self.version = settings, self._state.version_of(BASE_ROLE)
        self._archives[self.version] = archive
        policy = self.verified(self._newest(archive))
        observer.legitimate[policy.base.sha256] = settings.may_pay
        if settings.may_pay:
            observer.withdrawn_ms.clear()
        else:
            observer.withdrawn_ms[self.version] = now_ms
        self._announce()

    def publish_something(self, dice: "random.Random") -> None:
        """Publish the next version, in which alice may pay or not."""
        if self.up:
            self.publish(replace(self.settings, may_pay=dice.random() < 0.6, serial=self.version))

    def without_quorum(self, dice: "random.Random") -> Files:
        """Return what one approver signed, or one key under two names, with snapshot and timestamp over it."""
        previous = self._state.role_metadata(BASE_ROLE)
        assert previous is not None
        archive = Settings(may_pay=True, serial=-1 - dice.randrange(1_000)).archive()
        one = approvers()[0]
        signers = [one] if dice.random() < 0.5 else [one, twin(one)]
        data = sign_raw(next_targets(previous, archive, now_ms=self.world.now_ms), signers)
        timestamp, snapshot = resign(self._state, data, self.world.now_ms + LEASE_MS)
        self.world.observer.lease_signed_ms[timestamp] = self.world.now_ms
        return Files(timestamp, snapshot, data, archive)

    def freeze(self, victims: set[str]) -> None:
        """Show some nodes from now on a mesh in which nothing is published."""
        if self.frozen is None:
            self.frozen, self.victims = self.history[-1], victims

    def renew(self) -> None:
        """Sign the lease anew, again and again; the lease of the frozen mesh, too."""
        if self.up:
            self._take(renew(self._state, online(), now_ms=self.world.now_ms, lease_ttl_s=LEASE_S))
            self._newest(self._archives[self.version])
            self._announce()
            if self.frozen is not None:
                self.frozen = self._renewed(self.frozen)
        self.world.after(LEASE_MS // 3, self.renew)

    def heal(self) -> None:
        """End all trouble."""
        if self.frozen is not None:
            self._thawed_ms = self.world.now_ms
        self.frozen, self.up, self.broker_up = None, True, True

    def frozen_until_ms(self, now_ms: int) -> int:
        """Return until when somebody was shown a mesh in which nothing is published; 0 for never."""
        return self._thawed_ms if self.frozen is None else now_ms

    def _renewed(self, files: Files) -> Files:
        old = RepositoryState(root(), files.timestamp, files.snapshot, {BASE_ROLE: files.targets})
        more = old.after(renew(old, online(), now_ms=self.world.now_ms, lease_ttl_s=LEASE_S))
        assert more.timestamp is not None and more.snapshot is not None
        self.world.observer.lease_signed_ms[more.timestamp] = self.world.now_ms
        return Files(more.timestamp, more.snapshot, files.targets, files.archive)

    def _newest(self, archive: bytes) -> Files:
        state = self._state
        assert state.timestamp is not None and state.snapshot is not None
        files = Files(state.timestamp, state.snapshot, state.roles[BASE_ROLE], archive)
        self.world.observer.lease_signed_ms[files.timestamp] = self.world.now_ms
        if not self.history or self.history[-1] != files:
            self.history.append(files)
        return files

    def _take(self, files: Mapping[str, bytes]) -> None:
        self._state = self._state.after(files)

    def _announce(self) -> None:
        """Retained announcement by the broker: lost, doubled, late."""
        if not self.broker_up:
            return
        world, raw = self.world, self.history[-1].timestamp
        for node in world.nodes.values():
            for _ in range(world.random.choice((0, 1, 1, 2))):
                if world.arrives("broker", node.name):
                    world.after(world.latency(), self._announced, node, raw)

    @staticmethod
    def _announced(node: "Node", raw: bytes) -> None:
        if node.up:
            node.talking.member._announced(raw)
