"""A whole mesh in simulated time: four sidecars, a control plane, approvers, an attacker on the network, bad luck.

`schedule_of(seed)` draws what goes wrong; `Mesh.run` lets it happen, heals, and demands convergence. The invariants are
held after every event by `tests.sim.observer`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.sim.approving import ApprovalHouse
from tests.sim.attacker import Attacker
from tests.sim.engines import Engines
from tests.sim.kernel import START_MS, Coro, DiedError, Future, Kernel, UnreachableError
from tests.sim.node import Node
from tests.sim.observer import Observer
from tests.sim.policy_house import PolicyHouse
from tests.sim.realm import CALLERS, LEASE_MS, MAX_LAG_MS, NODES, TRUST_TTL_MS
from tests.sim.stand_ins import stand_ins
from tests.sim.thieves import Thieves
from tests.sim.trouble import TROUBLE_MS, Step, Trouble
from trust.errors import MeshError

# Bounded time from the heal to convergence: a missed lease, then a credential, then gossip to everybody. A node
# passed over by gossip comes back within 30 s; policy and credentials do not wait for that.
CONVERGE_MS = LEASE_MS + TRUST_TTL_MS + MAX_LAG_MS


class Mesh(Kernel):
    """Everything, at one moment."""

    def __init__(self, seed: int, *, liars: Mapping[str, str] | None = None) -> None:
        super().__init__(seed)
        self.torn, self.quiet = 0.001, False
        self.misdirects = 0.15  # how often evidence comes to a witness that did not ask, or not lately
        self.watches, self.watched_ms = 0.4, 500  # how often alice watches, and how long at least
        self.jumps = seed % 4 == 3
        self.stays = seed % 10 == 0  # is looked at until the end, when all is well long before
        self.slack_ms = 12_000 + LEASE_MS if self.jumps else 2_500
        self.restored: set[str] = set()
        self.observer, self.attacker = Observer(self), Attacker(self)
        self.policy, self.thieves, self.trouble = PolicyHouse(self), Thieves(self), Trouble(self)
        self.engines = Engines()
        self.approving = ApprovalHouse(self)
        self.nodes = {name: Node(name, self) for name in NODES}
        for name, lie in sorted((liars or {}).items()):
            self.nodes[name].lies |= set(lie.split(","))
        self.policy.publish(self.policy.settings)
        self.policy.space.delegate(self.random)
        for node in self.nodes.values():
            self.after(self.random.randint(0, 200), self._boot, node)
        self.after(LEASE_MS // 3, self.policy.renew)
        self.after(1_500, self._workload)
        self.after(700, self.attacker.act)

    # running

    def step(self) -> None:
        """Let one event happen, then look at everything."""
        try:
            self.next()
        except DiedError as died:
            self.died(self.nodes[died.args[0]])
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
                self.died(node)
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
            self.after(0, self.handle, source, target, handler, answer)
            return answer
        self.after(2_500, answer.finish, None, UnreachableError())
        if withheld and not self.quiet and self.chance(0.03):  # an attacker delivers it when it suits him
            self.after(self.random.randint(3_000, 19_000), self.handle, source, target, handler, Future())
            return answer
        for _ in range(2 if twice and self.chance(self.duplicates) else 1):
            if (not twice or not self.attacker.intercepts) and self.arrives(source, target):
                self.after(self.latency(), self.handle, source, target, handler, answer)
        return answer

    def handle(self, source: str, target: str, handler: Callable[[], Any], answer: Future) -> None:
        """Have a member answer; nothing comes back from one that is down."""
        node = self.nodes.get(target)
        if (node is None and not self.policy.up) or (node is not None and not node.up):
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
            self.died(node)
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
                self.died(node)
                return
            self.observer.lost(node)

    def died(self, node: Node, longest_ms: int = 6_000) -> None:
        """End a process; it comes back."""
        node.crash()
        self.after(self.random.randint(500, longest_ms), self._boot, node)

    def guarded(self, node: Node, action: Callable[[], Any]) -> None:
        """Let a node do something that it may refuse or die in."""
        try:
            action()
        except MeshError:
            self.observer.unproven += 1
        except DiedError:
            self.died(node)

    def _workload(self) -> None:
        for name in CALLERS:
            node = self.nodes[name]
            if node.up:
                self.spawn(node, node.calling.call())
        self.after(self.random.randint(100, 500), self._workload)

    # the whole run

    def heal(self) -> None:
        """End all trouble. Members that lie go on lying."""
        self.quiet, self.loss, self.torn, self.delay_ms = True, 0.0, 0.0, 60
        self.cut.clear()
        self.attacker.intercepts = False
        self.policy.heal()
        for node in self.nodes.values():
            node.skew_ms = 0
            self._boot(node)

    def run(self, schedule: Sequence[Step], trouble_ms: int = TROUBLE_MS) -> None:
        """Live through a schedule, heal, and converge.

        Raises:
            Violation: naming the invariant.
        """
        with stand_ins(self):
            for at, what, number in schedule:
                self.after(START_MS + at - self.now_ms, self.trouble.happen, what, number)
            while self.now_ms < START_MS + trouble_ms:
                self.step()
            self.heal()
            self._converge()

    def _converge(self) -> None:
        until_ms, every_ms = self.now_ms + CONVERGE_MS, 500
        while self.now_ms < until_ms:
            looks_ms = min(self.now_ms + every_ms, until_ms)
            while self.now_ms < looks_ms:
                self.step()
            if not self.stays and self.observer.unsettled() is None:
                return
        self.observer.converged()
