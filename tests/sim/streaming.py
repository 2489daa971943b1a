"""Open streams: registered at both doors, reviewed by the product's pipeline, cut when their right is gone.

What is written here stands in for the proxy's carrier, the review task and `sidecar.edge.callers`.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.core.call import Decision, Permitted
from sidecar.core.callers import Callers
from sidecar.core.trust_state import Caller, Standing
from sidecar.edge.case import Case
from tests.sim.kernel import Future, UnreachableError
from trust.errors import MeshError, Reason, StateError

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh
    from tests.sim.node import Node

_EVERY_MS = 400  # a message
_REVIEWS = 5  # how often a message waits for streams that are to be decided again first


@dataclass
class _End:
    node: "Node"
    boots: int
    handle: int
    case: Case

    @property
    def alive(self) -> bool:
        return self.node.up and self.node.boots == self.boots


class Stream:
    """One stream of messages from a callee to its caller."""

    def __init__(self, world: "Mesh") -> None:
        self.over = Future()
        self._world = world
        self._ends: list[_End] = []
        self._until_ms = world.now_ms + world.random.randint(world.watched_ms, 20_000)

    def begin(self, node: "Node", permitted: Permitted, case: Case) -> None:
        """Open it at a door: first the caller's, then the callee's."""
        if self.over.done:
            return
        boots = node.boots
        handle = node.pipeline.opened(permitted, lambda decision: self._cut(node, boots, decision))
        self._ends.append(_End(node, boots, handle, case))
        self._world.observer.saw["stream opened"] += 1
        if len(self._ends) == 2:
            self._world.observer.saw["stream joined"] += 1
            self._world.after(_EVERY_MS, self._message, 0)

    def _message(self, waited: int) -> None:
        world = self._world
        if self.over.done:
            return
        if world.now_ms > self._until_ms or not all(end.alive for end in self._ends):
            self.end()
            return
        if waited < _REVIEWS and any(end.node.pipeline.streams.pending for end in self._ends):
            world.after(1, self._message, waited + 1)
            return
        caller, callee = self._ends
        world.observer.carried(callee.node, callee.case)
        if world.arrives(callee.node.name, caller.node.name):
            world.observer.carried(caller.node, caller.case)
        world.after(_EVERY_MS, self._message, 0)

    def _cut(self, node: "Node", boots: int, decision: Decision) -> None:
        if not (node.up and node.boots == boots):
            return
        self._world.observer.saw[f"stream cut: {decision.reason}"] += 1
        for end in self._ends:
            if end.node is node:
                end.case.cut = decision.reason
        self.end()

    def end(self) -> None:
        """Close what is still open at both doors."""
        if self.over.done:
            return
        self.over.finish()
        for number, end in enumerate(self._ends):
            if end.alive:
                end.node.pipeline.closed(end.handle)
                if number:  # the caller's own door waits for `over`
                    end.node.calling.notary.closed(end.case, "OK", 0.001)


class Streaming:
    """The streams of one node since it started: when they are decided again."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self._callers = Callers()
        self._standing = Standing.NO_POLICY
        self._reviews = False

    def doubtful(self) -> None:
        """Have streams decided again, in the next event."""
        if not self._reviews:
            self._reviews = True
            self.node.world.after(0, self._review, self.node.boots)

    def _review(self, boot: int) -> None:
        node = self.node
        if node.up and node.boots == boot:
            self._reviews = False
            while node.pipeline.streams.pending:
                node.pipeline.review(now_ms=node.now_ms())

    def tick(self) -> None:
        """Notice that this node, or one whose streams are open here, is vouched for no longer."""
        node, trust = self.node, self.node.trust
        standing = trust.standing(node.trusted_ms(), node.monotonic_ms())
        if standing is not self._standing:
            self._standing = standing
            node.pipeline.governance_changed()
        if trust.roster is None or not node.pipeline.streams.callers:
            return
        due = self._callers.tick(
            node.pipeline.streams.callers,
            self._until_ms,
            ttl_ms=trust.roster.ttl_ms,
            now_ms=trust.trusted(node.now_ms()),
            monotonic_ms=node.monotonic_ms(),
        )
        for caller in due.ask:
            node.world.spawn(node, self._ask(caller, trust.roster.ttl_ms))
        for caller in due.lapsed:
            node.pipeline.caller_lapsed(caller)

    def _until_ms(self, caller: Caller) -> int:
        try:
            return self.node.trust.check_caller(caller, now_ms=self.node.now_ms())
        except MeshError:
            return 0

    async def _ask(self, caller: Caller, ttl_ms: int) -> None:
        node, name = self.node, caller[0].name
        try:
            data = await node.world.rpc(node.name, name, functools.partial(self._newest, name))
            node.trust.learn(data, caller, now_ms=node.now_ms())
        except (UnreachableError, MeshError):
            node.world.observer.unproven += 1
        finally:
            jitter = node.world.random.random()
            self._callers.answered(caller, ttl_ms=ttl_ms, monotonic_ms=node.monotonic_ms(), jitter=jitter)

    def _newest(self, name: str) -> bytes:
        own = self.node.world.nodes[name].trust.own()
        if own is None:
            raise StateError(Reason.ATTESTATION_UNKNOWN, "this node has none")
        return own.data
