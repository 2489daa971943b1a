"""Which tree heads of other ledgers are known, and whether two of them cannot both be true.

A node shows its head to the peers that it talks to, and they show it on; whoever meets two that contradict each other
holds a misbehaviour proof. Only heads of one size can be compared here: the others need a consistency path, which the
witnesses ask for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from trust import limits
from trust.accusation import by_checkpoints
from trust.checkpoint import open_checkpoint
from trust.errors import MeshError
from trust.gossip import Head
from trust.node_key import NodeKey, endorsement_digest
from trust.note import Verifier
from trust.spiffe import SpiffeId

_KEPT: Final = 8  # heads of one ledger, the newest: what can be compared with what others show later
_KEYS: Final = 4_096


@dataclass(slots=True)
class _Ledger:
    newest: Head
    size: int
    roots: dict[int, tuple[bytes, Head]] = field(default_factory=dict)


class Heads:
    """Tree heads by ledger; bounded. Not thread-safe: owned by the event loop."""

    def __init__(self, verify: Callable[[bytes], NodeKey], *, capacity: int = limits.MAX_KNOWN_HEADS) -> None:
        """Know nothing.

        Args:
            verify: returns the node key that an endorsement proves now, or raises MeshError.
            capacity: ledgers at most; the one that was heard of longest ago leaves.
        """
        self._verify, self._capacity = verify, capacity
        self._ledgers: dict[str, _Ledger] = {}
        self._keys: dict[str, NodeKey] = {}
        self._turn: Iterator[str] = iter(())

    def __len__(self) -> int:
        """Return how many ledgers are known."""
        return len(self._ledgers)

    def forget_keys(self) -> None:
        """Verify endorsements again: the trust anchors changed."""
        self._keys.clear()

    def saw(self, head: Head) -> bytes | None:
        """Take a head; return a misbehaviour proof if it contradicts one that is known. Never raises for bad bytes."""
        try:
            key = self._key(head.endorsement)
            log = Verifier(f"{key.node.trust_domain}/{key.node.path}", key.public_key.public_bytes_raw())
            checkpoint = open_checkpoint(head.checkpoint, log).checkpoint
        except MeshError:
            return None
        name = str(key.node)
        known = self._ledgers.pop(name, None)
        if known is None:
            if len(self._ledgers) >= self._capacity:
                del self._ledgers[next(iter(self._ledgers))]
            known = _Ledger(head, checkpoint.size)
        self._ledgers[name] = known
        before = known.roots.get(checkpoint.size)
        if before is not None and before[0] != checkpoint.root:
            return self._proof(key.node, before[1], head)
        if before is None:
            known.roots[checkpoint.size] = (checkpoint.root, head)
            if len(known.roots) > _KEPT:
                del known.roots[min(known.roots)]
        if checkpoint.size > known.size:
            known.newest, known.size = head, checkpoint.size
        return None

    def show(self, count: int) -> list[Head]:
        """Return the newest heads of a few ledgers, others each time."""
        shown: list[Head] = []
        for _ in range(min(count, len(self._ledgers))):
            name = next(self._turn, None)
            if name is None:
                self._turn = iter(list(self._ledgers))
                name = next(self._turn)
            if name in self._ledgers:
                shown.append(self._ledgers[name].newest)
        return shown

    def endorsement(self, node: SpiffeId) -> bytes | None:
        """Return the endorsement that came with the newest head of a node's ledger; None when none is known."""
        known = self._ledgers.get(str(node))
        return None if known is None else known.newest.endorsement

    def _key(self, endorsement: bytes) -> NodeKey:
        digest = endorsement_digest(endorsement)
        known = self._keys.get(digest)
        if known is None:
            known = self._verify(endorsement)
            if len(self._keys) >= _KEYS:
                del self._keys[next(iter(self._keys))]
            self._keys[digest] = known
        return known

    @staticmethod
    def _proof(node: SpiffeId, one: Head, two: Head) -> bytes | None:
        try:
            return by_checkpoints(node, one.checkpoint, two.checkpoint, two.endorsement)
        except MeshError:
            return None
