"""What attestation keeps on disk: compared before it is replaced, durable before it is used, damaged means no."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.edge import attestation_files
from sidecar.edge.attestation_files import Counter, WitnessStore
from trust import limits
from trust.attestation.memory import Memory
from trust.edge.files import write_atomic
from trust.errors import MeshError, Reason


def test_a_memory_is_replaced_only_by_its_successor(tmp_path: Path) -> None:
    """Two writers that both saw revision 0: the second is told, and nothing is rolled back."""
    store = WitnessStore(tmp_path / "witness")
    first = replace(Memory(), revision=1, size=5, root=b"\x01" * 32, counter=1)
    store.swap("a", Memory(), first)
    assert WitnessStore(tmp_path / "witness").read("a") == first
    with pytest.raises(MeshError) as error:
        store.swap("a", Memory(), replace(first, size=3))
    assert error.value.reason is Reason.CONFLICT
    assert store.read("a") == first
    assert store.read("b") == Memory()


def test_a_damaged_memory_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """A witness that cannot remember must not start again from nothing."""
    store = WitnessStore(tmp_path)
    (tmp_path / "a.json").write_bytes(b"{}")
    for ask in (lambda: store.read("a"), lambda: store.swap("a", Memory(), replace(Memory(), revision=1))):
        with pytest.raises(MeshError) as error:
            ask()
        assert error.value.reason is Reason.WITNESS_UNAVAILABLE


def test_a_disk_that_fails_keeps_the_witness_from_answering(tmp_path: Path) -> None:
    """Here: the folder is a file."""
    (tmp_path / "witness").write_bytes(b"")
    with pytest.raises(MeshError) as error:
        WitnessStore(tmp_path / "witness").swap("a", Memory(), replace(Memory(), revision=1))
    assert error.value.reason is Reason.WITNESS_UNAVAILABLE


def test_witnessed_nodes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known nodes go on when there is no room for another."""
    monkeypatch.setattr(limits, "MAX_WITNESSED_NODES", 1)
    store, one = WitnessStore(tmp_path), replace(Memory(), revision=1)
    store.swap("a", Memory(), one)
    store.swap("a", one, replace(one, revision=2))
    with pytest.raises(MeshError) as error:
        store.swap("b", Memory(), one)
    assert error.value.reason is Reason.LIMIT_EXCEEDED


def test_the_counter_goes_on_across_restarts(tmp_path: Path) -> None:
    """Every number is used once; time in statements does not go back with the clock."""
    path = tmp_path / "counter.json"
    counter = Counter(path)
    assert counter.next(100) == (1, 100)
    assert counter.next(90) == (2, 100)
    assert Counter(path).next(101) == (3, 101)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"counter":-1,"issued_s":0}', b'{"counter":"1","issued_s":0}']
)
def test_a_damaged_counter_stops_the_node(tmp_path: Path, data: bytes) -> None:
    """Starting at 1 again is what witnesses take for a lie."""
    path = tmp_path / "counter.json"
    path.write_bytes(data)
    with pytest.raises(MeshError) as error:
        Counter(path)
    assert error.value.reason is Reason.CONFLICT
    assert str(path) in error.value.detail


def test_a_counter_that_cannot_be_written_is_not_used(tmp_path: Path) -> None:
    """Nothing is signed under a number that a crash would forget."""
    counter = Counter(tmp_path / "file" / "counter.json")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MeshError) as error:
        counter.next(1)
    assert error.value.reason is Reason.WITNESS_UNAVAILABLE


def test_two_threads_that_swap_one_memory_do_not_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that cancels one statement and sends another must not have the first put over the one that was signed."""
    store = WitnessStore(tmp_path)
    first, second = (replace(Memory(), revision=1, size=size, root=bytes(32), counter=1) for size in (5, 6))
    at_disk, other_ended = threading.Event(), threading.Event()

    def slow(path: Path, data: bytes, *, mode: int) -> None:
        if not at_disk.is_set():
            at_disk.set()
            other_ended.wait(0.2)  # where the other is kept waiting, as it should be, this ends by itself
        write_atomic(path, data, mode=mode)

    monkeypatch.setattr(attestation_files, "write_atomic", slow)
    ends: list[str] = []

    def swap(after: Memory) -> None:
        try:
            store.swap("a", Memory(), after)
            ends.append("swapped")
        except MeshError as error:
            ends.append(error.reason)

    abandoned = threading.Thread(target=swap, args=(first,))
    abandoned.start()
    at_disk.wait()
    swap(second)
    other_ended.set()
    abandoned.join()
    assert sorted(ends) == [Reason.CONFLICT, "swapped"]
    assert store.read("a") == first
