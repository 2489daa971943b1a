"""A whole mesh in simulated time: four sidecars, a control plane, approvers, an attacker on the network, bad luck.

`schedule_of(seed)` draws what goes wrong; `Mesh.run` lets it happen, heals, and demands convergence. The invariants are
held after every event by `tests.sim.observer`.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.sim.kernel import Coro, DiedError, Future, Kernel, UnreachableError, Violation
from tests.sim.node import CERTIFICATE, Node
from tests.sim.observer import Observer
from tests.sim.realm import (
    CALLEES,
    CALLERS,
    EMERGENCY,
    LEASE_MS,
    MAX_LAG_MS,
    NODES,
    STRANGER,
    TRUST_TTL_MS,
    Settings,
    approvers,
    online,
    root,
)
from tests.sim.stand_ins import stand_ins
from tests.support.tuf_world import sign_raw, twin
from trust.chain import Stored, verify_metadata, verify_policy, verify_roots
from trust.edge.gossip import to_wire
from trust.errors import MeshError
from trust.gossip import Head, Told
from trust.misbehaviour import LEDGER_FORK, Proof
from trust.repository import RepositoryState, first_targets, next_targets, publish, renew
from trust.revocation import Kind, read_directive
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE, BASE_TARGET, VerifiedPolicy

TROUBLE_MS = 14_000
# Bounded time from the heal to convergence: a missed lease, then a credential, then gossip to everybody. A node
# passed over by gossip comes back within 30 s; policy and credentials do not wait for that.
CONVERGE_MS = LEASE_MS + TRUST_TTL_MS + MAX_LAG_MS
FORKS = "equivocates,cosigns anything"
Step = tuple[int, str, int]  # at (ms), what, a number to choose with


@dataclass(frozen=True)
class Files:
    """What a policy source serves."""

    timestamp: bytes
    snapshot: bytes
    targets: bytes
    archive: bytes


class Mesh(Kernel):
    """Everything, at one moment."""

    def __init__(self, seed: int, *, liars: Mapping[str, str] | None = None) -> None:
        super().__init__(seed)
        self.torn = 0.001
        self.observer = Observer(self)
        self.restored: set[str] = set()
        self.jumps = seed % 4 == 3
        self.slack_ms = 12_000 + LEASE_MS if self.jumps else 2_500
        self.frozen: Files | None = None
        self.victims: set[str] = set()
        self.cp_up, self.broker_up = True, True
        self.intercepts = False  # the attacker keeps calls back and sends what it likes instead
        self._verified: dict[Files, VerifiedPolicy | MeshError] = {}
        self._captured_calls: list[tuple[str, list[tuple[str, str | bytes]], bytes]] = []
        self._captured_gossip: list[tuple[str, str, Any]] = []
        self._backups: dict[str, tuple[dict[str, Any], int]] = {}
        self._sequence = 0
        self.directives: list[bytes] = []
        self.settings = Settings(may_pay=True)
        self.published_version = 0
        self._archives: dict[int, bytes] = {}
        self._state = RepositoryState(root())
        self.history: list[Files] = []
        self.nodes = {name: Node(name, self) for name in NODES}
        for name, lie in sorted((liars or {}).items()):
            self.nodes[name].lies |= set(lie.split(","))
        self._publish(self.settings)
        for node in self.nodes.values():
            self.after(self.random.randint(0, 200), self._boot, node)
        self.after(LEASE_MS // 3, self._renew)
        self.after(1_500, self._workload)
        self.after(700, self._attacker)
        self.quiet = False

    # running

    def step(self) -> None:
        """Let one event happen, then look at everything."""
        try:
            self.next()
        except DiedError as died:
            self._died(self.nodes[died.args[0]])
        self.observer.check()

    def spawn(self, node: Node, coroutine: Coro, done: Future | None = None) -> None:
        """Run a coroutine of one node until it ends or the node dies."""
        boot = node.boots

        def advance() -> None:
            if not node.up or node.boots != boot:
                coroutine.close()
                return
            try:
                waits: Future = coroutine.send(None)
            except StopIteration as end:
                if done is not None:
                    done.finish(end.value)
            except MeshError as error:
                if done is None:
                    raise
                done.finish(error=error)
            except DiedError:
                self._died(node)
            else:
                waits.then(advance)

        advance()

    def rpc(
        self,
        source: str,
        target: str,
        handler: Callable[[], Any],
        *,
        withheld: bool = False,
        twice: bool = False,
    ) -> Future:
        """Ask another member: each way may be cut, lost, late, out of order or (asking) doubled."""
        answer = Future()
        if source == target:
            self.after(0, self._handle, source, target, handler, answer)
            return answer
        self.after(2_500, answer.finish, None, UnreachableError())
        if withheld and not self.quiet and self.chance(0.03):  # an attacker delivers it when it suits him
            self.after(self.random.randint(3_000, 19_000), self._handle, source, target, handler, Future())
            return answer
        for _ in range(2 if twice and self.chance(self.duplicates) else 1):
            if (not twice or not self.intercepts) and self.arrives(source, target):
                self.after(self.latency(), self._handle, source, target, handler, answer)
        return answer

    def _handle(self, source: str, target: str, handler: Callable[[], Any], answer: Future) -> None:
        node = self.nodes.get(target)
        if (node is None and not self.cp_up) or (node is not None and not node.up):
            return
        result = Future()

        def back() -> None:
            if source == target:
                answer.finish(result.value, result.error)
            elif self.arrives(target, source):
                self.after(self.latency(), answer.finish, result.value, result.error)

        result.then(back)
        try:
            made = handler()
        except MeshError as error:
            result.finish(error=error)
        except DiedError:
            assert node is not None
            self._died(node)
        else:
            if node is not None and hasattr(made, "send"):
                self.spawn(node, made, result)
            else:
                result.finish(made)

    def gather(self, futures: Mapping[str, Future], needed: int, timeout_ms: int) -> Future:
        """Wait as the attester does: a quorum and a moment more, or until time is over."""
        gate, waiting = Future(), [len(futures)]
        if not futures:
            gate.finish()

        def noticed() -> None:
            waiting[0] -= 1
            if not waiting[0]:
                gate.finish()
            elif sum(one.done and one.error is None for one in futures.values()) == needed:
                self.after(200, gate.finish)

        for one in futures.values():
            one.then(noticed)
        self.after(timeout_ms, gate.finish)

        class _Answers(Future):
            def __await__(inner) -> Any:
                yield from gate.__await__()
                return {
                    k: f.value
                    for k, f in futures.items()
                    if f.done and f.error is None and f.value is not None
                }

        return _Answers()

    # members' lives

    def _boot(self, node: Node) -> None:
        if not node.up:
            try:
                node.boot()
            except DiedError:
                self._died(node)
                return
            self.observer.lost(node)

    def _died(self, node: Node) -> None:
        node.crash()
        self.after(self.random.randint(500, 6_000), self._boot, node)

    # policy

    def verified(self, files: Files) -> VerifiedPolicy:
        """Verify as the policy client does: production code, once for the same bytes."""
        known = self._verified.get(files)
        if known is None:
            stored = Stored((), files.timestamp, files.snapshot, {BASE_ROLE: files.targets})
            try:
                known = verify_policy(
                    verify_metadata(verify_roots(root(), ()), stored), lambda _sha256: files.archive
                )
            except MeshError as error:
                known = error
            self._verified[files] = known
        if isinstance(known, MeshError):
            raise known
        return known

    def served(self, source: str, _to: str) -> Files | None:
        """What a source serves: the newest, or what its lies say."""
        if source != "cp":
            kept: Files | None = self.nodes[source].disk.files.get("policy")
            if "serves old policy" in self.nodes[source].lies and self.history:
                return self.random.choice(self.history)
            return kept
        if self.frozen is not None and _to in self.victims:
            return self.frozen
        if not self.quiet and self.chance(0.04):
            return self.random.choice(self.history)  # somebody in between replays
        return self.history[-1]

    def _publish(self, settings: Settings) -> None:
        archive = settings.archive()
        previous = self._state.role_metadata(BASE_ROLE)
        proposal = (
            first_targets(archive, now_ms=self.now_ms)
            if previous is None
            else next_targets(previous, archive, now_ms=self.now_ms)
        )
        signers = self.random.sample(approvers(), 2)
        self._take(
            publish(
                self._state, {BASE_ROLE: sign_raw(proposal, signers)}, {BASE_TARGET: archive}, online(),
                now_ms=self.now_ms, lease_ttl_s=LEASE_MS // 1000,
            )
        )  # fmt: skip
        self.settings, self.published_version = settings, self._state.version_of(BASE_ROLE)
        self._archives[self.published_version] = archive
        policy = self.verified(self._newest(archive))
        self.observer.legitimate[policy.base.sha256] = settings.may_pay
        if not settings.may_pay:
            self.observer.withdrawn_ms[self.published_version] = self.now_ms
        else:
            self.observer.withdrawn_ms.clear()
        self._announce()

    def _newest(self, archive: bytes) -> Files:
        state = self._state
        assert state.timestamp is not None and state.snapshot is not None
        files = Files(state.timestamp, state.snapshot, state.roles[BASE_ROLE], archive)
        self.observer.lease_signed_ms[files.timestamp] = self.now_ms
        if not self.history or self.history[-1] != files:
            self.history.append(files)
        return files

    def _take(self, files: Mapping[str, bytes]) -> None:
        self._state = self._state.after(files)

    def _renew(self) -> None:
        if self.cp_up:
            self._take(renew(self._state, online(), now_ms=self.now_ms, lease_ttl_s=LEASE_MS // 1000))
            self._newest(self._archives[self.published_version])
            self._announce()
            if self.frozen is not None:
                old = RepositoryState(
                    root(), self.frozen.timestamp, self.frozen.snapshot, {BASE_ROLE: self.frozen.targets}
                )
                more = old.after(renew(old, online(), now_ms=self.now_ms, lease_ttl_s=LEASE_MS // 1000))
                assert more.timestamp is not None and more.snapshot is not None
                self.frozen = Files(more.timestamp, more.snapshot, self.frozen.targets, self.frozen.archive)
                self.observer.lease_signed_ms[more.timestamp] = self.now_ms
        self.after(LEASE_MS // 3, self._renew)

    def _announce(self) -> None:
        """Retained announcement by the broker: lost, doubled, late."""
        if not self.broker_up:
            return
        raw = self.history[-1].timestamp
        for node in self.nodes.values():
            for _ in range(self.random.choice((0, 1, 1, 2))):
                if self.arrives("broker", node.name):
                    self.after(self.latency(), self._announced, node, raw)

    def _announced(self, node: Node, raw: bytes) -> None:
        if node.up:
            node.member._announced(raw)

    # what happens all the time

    def _workload(self) -> None:
        for name in CALLERS:
            node = self.nodes[name]
            if node.up:
                self.spawn(node, node.call())
        self.after(self.random.randint(200, 900), self._workload)

    def overheard_call(self, target: str, pairs: list[tuple[str, str | bytes]], body: bytes) -> None:
        """The attacker on the network keeps calls."""
        self._captured_calls = [*self._captured_calls[-40:], (target, pairs, body)]

    def overheard(self, source: str, target: str, message: Any) -> None:
        """And gossip."""
        self._captured_gossip = [*self._captured_gossip[-40:], (source, target, message)]

    def _attacker(self) -> None:
        """Replay, tamper, forge; an attacker is always there."""
        what = self.random.randrange(6)
        if what <= 1 and self._captured_calls:
            target, pairs, body = self.random.choice(self._captured_calls)
            # Each sidecar of a service remembers what it spent itself; at another one the permit fits only the
            # certificate of its caller, which the attacker does not have (docs/threat-model.md).
            node = self.nodes[self.random.choice(CALLEES)]
            mine = CERTIFICATE if node.name == target else b"\x66" * 32
            if node.up:
                tampered = body if what else body[::-1] + b"!"
                self.spawn(node, node.called(pairs, tampered, certificate=mine))
        elif what == 2 and self._captured_gossip:
            source, target, message = self.random.choice(self._captured_gossip)
            self._replay_gossip(self.nodes[source], self.nodes[target], message)
        elif what == 3:
            node = self.nodes[self.random.choice(NODES)]
            forged = STRANGER if self.chance(0.5) else EMERGENCY
            data = forged.revoke(Kind.WORKLOAD, "alice", now_ms=self.now_ms, ttl_s=60, sequence=1)
            if forged is EMERGENCY:
                data = data.replace(b"alice", b"carol", 1)
            if node.up:
                self._guarded(node, lambda: node.keeper.take([data], []))
        elif what == 4:
            self._false_proof(self.nodes[self.random.choice(NODES)])
        else:
            self._oversized(self.nodes[self.random.choice(NODES)])
        self.after(self.random.randint(150, 700), self._attacker)

    def _replay_gossip(self, source: Node, target: Node, message: Any) -> None:
        if not target.up or not source.up:
            return
        self._guarded(target, lambda: target.member.receive(message, source.me))
        before = target.member.exchanges
        if target.up:
            self._guarded(target, lambda: target.member.receive(message, source.me))
        if target.up and target.member.exchanges != before:
            raise Violation(f"gossip: {target.name} took in a message of {source.name} for the second time")

    def _false_proof(self, node: Node) -> None:
        """Accuse an honest member by what it never signed."""
        victim = self.nodes[self.random.choice(NODES)]
        note = b"mesh.local/node/%s\n1\n%s\n\n\xe2\x80\x94 x AAAA\n"
        pair = (note % (victim.name.encode(), b"a"), note % (victim.name.encode(), b"b"))
        proof = Proof(LEDGER_FORK, str(victim.me), victim.endorsement, pair).encode()
        if node.up:
            self._guarded(node, lambda: node.keeper.take([], [proof]))

    def _oversized(self, node: Node) -> None:
        if not node.up:
            return
        liar = SpiffeId.of("mesh.local", "node", "n3" if node.name != "n3" else "n0")
        heads = tuple(Head(b"%d" % index, b"x") for index in range(40))
        message = to_wire(Told(heads=heads), sender=str(liar), boot_id="huge", sequence=self.events)
        before = node.member.exchanges
        self._guarded(node, lambda: node.member.receive(message, liar))
        if node.up and node.member.exchanges != before:
            raise Violation(f"gossip: {node.name} took in a message beyond its bounds")

    def _guarded(self, node: Node, action: Callable[[], Any]) -> None:
        try:
            action()
        except MeshError:
            self.observer.unproven += 1
        except DiedError:
            self._died(node)

    # what the schedule lets happen

    def happen(self, what: str, number: int) -> None:
        """Carry out one step of the schedule."""
        if not self.quiet:
            getattr(self, f"_do_{what}")(random.Random(number))

    def _do_publish(self, dice: random.Random) -> None:
        if self.cp_up:
            from dataclasses import replace

            settings = replace(self.settings, may_pay=dice.random() < 0.6, serial=self.published_version)
            self._publish(settings)

    def _do_partition(self, dice: random.Random) -> None:
        everybody = [*NODES, "cp", "broker"]
        side = set(dice.sample(everybody, dice.randint(1, 3)))
        self.cut |= {(a, b) for a in everybody for b in everybody if (a in side) != (b in side)}

    def _do_one_way(self, dice: random.Random) -> None:
        a, b = dice.sample([*NODES, "cp"], 2)
        self.cut.add((a, b))

    def _do_heal(self, dice: random.Random) -> None:
        self.cut.clear()
        self.loss = dice.choice((0.0, 0.05, 0.3))

    def _do_crash(self, dice: random.Random) -> None:
        node = self.nodes[dice.choice(NODES)]
        if node.up:
            self._died(node)

    def _do_crash_all(self, dice: random.Random) -> None:
        for node in self.nodes.values():
            if node.up:
                self._died(node)

    def _do_control_plane(self, dice: random.Random) -> None:
        self.cp_up = not self.cp_up

    def _do_broker(self, dice: random.Random) -> None:
        self.broker_up = not self.broker_up

    def _do_clock(self, dice: random.Random) -> None:
        node = self.nodes[dice.choice(NODES)]
        if self.jumps:
            node.skew_ms = dice.choice((-3_600_000, -60_000, -4_000, 4_000, 60_000, 3_600_000, 0))
        else:
            node.skew_ms = dice.randint(-1_000, 1_000)

    def _do_intercept(self, dice: random.Random) -> None:
        self.intercepts = not self.intercepts

    def _do_slow(self, dice: random.Random) -> None:
        self.delay_ms = dice.choice((20, 120, 900))

    def _do_revoke(self, dice: random.Random) -> None:
        self._sequence += 1
        data = EMERGENCY.revoke(
            Kind.WORKLOAD, "alice", now_ms=self.now_ms, ttl_s=dice.choice((3, 8, 15)), sequence=self._sequence
        )
        self.observer.genuine.add(read_directive(data).id)
        self.directives.append(data)
        node = self.nodes[dice.choice(NODES)]
        if node.up:
            self._guarded(node, lambda: node.keeper.revoke(data))

    def _do_backup(self, dice: random.Random) -> None:
        for node in self.nodes.values():
            self._backups[node.name] = (dict(node.disk.files), node.ledger.durable_size)

    def _do_restore(self, dice: random.Random) -> None:
        """One disk comes back from a backup: its owner counts as the member that may lie."""
        name = dice.choice(NODES)
        if any(node.lies for node in self.nodes.values()) or (self.restored and name not in self.restored):
            return
        node = self.nodes[name]
        if name in self._backups and node.up:
            files, size = self._backups[name]
            if node.disk.files != files:
                self._died(node)
                node.disk.files = dict(files)
                node.ledger.cut(size)
                self.restored.add(name)
                self.observer.heard = {k: v for k, v in self.observer.heard.items() if k[0] != name}

    def _do_lie(self, dice: random.Random) -> None:
        """One member begins to lie: as many as the roster tolerates."""
        if self.restored or any(node.lies for node in self.nodes.values()):
            return
        node = self.nodes[dice.choice(NODES)]
        lie = dice.choice((FORKS, FORKS, "cosigns anything", "boasts", "boasts", "serves old policy"))
        node.hides = dice.random() < 0.5
        self.begin_lie(node, lie)

    def _do_fork(self, dice: random.Random) -> None:
        """One member shows two histories of its ledger: each witness one, and in gossip perhaps only one."""
        if not self.restored and not any(node.lies for node in self.nodes.values()):
            node = self.nodes[dice.choice(NODES)]
            node.hides = dice.random() < 0.5
            self.begin_lie(node, FORKS)

    def _do_boast(self, dice: random.Random) -> None:
        """One caller shows whatever credential it has, for ever."""
        if not self.restored and not any(node.lies for node in self.nodes.values()):
            self.begin_lie(self.nodes[dice.choice(CALLERS)], "boasts")

    def _do_alone(self, dice: random.Random) -> None:
        """Two witnesses are lost to the others, the callees are not."""
        self.cut |= {(a, b) for a in CALLERS for b in (*CALLERS, "n2") if a != b}
        self.cut |= {(b, a) for a, b in self.cut}

    def begin_lie(self, node: Node, lie: str) -> None:
        """Have a node lie from now on."""
        node.lies |= set(lie.split(","))
        if "equivocates" in node.lies:
            node.fork_at = node.ledger.durable_size

    def equivocated(self, node: Node) -> bool:
        """Whether its ledger has two faces by now."""
        return node.fork_at is not None and node.ledger.durable_size > node.fork_at

    def _do_no_quorum(self, dice: random.Random) -> None:
        """The control plane publishes what one approver signed, or one key under two names."""
        previous = self._state.role_metadata(BASE_ROLE)
        assert previous is not None
        archive = Settings(may_pay=True, serial=-1 - dice.randrange(1_000)).archive()
        one = approvers()[0]
        signers = [one] if dice.random() < 0.5 else [one, twin(one)]
        data = sign_raw(next_targets(previous, archive, now_ms=self.now_ms), signers)
        files = self._published_unchecked(data, archive)
        for name in NODES:
            node = self.nodes[name]
            if node.up:
                self._guarded(node, lambda node=node: node.offer(files))  # type: ignore[misc]

    def _published_unchecked(self, targets: bytes, archive: bytes) -> Files:
        """Sign snapshot and timestamp over anything, as whoever holds the online keys can."""
        from tests.sim.lies import resign

        timestamp, snapshot = resign(self._state, targets, self.now_ms + LEASE_MS)
        self.observer.lease_signed_ms[timestamp] = self.now_ms
        return Files(timestamp, snapshot, targets, archive)

    def _do_freeze(self, dice: random.Random) -> None:
        """The control plane shows some nodes a mesh in which nothing is published any more."""
        if self.frozen is None:
            self.frozen, self.victims = self.history[-1], set(dice.sample(NODES, dice.randint(1, 2)))

    # the whole run

    def heal(self) -> None:
        """End all trouble. Members that lie go on lying."""
        self.quiet, self.loss, self.torn, self.delay_ms = True, 0.0, 0.0, 60
        self.cut.clear()
        self.frozen, self.cp_up, self.broker_up, self.intercepts = None, True, True, False
        for node in self.nodes.values():
            node.skew_ms = 0
            self._boot(node)

    def run(self, schedule: "list[Step]", trouble_ms: int = TROUBLE_MS) -> None:
        """Live through a schedule, heal, and converge.

        Raises:
            Violation: naming the invariant.
        """
        from tests.sim.kernel import START_MS

        with stand_ins(self.random):
            for at, what, number in schedule:
                self.after(START_MS + at - self.now_ms, self.happen, what, number)
            while self.now_ms < START_MS + trouble_ms:
                self.step()
            self.heal()
            until = self.now_ms + CONVERGE_MS
            while self.now_ms < until:
                self.step()
            self.observer.converged()


_KINDS = (
    ("publish", 5), ("partition", 4), ("one_way", 3), ("heal", 5), ("crash", 6), ("crash_all", 1),
    ("control_plane", 2), ("broker", 2), ("clock", 3), ("slow", 2), ("intercept", 2),
    ("revoke", 3), ("backup", 4), ("restore", 4),
    ("lie", 3), ("no_quorum", 2), ("freeze", 1),
)  # fmt: skip


def schedule_of(seed: int, trouble_ms: int = TROUBLE_MS) -> list[Step]:
    """Draw what goes wrong under a seed."""
    dice = random.Random(f"schedule {seed}")
    names, weights = [name for name, _ in _KINDS], [weight for _, weight in _KINDS]
    times = sorted(dice.randint(min(1_000, trouble_ms // 4), trouble_ms) for _ in range(trouble_ms // 700))
    return [(at, dice.choices(names, weights)[0], dice.getrandbits(32)) for at in times]
