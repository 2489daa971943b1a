"""Which open streams still have their right: all are decided again after every change, in bounded steps.

What changes for one node alone (its credential has ended) has the streams that it opened decided again, not all.
"""

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sidecar.core.call import Decision, Permitted
from sidecar.core.trust_state import Caller

Cut = Callable[[Decision], None]


@dataclass(frozen=True, slots=True)
class _Open:
    permitted: Permitted
    cut: Cut


class Streams:
    """The registry of open streams. Not thread-safe: owned by the event loop."""

    def __init__(self) -> None:
        """Start empty."""
        self._open: dict[int, _Open] = {}
        self._doubtful: deque[int] = deque()
        self._of: dict[Caller, set[int]] = {}  # by the node whose permit they came with
        self._last_handle = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def pending(self) -> int:
        """How many streams wait to be decided again (some may have closed since)."""
        return len(self._doubtful)

    @property
    def callers(self) -> Collection[Caller]:
        """Of which nodes streams are open that came with a permit."""
        return self._of.keys()

    def opened(self, permitted: Permitted, cut: Cut, *, epoch: int) -> int:
        """Register a stream; one that was decided under an older epoch is doubtful at once."""
        self._last_handle += 1
        handle = self._last_handle
        self._open[handle] = _Open(permitted, cut)
        caller = caller_of(permitted)
        if caller is not None:
            self._of.setdefault(caller, set()).add(handle)
        if permitted.epoch != epoch:
            self._doubtful.append(handle)
        return handle

    def closed(self, handle: int) -> None:
        """Forget a stream; closing twice is harmless."""
        stream = self._open.pop(handle, None)
        caller = None if stream is None else caller_of(stream.permitted)
        if caller is None:
            return
        others = self._of.get(caller, set())
        others.discard(handle)
        if not others:
            self._of.pop(caller, None)

    def doubt(self, caller: Caller) -> None:
        """Have the streams of one node decided again."""
        self._doubtful.extend(self._of.get(caller, ()))

    def doubt_all(self) -> None:
        """Have every open stream decided again, from the beginning."""
        self._doubtful = deque(self._open)

    def step(self, decide: Callable[[Permitted], Decision | None], budget: int) -> int:
        """Decide at most `budget` doubtful streams again and cut those that lost their right.

        Args:
            decide: returns None while the right holds, else the decision to cut with.
            budget: streams to look at in this step, >= 1.

        Returns:
            How many were cut. Call again while `pending` is not 0.
        """
        cut = 0
        for _ in range(min(budget, len(self._doubtful))):
            handle = self._doubtful.popleft()
            stream = self._open.get(handle)
            if stream is None:
                continue
            withdrawn = decide(stream.permitted)
            if withdrawn is not None:
                self.closed(handle)
                cut += 1
                stream.cut(withdrawn)
        return cut


def caller_of(permitted: Permitted) -> Caller | None:
    """Return the node that vouches for a call with its permit; None when none came with it."""
    permit = permitted.attempt.permit
    return None if permit is None else (permit.key.node, permit.key.public_key.public_bytes_raw())
