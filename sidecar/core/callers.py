"""When a node that keeps streams open here is asked for its renewed credential, and when its time is over.

    (open streams, what is known, now) -> whom to ask, whose streams to decide again

Nothing is asked while other calls bring newer credentials along, and nothing of nodes without open streams. A node
renews its credential at a third of its life, so at half of it there is a newer one, or its witnesses refuse.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from sidecar.core.trust_state import Caller
from trust import limits
from trust.backoff import Backoff

RETRY: Final = Backoff(min_ms=200, max_ms=5_000)
_TRIES: Final = 10  # at least, in half of a life


@dataclass(frozen=True, slots=True)
class Due:
    """What to do now."""

    ask: tuple[Caller, ...] = ()
    lapsed: tuple[Caller, ...] = ()  # nobody vouches for them any more: decide their streams again


@dataclass(slots=True)
class _Known:
    until_ms: int = 0
    lapsed: bool = False
    failures: int = 0
    ask_at_mono_ms: int = 0


class Callers:
    """The nodes with open streams. Not thread-safe: owned by the event loop."""

    def __init__(self, *, at_once: int = limits.MAX_CREDENTIAL_FETCHES) -> None:
        """Know nobody; ask at most `at_once` nodes at a time."""
        self._at_once = at_once
        self._known: dict[Caller, _Known] = {}
        self._asking: set[Caller] = set()

    def tick(
        self,
        open_here: Collection[Caller],
        until_ms: Callable[[Caller], int],
        *,
        ttl_ms: int,
        now_ms: int,
        monotonic_ms: int,
    ) -> Due:
        """Return what to do now; call `answered` for every node in `ask`.

        Args:
            open_here: nodes whose streams are open.
            until_ms: returns until when a node is vouched for by what is known here, Unix ms; 0 when it is not.
            ttl_ms: life of a credential under the policy in force.
            now_ms: Unix time, ms.
            monotonic_ms: for the pauses between questions.
        """
        for gone in self._known.keys() - set(open_here):
            del self._known[gone]
        ask: list[Caller] = []
        lapsed: list[Caller] = []
        for caller in open_here:
            one = self._known.setdefault(caller, _Known())
            end_ms = until_ms(caller)
            if end_ms > one.until_ms:
                one.failures = one.ask_at_mono_ms = 0
            one.until_ms = end_ms
            over = end_ms <= now_ms
            if over and not one.lapsed:
                lapsed.append(caller)
            one.lapsed = over
            wanted = end_ms - now_ms < ttl_ms // 2 and monotonic_ms >= one.ask_at_mono_ms
            if wanted and caller not in self._asking and len(self._asking) < self._at_once:
                self._asking.add(caller)
                ask.append(caller)
        return Due(tuple(ask), tuple(lapsed))

    def answered(self, caller: Caller, *, ttl_ms: int, monotonic_ms: int, jitter: float) -> None:
        """A question has ended, whatever came of it: ask again after a pause, unless something newer is known then.

        Args:
            caller: who was asked.
            ttl_ms: life of a credential.
            monotonic_ms: now.
            jitter: a random number, 0.0 <= jitter < 1.0.
        """
        self._asking.discard(caller)
        one = self._known.get(caller)
        if one is not None:
            one.failures += 1
            longest_ms = ttl_ms // (2 * _TRIES)
            one.ask_at_mono_ms = monotonic_ms + min(RETRY.delay_ms(one.failures, jitter), longest_ms)
