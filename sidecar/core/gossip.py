"""Whom a node talks to, and when: `(state, event, now) -> peers`, a constant number of them however large the mesh.

In each period the next few peers of a ring. News goes out at once: where every member is known, down a tree that
follows the order of names, each telling a few and asking them to tell the next so many, so that everybody hears it once
and soon; else to a few by rumour. A moment later it goes to a few others, which mends what broke; the periodic
exchanges mend the rest. A peer that did not answer is passed over for a while, but never given up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trust import limits

_MAX_SKIPPED_MS: Final = 30_000
_MAX_PASSED_ON: Final = (
    limits.MAX_EMERGENCY_KEYS * limits.MAX_REVOCATIONS_PER_KEY + limits.MAX_PROOFS
)  # all that can be held


@dataclass(frozen=True, slots=True)
class Talk:
    """Exchange with this peer now. `rest` follows it in the tree, None outside of it: the peer is to tell those."""

    peer: str
    rest: tuple[str, ...] | None = None

    @property
    def relay(self) -> int | None:
        """How many members after it the peer is asked to tell."""
        return None if self.rest is None else len(self.rest)


class Requests:
    """What others asked this node to pass on, and which of it is passed on.

    Each item once; again only for more than twice as many, so that one that asks to tell nobody does not keep this node
    from telling whom the next asks for, and one that asks again and again is not obeyed.
    """

    def __init__(self, capacity: int = _MAX_PASSED_ON) -> None:
        """Remember nothing; the oldest of more than `capacity` items is forgotten."""
        self._capacity = capacity
        self._passed_on: dict[str, int] = {}  # id -> to how many

    def granted(self, names: Iterable[str], relay: int | None) -> tuple[list[str], int]:
        """Return which items are passed on, and to how many after this node; remember it.

        Args:
            names: ids of items that are held here.
            relay: how many members after this one the peer asked to tell.
        """
        wanted = min(relay or 0, limits.MAX_PEERS)
        known = self._passed_on
        granted = [name for name in names if name not in known or wanted > 2 * known[name]]
        for name in granted:
            if len(known) >= self._capacity:
                del known[next(iter(known))]
            known[name] = wanted
        return granted, wanted


@dataclass(slots=True)
class _Standing:
    failures: int = 0
    skip_until_ms: int = 0


class Rounds:
    """The rounds of one node. Not thread-safe: owned by the event loop."""

    def __init__(
        self,
        *,
        now_ms: int,
        me: str = "",
        peers: int = limits.GOSSIP_PEERS,
        fanout: int = limits.GOSSIP_FANOUT,
    ) -> None:
        """Begin without peers.

        Args:
            now_ms: monotonic, ms.
            me: this node's name, which gives it its place in the tree; without it news goes by rumour alone.
            peers: in one round of a period, >= 1.
            fanout: peers in a round that news starts, >= 1.
        """
        self._me, self._peers, self._fanout = me, peers, fanout
        self._centres: list[str] = []  # who tells everybody by itself: control planes
        self._after: tuple[str, ...] = ()  # the other nodes in the order of names, beginning after this one
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

    def met(self, peers: Sequence[str], *, centres: Sequence[str] = ()) -> None:
        """Take the peers that are known now, in an order that the caller has shuffled; at most MAX_PEERS count.

        Those known before keep their place, so that being told again does not start the ring anew.

        Args:
            peers: other nodes.
            centres: control planes, which take part, and come first: they are few, and the ring is cut at its limit.
        """
        self._centres = list(dict.fromkeys(centres))
        wanted = list(dict.fromkeys([*self._centres, *peers]))[: limits.MAX_PEERS]
        nodes = sorted(set(wanted) - set(self._centres))
        self._after = (*(one for one in nodes if one > self._me), *(one for one in nodes if one < self._me))
        kept = [peer for peer in self._ring if peer in set(wanted)]
        self._ring = kept + [peer for peer in wanted if peer not in set(kept)]
        self._standing = {peer: self._standing.get(peer, _Standing()) for peer in self._ring}
        self._at = self._at % len(self._ring) if self._ring else 0

    @property
    def _complete(self) -> bool:
        """Whether every member has a place in the tree: all are known, as far as can be told."""
        return bool(self._me) and len(self._after) + len(self._centres) < limits.MAX_PEERS

    def learned(self, *, now_ms: int, relay: int | None = None, origin: bool = False) -> list[Talk]:
        """Something is new here: return whom to tell at once.

        Args:
            now_ms: monotonic, ms.
            relay: how many members after this one it was asked to tell; None when nobody asked.
            origin: whether it is new to everybody: it was handed in, or found out, here.
        """
        self._hot_rounds = limits.GOSSIP_HOT_ROUNDS
        if not self._complete or (relay is None and not origin):
            return self._hot(now_ms)
        self._hot_rounds -= 1
        self._hot_ms = now_ms + limits.GOSSIP_HOT_MS
        if not origin:
            return self._branches(self._after[:relay], now_ms)
        centres = [Talk(one) for one in self._centres if self._standing[one].skip_until_ms <= now_ms]
        return [*centres[: self._fanout], *self._branches(self._after, now_ms)]

    def instead(self, talk: Talk) -> list[Talk]:
        """Return whom to tell in place of one that could not be reached, so that those after it hear the news."""
        return [Talk(talk.rest[0], talk.rest[1:])] if talk.rest else []

    def _branches(self, following: Sequence[str], now_ms: int) -> list[Talk]:
        """Share members out among a few of them; who is passed over leads none, if another can."""
        talks: list[Talk] = []
        share, more = divmod(len(following), self._fanout)
        start = 0
        for number in range(min(self._fanout, len(following))):
            end = start + share + (number < more)
            part, start = tuple(following[start:end]), end
            reachable = [
                index for index, one in enumerate(part) if self._standing[one].skip_until_ms <= now_ms
            ]
            first = reachable[0] if reachable else 0
            talks.append(Talk(part[first], part[first + 1 :]))
        return talks

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
