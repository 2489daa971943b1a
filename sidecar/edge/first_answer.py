"""Which of several sources a file is taken from: the first that answers; one that is silent costs little.

A network that swallows packets gives no error, only silence. So no source is waited for alone: after a short delay the
next is asked beside it, each is judged by its own time, and one that did not answer is known as silent until it does.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trust import limits
from trust.errors import MeshError, Reason, StateError
from trust.ports import FileSource

logger = logging.getLogger(__name__)

_AWAY: Final = frozenset({Reason.SOURCE_UNAVAILABLE, Reason.DOWNLOAD_TOO_SLOW})
_ENDING_S: Final = 1.0  # for a thread whose source was closed under it


class Place:
    """One source of files, and whether it answers."""

    def __init__(self, name: str, files: FileSource, *, authority: bool = False) -> None:
        """Describe a source.

        Args:
            name: for the log.
            files: blocks; bounds the time of one file itself.
            authority: whether it is believed when it says that a file does not exist.
        """
        self.name, self.files, self.authority = name, files, authority
        self.silent = False  # was given up without an answer, and has not answered since
        self._lock = threading.Lock()
        self._asking: set[threading.Thread] = set()

    @property
    def busy(self) -> bool:
        """Whether a question is still open here: another one would most likely meet the same silence."""
        return bool(self._asking)

    def ask(self, path: str, race: "_Race") -> None:
        """Ask for a file in a thread of its own; the answer goes to `race`."""
        thread = threading.Thread(target=self._ask, args=(path, race), name=f"fetch {self.name}", daemon=True)
        with self._lock:  # until it runs: `join` must not meet a thread that cannot be joined yet
            thread.start()
            self._asking.add(thread)

    def given_up(self) -> None:
        """Note that nobody waits any more; one that has answered at the last moment is not silent."""
        with self._lock:
            self.silent = self.silent or bool(self._asking)

    def join(self) -> None:
        """Wait until open questions have ended; call it when the source is closed."""
        with self._lock:
            threads = tuple(self._asking)
        for thread in threads:
            thread.join(_ENDING_S)

    def _ask(self, path: str, race: "_Race") -> None:
        try:
            rest = self.files.fetch(path)
            answer = _Answer(self, first=next(rest, b""), rest=rest)
        except Exception as error:  # noqa: BLE001 (raised again where the file is waited for)
            answer = _Answer(self, error=error)
        with self._lock:
            self._asking.discard(threading.current_thread())
            if not answer.away:
                self.silent = False
            elif answer.too_slow:
                self.silent = True
        race.answered(answer)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one source said: the beginning of the file and how to go on, or why not."""

    place: Place
    first: bytes = b""
    rest: Iterator[bytes] = field(default_factory=lambda: iter(()))
    error: Exception | None = None

    @property
    def away(self) -> bool:
        """Whether the source could not be reached, as opposed to what it said."""
        return isinstance(self.error, StateError) and self.error.reason in _AWAY

    @property
    def too_slow(self) -> bool:
        """Whether the source was there, perhaps, and silent."""
        return isinstance(self.error, StateError) and self.error.reason is Reason.DOWNLOAD_TOO_SLOW

    def drop(self) -> None:
        """End the transfer: another source was quicker."""
        close: Any = getattr(self.rest, "close", None)
        if close is not None:
            close()

    def chunks(self) -> Iterator[bytes]:
        """Yield the file."""
        if self.first:
            yield self.first
        yield from self.rest


