"""A file from the first source that answers: silence is no error, so it must cost little and be remembered."""

import threading
from collections.abc import Iterator

import pytest

from sidecar.edge.first_answer import Place, first_answer
from trust.errors import EvidenceError, MeshError, Reason, StateError

AWAY = StateError(Reason.SOURCE_UNAVAILABLE, "away")
MISSING = FileNotFoundError("x")


class Answers:
    """A source that answers at once: a file, or an error."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer, self.asked = answer, 0

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield the file in two parts."""
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        yield self.answer[:1]
        yield self.answer[1:]


class Silent(Answers):
    """A source that says nothing until it is let; what was taken and what was dropped is noted."""

    def __init__(self, answer: bytes | Exception = AWAY) -> None:
        super().__init__(answer)
        self.let, self.dropped = threading.Event(), threading.Event()

    def fetch(self, path: str) -> Iterator[bytes]:
        """Wait, then answer."""
        self.asked += 1
        self.let.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        try:
            yield self.answer
        finally:
            self.dropped.set()


def ask(*places: Place, silence_s: float = 0.02) -> bytes:
    """Return the file from whoever has it."""
    _, chunks = first_answer("x", places, hedge_s=0.01, silence_s=silence_s)
    return b"".join(chunks)


def authority(source: Answers) -> Place:
    """Return the control plane's place."""
    return Place("control plane", source, authority=True)


def test_one_silent_authority_costs_one_short_wait_for_five_files_and_not_five() -> None:
    """The next source is asked beside it, and first from then on; nobody piles up questions at the silent one."""
    dark, peer = Silent(), Answers(b"file")
    plane, place = authority(dark), Place("peer", peer)
    for _ in range(5):
        assert ask(plane, place) == b"file"
        assert plane.silent
    assert (dark.asked, peer.asked) == (1, 5)
    dark.let.set()
    plane.join()


def test_file_that_peers_lack_does_not_exist_when_the_authority_stays_silent() -> None:
    """A walk over root versions ends at one that nobody has: it must end without the control plane, too."""
    dark = Silent()
    plane = authority(dark)
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            ask(plane, Place("a", Answers(MISSING)), Place("b", Answers(AWAY)))
    assert (dark.asked, plane.silent) == (1, True)
    dark.let.set()
    plane.join()


def test_authority_that_is_merely_slow_is_waited_for_when_peers_lack_the_file() -> None:
    """Peers that have fallen behind must not hide a new root from a node that can still hear of it."""
    slow = Silent(b"new root")
    timer = threading.Timer(0.05, slow.let.set)
    timer.start()
    assert ask(authority(slow), Place("a", Answers(MISSING)), silence_s=60) == b"new root"


def test_authority_that_is_always_slower_than_that_is_heard_all_the_same() -> None:
    """When many nodes start at once none has a policy yet, and an overloaded control plane must not starve them."""
    slow = Silent(b"lease")
    plane, peer = authority(slow), Place("a", Answers(MISSING))
    with pytest.raises(FileNotFoundError):
        ask(plane, peer)
    timer = threading.Timer(0.05, slow.let.set)
    timer.start()
    _, chunks = first_answer("x", [plane, peer], must_exist=True, hedge_s=0.01, silence_s=60)
    assert b"".join(chunks) == b"lease"
    assert slow.asked == 2


def test_file_that_must_exist_is_not_waited_for_long_where_the_authority_is_known_to_be_silent() -> None:
    """The next refresh asks other peers."""
    dark = Silent()
    plane = authority(dark)
    plane.silent = True
    with pytest.raises(FileNotFoundError):
        first_answer(
            "x", [plane, Place("a", Answers(MISSING))], must_exist=True, hedge_s=0.01, silence_s=0.02
        )
    dark.let.set()
    plane.join()


def test_authority_that_is_back_is_noticed_and_asked_first_again() -> None:
    """Else a node would live on what its peers know for ever."""
    dark, peer = Silent(b"file"), Answers(b"file")
    plane, place = authority(dark), Place("peer", peer)
    ask(plane, place)
    dark.let.set()
    plane.join()
    assert not plane.silent
    assert dark.dropped.wait(10), "an answer that comes too late ends its transfer"
    ask(plane, place)
    assert (dark.asked, peer.asked) == (2, 1)


def test_known_silent_authority_is_asked_beside_the_peers() -> None:
    """That is how it is noticed that it is back."""
    plane = authority(Answers(b"file"))
    plane.silent = True
    dark = Silent()
    assert ask(plane, Place("peer", dark)) == b"file"
    assert not plane.silent
    dark.let.set()


def test_lone_source_is_given_its_own_time() -> None:
    """Where nobody else can answer there is nothing to hedge with, also when it is known to be silent."""
    slow = Silent(b"file")
    plane = authority(slow)
    plane.silent = True
    timer = threading.Timer(0.05, slow.let.set)
    timer.start()
    assert ask(plane, Place("a", Answers(AWAY))) == b"file"


def test_silent_source_is_asked_again_where_nobody_else_is_left() -> None:
    """A question that is still open elsewhere must not make a file unreachable."""

    class Second(Silent):
        def fetch(self, path: str) -> Iterator[bytes]:
            if self.asked:
                self.asked += 1
                return iter([b"file"])
            return super().fetch(path)

    dark = Second()
    plane = authority(dark)
    assert ask(plane, Place("peer", Answers(b"file"))) == b"file"
    assert ask(plane, Place("peer", Answers(AWAY))) == b"file"
    dark.let.set()
    plane.join()


def test_silence_that_ended_in_too_slow_is_remembered() -> None:
    """A source that was waited for in vain must not be the first to be waited for the next time."""
    plane = authority(Answers(StateError(Reason.DOWNLOAD_TOO_SLOW, "no data")))
    ask(plane, Place("peer", Answers(b"file")))
    assert plane.silent


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        (AWAY, AWAY),
        (StateError(Reason.IDENTITY_UNAVAILABLE, "no certificate"), Reason.IDENTITY_UNAVAILABLE),
        (ValueError("a bug"), ValueError),
    ],
)
def test_what_the_authority_says_is_what_a_person_reads(
    said: Exception, raised: Reason | type[Exception] | Exception
) -> None:
    """Of several failures its own explains most; a bug is not taken for an answer."""
    peer = Place("peer", Answers(EvidenceError(Reason.METADATA_INVALID, "not for you")))
    with pytest.raises((MeshError, ValueError)) as caught:
        ask(authority(Answers(said)), peer)
    assert raised in (caught.value, type(caught.value), getattr(caught.value, "reason", None))


def test_empty_file_is_a_file() -> None:
    """No chunk at all is an answer, and verification judges it."""
    assert ask(authority(Answers(b""))) == b""


def test_source_closed_while_a_question_is_put_ends_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can wait for a thread that was noted and is not running yet."""
    place, errors, closers = Place("peer", Answers(b"file")), [], []
    start = threading.Thread.start

    def close() -> None:
        try:
            place.join()
        except RuntimeError as error:
            errors.append(error)

    def start_late(thread: threading.Thread) -> None:
        """Let somebody close the source first."""
        if thread.name.startswith("fetch"):
            closers.append(threading.Thread(target=close))
            start(closers[0])
            closers[0].join(0.05)  # ends at once where the question is noted already, else waits for it
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_late)
    assert ask(place) == b"file"
    closers[0].join()
    assert errors == []
