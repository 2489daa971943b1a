"""What goes wrong: the kinds of steps, how a seed draws a schedule of them, and how each is carried out."""

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.sim.namespace_house import Stock
from tests.sim.policy_client import CACHE, FLOOR, Files
from tests.sim.realm import CALLEES, CALLERS, EMERGENCY, NODES, QUORUM
from trust.revocation import Kind, read_directive

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node

TROUBLE_MS = 14_000
_FORGIVEN_MS = 20_000  # how far the clocks of a node and its witness may be apart
FORKS = "equivocates,cosigns anything"
Step = tuple[int, str, int]  # at (ms), what, a number to choose with

_KINDS = (
    ("publish", 5), ("partition", 4), ("one_way", 3), ("heal", 5), ("crash", 6), ("bounce", 2), ("crash_all", 1),
    ("control_plane", 2), ("broker", 2), ("clock", 3), ("slow", 2), ("intercept", 2), ("replay", 2), ("misdirect", 1),
    ("revoke", 3), ("backup", 4), ("restore", 4), ("wipe", 2),
    ("rotate", 3), ("steal", 2), ("forge_root", 1), ("desk", 2),
    ("space", 3), ("delegate", 2), ("mix", 2),
    ("lie", 3), ("no_quorum", 2), ("freeze", 1),
)  # fmt: skip