class _Race:
    """Answers of the sources that were asked for one file. Answers after the end are dropped."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._over = False

    def answered(self, answer: _Answer) -> None:
        """Take an answer, in the thread that has it."""
        with self._lock:
            if not self._over:
                self._answers.put(answer)
                return
        answer.drop()

    def next(self, timeout_s: float | None) -> _Answer | None:
        """Return the next answer; None when none came in time."""
        try:
            return self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def end(self) -> None:
        """Take no more answers."""
        with self._lock:
            self._over = True
        while (late := self.next(0)) is not None:
            late.drop()


class _Search:
    """One file, asked for at several places."""

    def __init__(
        self, path: str, places: Sequence[Place], must_exist: bool, hedge_s: float, silence_s: float
    ) -> None:
        self._path, self._must_exist = path, must_exist
        self._hedge_s, self._silence_s = hedge_s, silence_s
        # Those known to be silent come last, and those that still owe an answer after them.
        self._line = deque(sorted(places, key=lambda place: (place.busy, place.silent)))
        self._race = _Race()
        self._waiting: dict[Place, float] = {}  # since when (monotonic s)
        self._missing = False
        self._away: StateError | None = None

    def run(self) -> _Answer:
        """Return the first answer that has the file; see `first_answer`."""
        try:
            return self._run()
        finally:
            self._race.end()
            for place in self._waiting:
                place.given_up()

    def _run(self) -> _Answer:
        # A silent authority is asked beside the others, so that it is noticed when it is back.
        for place in tuple(self._line):
            if place.authority and place.silent and not place.busy:
                self._line.remove(place)
                self._start(place)
        self._start_next()
        while self._waiting or self._start_next():
            answer = self._race.next(self._patience_s())
            if answer is None:
                # Another look: a silent one may have answered another question meanwhile.
                if not self._start_next() and self._missing and self._patience_s() == 0:
                    break
                continue
            del self._waiting[answer.place]
            if answer.error is None:
                return answer
            self._judge(answer.place, answer.error, away=answer.away)
            self._start_next()
        if self._missing or self._away is None:
            raise FileNotFoundError(self._path)
        raise self._away

    def _judge(self, place: Place, error: Exception, *, away: bool) -> None:
        if isinstance(error, FileNotFoundError):
            if place.authority:
                raise error
            self._missing = True
            return
        if not isinstance(error, MeshError) or (place.authority and not away):
            raise error
        logger.debug("%s from %s: %s", self._path, place.name, error)
        if place.authority or self._away is None:
            self._away = error if isinstance(error, StateError) else _unusable(place, error)

    def _start_next(self) -> bool:
        """Ask the next in line; False when there is none, or when another that owes an answer is not worth it."""
        if not self._more():
            return False
        self._start(self._line.popleft())
        return True

    def _more(self) -> bool:
        pointless = self._missing and not self._must_exist
        return bool(self._line) and not (pointless and self._line[0].busy)

    def _start(self, place: Place) -> None:
        self._waiting[place] = time.monotonic()
        place.ask(self._path, self._race)

    def _patience_s(self) -> float | None:
        """Return how long to wait for an answer; None: as long as the sources themselves."""
        if self._more():
            return self._hedge_s
        if not self._missing:
            return None
        # Others answered that they lack it. Most likely nobody has it, if it may be missing: no long wait then.
        # Else an authority that is merely slow must get its time, or a busy one would never be heard.
        if self._must_exist and any(place.authority and not place.silent for place in self._waiting):
            return None
        known_s = self._silence_s if self._must_exist else self._hedge_s
        until = max(
            since + (known_s if place.silent else self._silence_s) for place, since in self._waiting.items()
        )
        return max(until - time.monotonic(), 0.0)


def first_answer(
    path: str,
    places: Sequence[Place],
    *,
    must_exist: bool = False,
    hedge_s: float = limits.FETCH_HEDGE_S,
    silence_s: float = limits.FETCH_SILENCE_S,
) -> tuple[Place, Iterator[bytes]]:
    """Return who delivers the file at `path`, and its chunks. Blocks; asks every place in a thread of its own.

    A place that breaks off in the middle is not continued by another: the iterator raises.

    Args:
        path: of a policy file.
        places: in the order in which to ask; the next is asked when one fails, or is silent for `hedge_s`.
        must_exist: whether the file is known to exist, so that an authority that answers at all is waited for.
        hedge_s: seconds after which the next is asked beside.
        silence_s: seconds that a silent place is waited for when another has said that it lacks the file.

    Raises:
        FileNotFoundError: an authority says that there is no such file, or all that answer lack it.
        StateError: SOURCE_UNAVAILABLE or DOWNLOAD_TOO_SLOW when nobody answers (the authority's, if it has one).
        MeshError: any other that the authority raises.
    """
    answer = _Search(path, places, must_exist, hedge_s, silence_s).run()
    return answer.place, answer.chunks()


def _unusable(place: Place, error: MeshError) -> StateError:
    return StateError(Reason.SOURCE_UNAVAILABLE, f"{place.name}: {error.detail}")
