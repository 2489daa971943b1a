"""A node's ledger in the simulation: durable a moment after it was written, cut by crashes, forged by liars."""

from typing import TYPE_CHECKING

from tests.sim.kernel import Future
from tests.support.attestation import Tree
from trust.merkle import leaf_hash
from trust.record import Intent, Outcome, build_record, record_digest

if TYPE_CHECKING:
    from tests.sim.node import Node


class SimLedger:
    """The journal port over a simulated disk: appended, durable later, cut anywhere in between by a crash."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self.leaves: list[bytes] = []
        self.durable_size = 0
        self._waiting: list[tuple[int, Future]] = []

    def append(self, record: Intent | Outcome) -> object:
        """Take a record; it will be durable."""
        self.leaves.append(leaf_hash(record_digest(build_record(record))))
        if isinstance(record, Intent):
            self._node.world.observer.intents[record.execution_id, record.side] = len(self.leaves)
        self._node.world.after(
            self._node.world.random.randint(1, 40), self._flushed, self._node.boots, len(self.leaves)
        )
        return len(self.leaves)

    async def durable(self, pending: object) -> None:
        """Wait for the disk."""
        assert isinstance(pending, int)
        if self.durable_size < pending:
            future = Future()
            self._waiting.append((pending, future))
            await future

    def _flushed(self, boot: int, size: int) -> None:
        if not self._node.up or self._node.boots != boot:
            return
        self.durable_size = max(self.durable_size, size)
        ready = [future for wanted, future in self._waiting if wanted <= self.durable_size]
        self._waiting = [one for one in self._waiting if one[0] > self.durable_size]
        for future in ready:
            future.finish()

    def crash(self) -> None:
        """Keep what is durable, and perhaps some of what is not."""
        keep = self._node.world.random.randint(self.durable_size, len(self.leaves))
        self.cut(keep)

    def cut(self, size: int) -> None:
        """Continue at `size`."""
        del self.leaves[size:]
        self.durable_size, self._waiting = len(self.leaves), []

    def rewrite(self, at: int) -> None:
        """Change a durable record, as the owner of a disk can."""
        self.leaves[at] = leaf_hash(b"another record")

    def tree(self, *, other_face_from: int | None = None) -> Tree:
        """Return the durable tree; with `other_face_from` the one in which that record is another."""
        tree = Tree()
        tree.leaves = self.leaves[: self.durable_size]
        if other_face_from is not None and other_face_from < len(tree.leaves):
            tree.leaves[other_face_from] = leaf_hash(b"another history")
        return tree