def schedule_of(seed: int, trouble_ms: int = TROUBLE_MS) -> list[Step]:
    """Draw what goes wrong under a seed."""
    dice = random.Random(f"schedule {seed}")
    names, weights = [name for name, _ in _KINDS], [weight for _, weight in _KINDS]
    every_ms = dice.choice(
        (700, 700, 1_500, 3_000)
    )  # trouble upon trouble, or one at a time in a mesh that works
    times = sorted(
        dice.randint(min(1_000, trouble_ms // 4), trouble_ms) for _ in range(trouble_ms // every_ms)
    )
    return [(at, dice.choices(names, weights)[0], dice.getrandbits(32)) for at in times]


class Trouble:
    """Carries out steps of a schedule."""

    def __init__(self, world: "Mesh") -> None:
        self.world = world
        self._backups: dict[str, tuple[dict[str, Any], int]] = {}
        self._sequence = 0

    def happen(self, what: str, number: int) -> None:
        """Carry out one step."""
        if not self.world.quiet:
            getattr(self, f"_do_{what}")(random.Random(number))

    # network, processes, clocks

    def _do_partition(self, dice: random.Random) -> None:
        everybody = [*NODES, "cp", "broker"]
        side = set(dice.sample(everybody, dice.randint(1, 3)))
        self.world.cut |= {(a, b) for a in everybody for b in everybody if (a in side) != (b in side)}

    def _do_one_way(self, dice: random.Random) -> None:
        a, b = dice.sample([*NODES, "cp"], 2)
        self.world.cut.add((a, b))

    def _do_alone(self, _dice: random.Random) -> None:
        """Two witnesses are lost to the others, the callees are not."""
        cut = self.world.cut
        cut |= {(a, b) for a in CALLERS for b in (*CALLERS, "n2") if a != b}
        cut |= {(b, a) for a, b in cut}

    def _do_watch(self, _dice: random.Random) -> None:
        """From now on streams are many and long."""
        self.world.watches, self.world.watched_ms = 0.9, 15_000

    def _do_heal(self, dice: random.Random) -> None:
        self.world.cut.clear()
        self.world.loss = dice.choice((0.0, 0.05, 0.3))

    def _do_slow(self, dice: random.Random) -> None:
        self.world.delay_ms = dice.choice((20, 120, 900))

    def _do_crash(self, dice: random.Random) -> None:
        node = self.world.nodes[dice.choice(NODES)]
        if node.up:
            self.world.died(node)

    def _do_bounce(self, dice: random.Random) -> None:
        """A callee restarts at once, while what it executed can still be replayed."""
        node = self.world.nodes[dice.choice(CALLEES)]
        if node.up:
            self.world.died(node, longest_ms=500)

    def _do_restart(self, _dice: random.Random) -> None:
        """The callers restart at once, while what they used up can still be shown to them."""
        for name in CALLERS:
            if self.world.nodes[name].up:
                self.world.died(self.world.nodes[name], longest_ms=500)

    def _do_crash_all(self, _dice: random.Random) -> None:
        for node in self.world.nodes.values():
            if node.up:
                self.world.died(node)

    def _do_control_plane(self, _dice: random.Random) -> None:
        self.world.policy.up = not self.world.policy.up

    def _do_broker(self, _dice: random.Random) -> None:
        self.world.policy.broker_up = not self.world.policy.broker_up

    def _do_clock(self, dice: random.Random) -> None:
        node = self.world.nodes[dice.choice(NODES)]
        if self.world.jumps:
            skew_ms = dice.choice((-3_600_000, -60_000, -4_000, 4_000, 60_000, 3_600_000, 0))
            # A quorum whose clocks are wrong together is a quorum: what it signs ahead of time, it waits for.
            alike = sum(one is not node and one.skew_ms == skew_ms for one in self.world.nodes.values())
            if abs(skew_ms) < _FORGIVEN_MS or alike < QUORUM - 1:
                node.skew_ms = skew_ms
        else:
            node.skew_ms = dice.randint(-1_000, 1_000)

    def _do_ahead(self, _dice: random.Random) -> None:
        """The clocks of the callers jump ahead together."""
        for name in CALLERS:
            self.world.nodes[name].skew_ms = 3_600_000

    # policy and revocation

    def _do_publish(self, dice: random.Random) -> None:
        self.world.policy.publish_something(dice)

    def _do_no_quorum(self, dice: random.Random) -> None:
        self._shown_to_all(self.world.policy.without_quorum(dice))

    def _do_desk(self, _dice: random.Random) -> None:
        """The desk of approvals begins, or ends, to show what it likes."""
        self.world.approving.lies = not self.world.approving.lies

    def _do_rotate(self, dice: random.Random) -> None:
        self.world.policy.rotate_something(dice)

    def _do_space(self, dice: random.Random) -> None:
        self.world.policy.space.publish_something(dice)

    def _do_delegate(self, dice: random.Random) -> None:
        self.world.policy.space.delegate(dice, anew=dice.random() < 0.5)

    def _do_mix(self, dice: random.Random) -> None:
        files = self.world.policy.space.mixed(dice)
        if files is not None:
            self._shown_to_all(files)

    def _do_widen(self, _dice: random.Random) -> None:
        """The namespace's approvers sign a bundle that speaks of the base's service, which withdrew the right."""
        house = self.world.policy
        if house.up:
            house.publish(replace(house.settings, may_pay=False, serial=house.version))
            house.space.publish(Stock(may=True, wide="anything", serial=house.version))

    def _do_steal(self, dice: random.Random) -> None:
        self.world.thieves.steal(dice)

    def _do_forge_root(self, _dice: random.Random) -> None:
        self._shown_to_all(self.world.thieves.forged_root())

    def _shown_to_all(self, files: Files) -> None:
        for node in self.world.nodes.values():
            if node.up:
                self.world.guarded(node, lambda node=node: node.offer(files))  # type: ignore[misc]

    def _do_freeze(self, dice: random.Random) -> None:
        self.world.policy.freeze(set(dice.sample(NODES, dice.randint(1, 2))))

    def _do_revoke(self, dice: random.Random) -> None:
        self._sequence += 1
        world = self.world
        data = EMERGENCY.revoke(
            Kind.WORKLOAD,
            "alice",
            now_ms=world.now_ms,
            ttl_s=dice.choice((3, 8, 15)),
            sequence=self._sequence,
        )
        world.observer.genuine.add(read_directive(data).id)
        node = world.nodes[dice.choice(NODES)]
        if node.up:
            world.guarded(node, lambda: node.keeper.revoke(data))

    # attackers and liars

    def _do_intercept(self, _dice: random.Random) -> None:
        self.world.attacker.intercepts = not self.world.attacker.intercepts

    def _do_tamper(self, dice: random.Random) -> None:
        self.world.attacker.replay(dice, changed=True)

    def _do_misdirect(self, _dice: random.Random) -> None:
        self.world.misdirects = 0.9

    def _do_replay(self, dice: random.Random) -> None:
        self.world.attacker.replay(dice)

    def _do_backup(self, _dice: random.Random) -> None:
        for node in self.world.nodes.values():
            self._backups[node.name] = (dict(node.disk.files), node.ledger.durable_size)

    def _do_wipe(self, dice: random.Random) -> None:
        """A node loses the cache of its policy, sometimes with the floor beside it, and starts anew."""
        world, floor = self.world, dice.random() < 0.5
        node = world.nodes[dice.choice(NODES)]
        if node.up:
            world.died(node, longest_ms=500)
            lost = [one for one in node.disk.files if one.startswith(f"{CACHE}/") or (floor and one == FLOOR)]
            for name in lost:
                del node.disk.files[name]
            world.observer.wiped(node, floor=floor)

    def _do_restore(self, dice: random.Random) -> None:
        """One disk comes back from a backup: its owner counts as the member that may lie."""
        world, name = self.world, dice.choice(NODES)
        if self._somebody_lies() or (world.restored and name not in world.restored):
            return
        node = world.nodes[name]
        if name in self._backups and node.up:
            files, size = self._backups[name]
            if node.disk.files != files:
                world.died(node, longest_ms=dice.choice((500, 6_000)))
                node.disk.files = dict(files)
                node.ledger.cut(size)
                world.restored.add(name)
                world.observer.restored(name)

    def _do_lie(self, dice: random.Random) -> None:
        """One member begins to lie: as many as the roster tolerates."""
        node = self.world.nodes[dice.choice(NODES)]
        lie = dice.choice(
            (FORKS, FORKS, "rewrites", "cosigns anything", "boasts", "boasts", "serves old policy")
        )
        node_hides = dice.random() < 0.5
        if self._may_lie():
            node.hides = node_hides
            self.begin_lie(node, lie)

    def _do_fork(self, dice: random.Random) -> None:
        """One member shows two histories of its ledger: each witness one, and in gossip perhaps only one."""
        node = self.world.nodes[dice.choice(NODES)]
        if self._may_lie():
            node.hides = dice.random() < 0.5
            self.begin_lie(node, FORKS)

    def _do_rewrite(self, dice: random.Random) -> None:
        """One member changes what is in its ledger since long, or cuts it, and shows everybody the same."""
        node = self.world.nodes[dice.choice(NODES)]
        if self._may_lie():
            node.hides = dice.random() < 0.5
            self.begin_lie(node, "rewrites")

    def _do_boast(self, dice: random.Random) -> None:
        """One caller shows whatever credential it has, for ever."""
        if self._may_lie():
            self.begin_lie(self.world.nodes[dice.choice(CALLERS)], "boasts")

    def begin_lie(self, node: "Node", lie: str) -> None:
        """Have a node lie from now on."""
        node.lies |= set(lie.split(","))
        if "equivocates" in node.lies:
            node.fork_at = node.ledger.durable_size
        if "rewrites" in node.lies:
            self._rewrite(node)

    def _rewrite(self, node: "Node") -> None:
        dice, size = self.world.random, node.ledger.durable_size
        if not size:
            return
        node.rewrote_at = at = dice.randrange(size)
        if dice.random() < 0.5 or not node.up:
            node.ledger.rewrite(at)
        else:  # what was there since then is gone
            self.world.died(node, longest_ms=500)
            node.ledger.cut(at)

    def _may_lie(self) -> bool:
        return not self.world.restored and not self._somebody_lies()

    def _somebody_lies(self) -> bool:
        return any(node.lies for node in self.world.nodes.values())
