"""Simulated time, network and disks: one queue of events, coroutines without a loop, files that survive or do not.

Nothing here knows the protocol. Every choice is drawn from one seeded generator and every event comes out of one
ordered queue, so a seed replays exactly.
"""

import hashlib
import heapq
import io
import random
from collections.abc import Callable, Coroutine, Generator
from typing import Any

START_MS = 1_800_000_000_000
Coro = Coroutine[Any, Any, Any]


class Violation(AssertionError):
    """An invariant of the design does not hold."""


class DiedError(BaseException):
    """The process died here; a BaseException, so that no handler of the product survives it."""


class UnreachableError(Exception):
    """No answer came."""


class Future:
    """What a simulated coroutine waits for."""

    def __init__(self) -> None:
        self.done, self.value, self.error = False, None, None  # type: bool, Any, BaseException | None
        self._then: list[Callable[[], None]] = []

    def __await__(self) -> Generator["Future", None, Any]:
        """Wait."""
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value

    def finish(self, value: Any = None, error: BaseException | None = None) -> None:
        """End the wait; a second end is passed over."""
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        for then in self._then:
            then()

    def then(self, action: Callable[[], None]) -> None:
        """Call `action` at the end."""
        if self.done:
            action()
        else:
            self._then.append(action)


class Disk:
    """The files of one node. A write is atomic: wholly there, or wholly not, when the node dies in it."""

    def __init__(self, owner: str, dies: Callable[[], bool]) -> None:
        self.owner = owner
        self.files: dict[str, Any] = {}
        self._dies = dies

    def write(self, name: str, data: object) -> None:
        """Replace a file; the process may die just before or just after."""
        if self._dies():
            raise DiedError(self.owner)
        self.files[name] = data
        if self._dies():
            raise DiedError(self.owner)

    def append(self, name: str, data: bytes) -> None:
        """Add to a file; the process may die before, in the middle, or just after."""
        if self._dies():
            self.files[name] += data[: len(data) // 2]
            raise DiedError(self.owner)
        self.files[name] += data
        if self._dies():
            raise DiedError(self.owner)


class SimLock:
    """What `asyncio.Lock` promises, for simulated coroutines."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: list[Future] = []

    async def __aenter__(self) -> None:
        while self._held:
            future = Future()
            self._waiting.append(future)
            await future
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        if self._waiting:
            self._waiting.pop(0).finish()


class SimPath:
    """As much of `pathlib.Path` as the product's stores use, on a simulated disk."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk, self.name = disk, name

    def __truediv__(self, name: str) -> "SimPath":
        return SimPath(self.disk, f"{self.name}/{name}")

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        """Return the content."""
        if self.name not in self.disk.files:
            raise FileNotFoundError(self.name)
        data: bytes = self.disk.files[self.name]
        return data

    def write_bytes(self, data: bytes) -> None:
        """Replace the content."""
        self.disk.write(self.name, data)

    def mkdir(self) -> None:
        """Make a directory, of which there is nothing to make."""

    def open(self, _mode: str) -> io.BytesIO:
        """Open it for reading."""
        return io.BytesIO(self.read_bytes())

    def glob(self, _pattern: str) -> list[str]:
        """Return the files below."""
        return [name for name in self.disk.files if name.startswith(f"{self.name}/")]


def write_atomic(path: SimPath, data: bytes, *, mode: int = 0o644) -> None:
    """Stand in for `trust.edge.files.write_atomic`, which has this promise."""
    path.disk.write(path.name, data)


class Kernel:
    """The queue, the clock, and the network."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ms, self.events = START_MS, 0
        self.loss, self.delay_ms, self.duplicates = 0.05, 120, 0.05
        self.cut: set[tuple[str, str]] = set()  # (from, to): one way
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._trace = hashlib.sha256()

    @property
    def trace(self) -> str:
        """What names this run exactly: SHA-256 over the time and kind of every event, in hexadecimal."""
        return self._trace.hexdigest()

    def after(self, delay_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen."""
        self._number += 1
        heapq.heappush(self._queue, (self.now_ms + max(0, delay_ms), self._number, action, arguments))

    def next(self) -> None:
        """Let the next event happen."""
        self.now_ms, _, action, arguments = heapq.heappop(self._queue)
        self.events += 1
        self._trace.update(b"%d %s\n" % (self.now_ms, action.__qualname__.encode()))
        action(*arguments)

    def chance(self, probability: float) -> bool:
        """Draw."""
        return self.random.random() < probability

    def sleep(self, ms: int) -> Future:
        """Return what ends after `ms`."""
        future = Future()
        self.after(ms, future.finish)
        return future

    def arrives(self, source: str, target: str) -> bool:
        """Whether one message makes its way."""
        return (source, target) not in self.cut and not self.chance(self.loss)

    def latency(self) -> int:
        """Draw how long one message takes; messages overtake each other."""
        return self.random.randint(1, self.delay_ms)
