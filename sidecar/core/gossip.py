"""Whom a node talks to, and when: `(state, event, now) -> peers`, a constant number of them however large the mesh.

In each period the next few peers of a ring; after news at once, and once more a moment later, so that nearly everybody
hears it by rumour and the periodic exchanges only mend what rumour missed. A peer that did not answer is passed over
for a while, but never given up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trust import limits

_MAX_SKIPPED_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Talk:
    """Exchange with this peer now."""

    peer: str


@dataclass(slots=True)
class _Standing:
    failures: int = 0
    skip_until_ms: int = 0


class Rounds:
    """The rounds of one node. Not thread-safe: owned by the event loop."""

    def __init__(
        self, *, now_ms: int, peers: int = limits.GOSSIP_PEERS, fanout: int = limits.GOSSIP_FANOUT
    ) -> None:
        """Begin without peers.

        Args:
            now_ms: monotonic, ms.
            peers: in one round of a period, >= 1.
            fanout: peers in a round that news starts, >= 1.
        """
        self._peers, self._fanout = peers, fanout
        self._ring: list[str] = []
        self._at = 0
        self._standing: dict[str, _Standing] = {}
        self._next_ms = now_ms
        self._hot_ms: int | None = None
        self._hot_rounds = 0

    @property
    def peers(self) -> Sequence[str]:
        """Whom this node knows, in the order of its ring."""
        return tuple(self._ring)

    @property
    def hot(self) -> bool:
        """Whether another round follows soon because of news."""
        return self._hot_ms is not None

    def met(self, peers: Sequence[str]) -> None:
        """Take the peers that are known now, in an order that the caller has shuffled; at most MAX_PEERS count.

        Those known before keep their place, so that being told again does not start the ring anew.
        """
        wanted = list(dict.fromkeys(peers))[: limits.MAX_PEERS]
        kept = [peer for peer in self._ring if peer in set(wanted)]
        self._ring = kept + [peer for peer in wanted if peer not in set(kept)]
        self._standing = {peer: self._standing.get(peer, _Standing()) for peer in self._ring}
        self._at = self._at % len(self._ring) if self._ring else 0

    def learned(self, *, now_ms: int) -> list[Talk]:
        """Something is new here: tell the next peers at once."""
        self._hot_rounds = limits.GOSSIP_HOT_ROUNDS
        return self._hot(now_ms)

    def tick(self, *, now_ms: int) -> list[Talk]:
        """Return whom to talk to now; call it no later than `wake_at_ms`."""
        if self._hot_ms is not None and now_ms >= self._hot_ms:
            return self._hot(now_ms)
        if now_ms >= self._next_ms:
            self._next_ms = now_ms + limits.GOSSIP_PERIOD_MS
            return self._next(now_ms, self._peers)
        return []

    def wake_at_ms(self) -> int:
        """Return when `tick` has something to say, monotonic ms."""
        return self._next_ms if self._hot_ms is None else min(self._hot_ms, self._next_ms)

    def answered(self, peer: str) -> None:
        """The peer answered."""
        if peer in self._standing:
            self._standing[peer] = _Standing()

    def failed(self, peer: str, *, now_ms: int) -> None:
        """The peer did not answer: pass it over for longer each time, at most half a minute."""
        standing = self._standing.get(peer)
        if standing is not None:
            standing.failures += 1
            wait_ms = min(limits.GOSSIP_PERIOD_MS << min(standing.failures, 10), _MAX_SKIPPED_MS)
            standing.skip_until_ms = now_ms + wait_ms

    def failures(self) -> Mapping[str, int]:
        """Return how often in a row each peer that fails has failed."""
        return {peer: one.failures for peer, one in self._standing.items() if one.failures}

    def _hot(self, now_ms: int) -> list[Talk]:
        self._hot_rounds -= 1
        self._hot_ms = now_ms + limits.GOSSIP_HOT_MS if self._hot_rounds > 0 else None
        return self._next(now_ms, self._fanout)

    def _next(self, now_ms: int, count_wanted: int) -> list[Talk]:
        """Return the next peers of the ring; when all are passed over, the one whose turn it is all the same."""
        count = len(self._ring)
        ring = [self._ring[(self._at + step) % count] for step in range(count)]
        usable = [peer for peer in ring if self._standing[peer].skip_until_ms <= now_ms] or ring[:1]
        chosen = usable[:count_wanted]
        if chosen:
            self._at = (self._ring.index(chosen[-1]) + 1) % count
        return [Talk(peer) for peer in chosen]
