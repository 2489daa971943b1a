"""Which open streams still have their right: all are decided again after every change, in bounded steps."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.core.call import Decision, Permitted

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
        self._last_handle = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def pending(self) -> int:
        """How many streams wait to be decided again (some may have closed since)."""
        return len(self._doubtful)

    def opened(self, permitted: Permitted, cut: Cut, *, epoch: int) -> int:
        """Register a stream; one that was decided under an older epoch is doubtful at once."""
        self._last_handle += 1
        handle = self._last_handle
        self._open[handle] = _Open(permitted, cut)
        if permitted.epoch != epoch:
            self._doubtful.append(handle)
        return handle

    def closed(self, handle: int) -> None:
        """Forget a stream; closing twice is harmless."""
        self._open.pop(handle, None)

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
                del self._open[handle]
                cut += 1
                stream.cut(withdrawn)
        return cut
