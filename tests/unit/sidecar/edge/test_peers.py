"""Whom a node knows: who wins when sources differ, what survives a restart, what is not believed."""

from pathlib import Path

from sidecar.edge.peers import PeerBook
from trust import limits


def test_configuration_wins_over_signed_policy_and_that_over_the_control_plane(tmp_path: Path) -> None:
    """The nearer to the machine, the better it knows the network."""
    book = PeerBook(tmp_path / "peers.json", "me", {"a": "10.0.0.1:1"})
    book.signed({"a": "10.0.0.2:1", "b": "10.0.0.2:2"})
    assert book.named([("a", "10.0.0.3:1"), ("b", "10.0.0.3:2"), ("c", "10.0.0.3:3"), ("me", "10.0.0.3:4")])
    assert book.addresses() == {"a": "10.0.0.1:1", "b": "10.0.0.2:2", "c": "10.0.0.3:3"}
    assert set(book.shuffled()) == {"a", "b", "c"}


def test_what_the_control_plane_named_is_known_after_a_restart_without_it(tmp_path: Path) -> None:
    """That is when peers are needed most."""
    PeerBook(tmp_path / "peers.json", "me", {}).named([("a", "10.0.0.1:1")])
    assert PeerBook(tmp_path / "peers.json", "me", {}).addresses() == {"a": "10.0.0.1:1"}


def test_an_empty_or_useless_answer_forgets_nobody(tmp_path: Path) -> None:
    """A control plane that has just started knows nobody yet; a hostile one says what it likes."""
    book = PeerBook(tmp_path / "peers.json", "me", {})
    book.named([("a", "10.0.0.1:1")])
    for answer in ([], [("A B", "10.0.0.1:1")], [("b", "nowhere")], [("b", "10.0.0.1:0")]):
        assert not book.named(answer)
    assert book.addresses() == {"a": "10.0.0.1:1"}


def test_number_of_peers_is_bounded_and_the_sure_ones_come_first(tmp_path: Path) -> None:
    """A flood of names does not push out those that are configured."""
    book = PeerBook(tmp_path / "peers.json", "me", {"sure": "10.0.0.9:1"})
    book.named([(f"n{number}", "10.0.0.1:1") for number in range(500)])
    assert len(book.addresses()) == limits.MAX_PEERS
    assert "sure" in book.addresses()


def test_damaged_file_counts_as_empty(tmp_path: Path) -> None:
    """It holds hints; the control plane names them again."""
    path = tmp_path / "peers.json"
    for data in (b"", b"[]", b'{"a": 1, "b": "10.0.0.1:1"}', b"[" * 100_000):
        path.write_bytes(data)
        assert set(PeerBook(path, "me", {}).addresses()) <= {"b"}
