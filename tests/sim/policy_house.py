"""Approvers and control plane of the simulated mesh: real TUF metadata, published, renewed, announced, and withheld.

What attackers sign with keys that they have is in `thieves`; a node verifies what it is served by the product's client.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from securesystemslib.signer import CryptoSigner

from tests.sim.lies import resign
from tests.sim.namespace_house import NamespaceHouse
from tests.sim.policy_client import Files
from tests.sim.realm import LEASE_MS, Keys, Settings, keys_named, root, signer
from tests.support.tuf_world import public, sign_raw, twin
from trust.repository import (
    Holders,
    OnlineSigners,
    RepositoryState,
    first_targets,
    next_root,
    next_targets,
    publish,
    renew,
)
from trust.verified import BASE_ROLE, BASE_TARGET

if TYPE_CHECKING:
    import random

    from tests.sim.mesh import Mesh
    from tests.sim.node import Node

LEASE_S = LEASE_MS // 1000
_ROLES = ("root", BASE_ROLE, "snapshot", "timestamp")


class PolicyHouse:
    """What was published, what is served to whom, and what is announced."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self.up, self.broker_up = True, True
        self.settings = Settings(may_pay=True)
        self.version = 0
        self.history: list[Files] = []
        self.keys = keys_named()
        self.roots: tuple[bytes, ...] = ()  # versions 2 and on
        self.frozen: Files | None = None
        self._frozen_keys = self.keys
        self._thawed_ms = 0
        self.victims: set[str] = set()  # who is shown a mesh in which nothing is published any more
        self.state = RepositoryState(root())
        self.archive = b""  # of the newest base
        self._replaced = 0
        self.space = NamespaceHouse(self)

    @property
    def root_version(self) -> int:
        """The newest root's."""
        return len(self.roots) + 1

    def served(self, source: str, to: str) -> Files | None:
        """What a source serves: the newest, or what its lies say."""
        dice = self.world.random
        if source != "cp":
            node = self.world.nodes[source]
            if "serves old policy" in node.lies and self.history:
                return dice.choice(self.history)
            return node.policing.served()
        stolen = self.world.thieves.served(to)
        if stolen is not None:
            return stolen
        if self.frozen is not None and to in self.victims:
            return self.frozen
        if not self.world.quiet and self.world.chance(0.04):
            return dice.choice(self.history)  # somebody in between replays
        return self.history[-1]

    def publish(self, settings: Settings) -> None:
        """Two approvers sign, the control plane publishes."""
        archive, now_ms = settings.archive(), self.world.now_ms
        previous = self.state.role_metadata(BASE_ROLE)
        proposal = (
            first_targets(archive, now_ms=now_ms)
            if previous is None
            else next_targets(previous, archive, now_ms=now_ms)
        )
        signed = sign_raw(proposal, self.world.random.sample(self.keys.approvers, 2))
        self._publish({BASE_ROLE: signed}, {BASE_TARGET: archive})
        self._published(settings, archive)

    def publish_something(self, dice: "random.Random") -> None:
        """Publish the next version, in which alice may pay or not."""
        if self.up:
            self.publish(replace(self.settings, may_pay=dice.random() < 0.6, serial=self.version))

    def rotate(self, role: str, *, everybody: bool = False) -> None:
        """The root holders replace one key of a role, or all; approvers who remain or join sign the policy again."""
        if not self.up:
            return
        world, old = self.world, self._signers(role)
        leaving = old if everybody else (world.random.choice(old),)
        self._replaced += 1
        joining = tuple(signer(f"{role} {self._replaced}.{index}") for index in range(len(leaving)))
        metadata = next_root(
            self.state.root_metadata(),
            now_ms=world.now_ms,
            role=role,
            add=public(joining),
            remove=[one.public_key.keyid for one in leaving],
        )
        holders = self.keys.holders
        self.keys = self._with(role, (*(one for one in old if one not in leaving), *joining))
        signing = dict.fromkeys((*holders[:2], *self.keys.holders[-2:], *self.keys.holders[:2]))
        roles = {"root": sign_raw(metadata, [*signing])}
        if role == BASE_ROLE:
            roles[BASE_ROLE] = self._base_again({})
        self._publish(roles, {})
        self.roots += (roles["root"],)
        world.observer.saw["root rotated"] += 1
        self._published(self.settings, self.archive)

    def resign_base(
        self,
        delegate: Mapping[str, Holders | None],
        roles: Mapping[str, bytes] | None = None,
        targets: Mapping[str, bytes] | None = None,
    ) -> None:
        """Publish namespaces, and with a changed delegation the base, whose approvers sign it again."""
        base = {BASE_ROLE: self._base_again(delegate)} if delegate else {}
        self._publish({**base, **(roles or {})}, targets or {})
        self._published(self.settings, self.archive)

    def _base_again(self, delegate: Mapping[str, Holders | None]) -> bytes:
        previous = self.state.role_metadata(BASE_ROLE)
        assert previous is not None
        again = next_targets(previous, None, now_ms=self.world.now_ms, delegate=delegate)
        return sign_raw(again, self.world.random.sample(self.keys.approvers, 2))

    def rotate_something(self, dice: "random.Random") -> None:
        """Replace one key, as is done now and then."""
        self.rotate(dice.choice(_ROLES))

    def rotate_all(self) -> None:
        """Replace every key: four versions of root at once."""
        for role in (BASE_ROLE, "snapshot", "timestamp", "root"):
            self.rotate(role, everybody=True)

    def without_quorum(self, dice: "random.Random") -> Files:
        """Return what one approver signed, or one key under two names, with snapshot and timestamp over it."""
        previous = self.state.role_metadata(BASE_ROLE)
        assert previous is not None
        archive = Settings(may_pay=True, serial=-1 - dice.randrange(1_000)).archive()
        one = self.keys.approvers[0]
        signers = [one] if dice.random() < 0.5 else [one, twin(one)]
        data = sign_raw(next_targets(previous, archive, now_ms=self.world.now_ms), signers)
        return self.vouched(data, archive, self.keys.online)

    def vouched(self, targets: bytes, archive: bytes, online: OnlineSigners, ahead: int = 0) -> Files:
        """Return targets metadata with what whoever holds the online keys makes of it."""
        timestamp, snapshot = resign(self.state, targets, self.world.now_ms + LEASE_MS, online, ahead)
        self.world.observer.lease_signed_ms[timestamp] = self.world.now_ms
        return Files(timestamp, snapshot, targets, archive, self.roots, self.space.files)

    def freeze(self, victims: set[str]) -> None:
        """Show some nodes from now on a mesh in which nothing is published."""
        if self.frozen is None:
            self.frozen, self.victims, self._frozen_keys = self.history[-1], victims, self.keys

    def renew(self) -> None:
        """Sign the lease anew, again and again; the lease of the frozen mesh, too."""
        if self.up:
            self._take(renew(self.state, self.keys.online, now_ms=self.world.now_ms, lease_ttl_s=LEASE_S))
            self._newest()
            self._announce()
            if self.frozen is not None:
                self.frozen = self.renewed(self.frozen, self._frozen_keys.online)
        self.world.thieves.renew()
        self.world.after(LEASE_MS // 3, self.renew)

    def heal(self) -> None:
        """End all trouble."""
        if self.frozen is not None:
            self._thawed_ms = self.world.now_ms
        self.frozen, self.up, self.broker_up = None, True, True
        if self.space.was_mixed:  # whoever has the online keys can run ahead of their versions
            self.rotate("snapshot")
            self.rotate("timestamp")
        if self.space.said.wide:
            self.space.publish(replace(self.space.said, wide=""))
        while self.version <= self.world.thieves.version:  # what ran ahead is the floor where it was taken
            self.publish(replace(self.settings, serial=self.version))

    def frozen_until_ms(self, now_ms: int) -> int:
        """Return until when somebody was shown a mesh in which nothing is published; 0 for never."""
        return self._thawed_ms if self.frozen is None else now_ms

    def renewed(self, files: Files, online: OnlineSigners) -> Files:
        """Return files with another lease, by whoever has the online keys of then."""
        newest = files.roots[-1] if files.roots else root()
        roles = {BASE_ROLE: files.targets} | {name: data for name, data, _ in files.spaces}
        old = RepositoryState(newest, files.timestamp, files.snapshot, roles)
        more = old.after(renew(old, online, now_ms=self.world.now_ms, lease_ttl_s=LEASE_S))
        assert more.timestamp is not None and more.snapshot is not None
        self.world.observer.lease_signed_ms[more.timestamp] = self.world.now_ms
        return replace(files, timestamp=more.timestamp, snapshot=more.snapshot)

    def _signers(self, role: str) -> tuple[CryptoSigner, ...]:
        if role in {"root", BASE_ROLE}:
            return self.keys.holders if role == "root" else self.keys.approvers
        return (getattr(self.keys.online, role),)

    def _with(self, role: str, signers: tuple[CryptoSigner, ...]) -> Keys:
        if role == "root":
            return replace(self.keys, holders=signers)
        if role == BASE_ROLE:
            return replace(self.keys, approvers=signers)
        return replace(self.keys, online=replace(self.keys.online, **{role: signers[0]}))

    def _publish(self, roles: Mapping[str, bytes], targets: Mapping[str, bytes]) -> None:
        now_ms = self.world.now_ms
        self._take(publish(self.state, roles, targets, self.keys.online, now_ms=now_ms, lease_ttl_s=LEASE_S))

    def _published(self, settings: Settings, archive: bytes) -> None:
        self.settings, self.version = settings, self.state.version_of(BASE_ROLE)
        self.archive = archive
        self.world.observer.published(self.version, archive, settings, delegated=self.space.delegated)
        self._newest()
        self._announce()

    def _newest(self) -> None:
        state = self.state
        assert state.timestamp is not None and state.snapshot is not None
        targets = state.roles[BASE_ROLE]
        files = Files(state.timestamp, state.snapshot, targets, self.archive, self.roots, self.space.files)
        self.world.observer.lease_signed_ms[files.timestamp] = self.world.now_ms
        if not self.history or self.history[-1] != files:
            self.history.append(files)

    def _take(self, files: Mapping[str, bytes]) -> None:
        self.state = self.state.after(files)

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
