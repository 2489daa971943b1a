"""What two commands at once leave in the memory of one terminal: what both saw."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from control_plane.edge import operator_memory
from control_plane.edge.operator_memory import OperatorMemory
from trust.edge.files import write_atomic
from trust.errors import EvidenceError, StateError

FIRST, SECOND = "a" * 64, "b" * 64


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None], Callable[[], None]], None]:
    """Run one, and another from beginning to end (if it can) while the first is about to write."""

    def run(first: Callable[[], None], second: Callable[[], None]) -> None:
        writing, ended = threading.Event(), threading.Event()

        def slow(path: Path, data: bytes) -> None:
            if not writing.is_set():
                writing.set()
                ended.wait(0.2)  # where the other is kept waiting, as it should be, this ends by itself
            write_atomic(path, data)

        monkeypatch.setattr(operator_memory, "write_atomic", slow)
        thread = threading.Thread(target=first)
        thread.start()
        writing.wait(10)
        second()
        ended.set()
        thread.join()

    return run


def test_two_reviews_at_once_are_both_noted(
    tmp_path: Path, at_once: Callable[[Callable[[], None], Callable[[], None]], None]
) -> None:
    """What is not noted is not held against what would be signed."""
    memory = OperatorMemory(tmp_path)
    at_once(lambda: memory.note_reviewed(FIRST), lambda: memory.note_reviewed(SECOND))
    for digest in (FIRST, SECOND):
        memory.check_reviewed(digest)
        with pytest.raises(EvidenceError):
            memory.check_reviewed(digest[:-1] + "c")


def test_a_command_that_was_shown_less_does_not_lower_the_floor_of_one_that_was_shown_more(
    tmp_path: Path, at_once: Callable[[Callable[[], None], Callable[[], None]], None]
) -> None:
    """Two commands around a publication; the older view is written last."""
    memory = OperatorMemory(tmp_path)
    at_once(
        lambda: memory.check_floor({"targets": 5, "timestamp": 7}, frozenset({"targets"})),
        lambda: OperatorMemory(tmp_path).check_floor({"targets": 6, "timestamp": 8}, frozenset({"targets"})),
    )
    with pytest.raises(StateError):
        memory.check_floor({"targets": 5, "timestamp": 9}, frozenset({"targets"}))
