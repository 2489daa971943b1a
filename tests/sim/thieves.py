"""Who has stolen keys: a quorum of approvers with the online keys, until root replaces them; or one root key."""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.sim.policy_client import Files
from tests.sim.realm import NODES, Settings, keys_named
from tests.support.tuf_world import sign_raw
from trust.repository import OnlineSigners, next_targets
from trust.verified import BASE_ROLE

if TYPE_CHECKING:
    import random

    from tests.sim.mesh import Mesh


class Thieves:
    """What they have, and whom they show it to."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self.version = 0  # how far ahead their policy ran
        self._victims: set[str] = set()
        self._files: Files | None = None
        self._online: OnlineSigners = keys_named().online

    def served(self, to: str) -> Files | None:
        """What comes to a victim in the place of what the control plane serves; None for nothing."""
        if to in self._victims and not self.world.quiet and self.world.chance(0.6):
            return self._files
        return None

    def renew(self) -> None:
        """Sign their lease anew with the keys of then, for as long as it is of any use."""
        if self._files is not None and not self.world.quiet:
            self._files = self.world.policy.renewed(self._files, self._online)

    def steal(self, dice: "random.Random") -> None:
        """Have k approvers' and the online keys sign a policy, and give it to some; root replaces all keys at once."""
        world, house = self.world, self.world.policy
        if self._files is not None or not house.up:
            return
        previous = house.state.role_metadata(BASE_ROLE)
        assert previous is not None
        archive = Settings(may_pay=True, serial=-2_000).archive()
        proposal = next_targets(previous, archive, now_ms=world.now_ms)
        proposal.signed.version += dice.randrange(4)
        keys = house.keys
        signed, ahead = sign_raw(proposal, dice.sample(keys.approvers, 2)), dice.choice((0, 1_000))
        self._files = house.vouched(signed, archive, keys.online, ahead)
        self._online, self.version = keys.online, proposal.signed.version
        self._victims = set(dice.sample(NODES, dice.randint(1, 2)))
        world.observer.stolen(hashlib.sha256(archive).hexdigest(), ended_by=house.root_version + 1)
        world.observer.saw["quorum stolen"] += 1
        for name in sorted(self._victims):
            world.after(world.latency(), self._given, name)
        house.rotate_all()

    def forged_root(self) -> Files:
        """Return the next root as one root holder would have it, who is everybody in it, and a policy under it."""
        world, house = self.world, self.world.policy
        ours = keys_named("attacker ")
        metadata = ours.root(house.root_version + 1)
        forged = sign_raw(metadata, [house.keys.holders[0], *ours.holders[:2]])
        previous = house.state.role_metadata(BASE_ROLE)
        assert previous is not None
        archive = Settings(may_pay=True, serial=-3_000).archive()
        proposal = next_targets(previous, archive, now_ms=world.now_ms)
        files = house.vouched(sign_raw(proposal, ours.approvers[:2]), archive, ours.online)
        return replace(files, roots=(*house.roots, forged))

    def _given(self, name: str) -> None:
        node = self.world.nodes[name]
        files = self._files
        if node.up and files is not None and not self.world.quiet:
            self.world.guarded(node, lambda: node.offer(files))
