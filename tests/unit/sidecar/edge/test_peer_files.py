"""Policy files from peers: asked when the control plane is away, and nobody is believed who merely lacks a file."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest

from sidecar.edge.first_answer import Place
from sidecar.edge.peer_files import AnySource, PeerFiles
from tests.support.pki import Authority, StaticIdentity
from tests.support.tuf_world import DictSource, World
from trust.chain import Stored
from trust.edge.tuf_client import PolicyClient
from trust.errors import Reason, StateError
from trust.spiffe import SpiffeId


class Fake:
    """A source that has some files, none, or does not answer."""

    def __init__(self, files: dict[str, bytes] | None, *, breaks: bool = False) -> None:
        self.files, self.breaks, self.asked = files, breaks, 0

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield one file."""
        self.asked += 1
        if self.files is None:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "away")
        if path not in self.files:
            raise FileNotFoundError(path)
        yield self.files[path]
        if self.breaks:
            raise StateError(Reason.SOURCE_UNAVAILABLE, "broke off")

    def rotate(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def any_source(control_plane: Fake, **peers: Fake) -> AnySource:
    """Return a source with peers in this order."""
    me = SpiffeId.of("mesh.local", "node", "me")
    source = AnySource(
        control_plane, StaticIdentity(Authority()), me, lambda: dict.fromkeys(peers, "127.0.0.1:1")
    )
    for name, fake in peers.items():
        source._known[name, "127.0.0.1:1"] = Place(name, fake)
    return source


def test_control_plane_that_answers_is_believed_also_that_a_file_does_not_exist() -> None:
    """The walk over root versions ends there, without asking anybody else."""
    peer = Fake({"x": b"1"})
    with pytest.raises(FileNotFoundError):
        list(any_source(Fake({}), p=peer).fetch("x"))
    assert peer.asked == 0


def test_peers_are_asked_in_turn_when_it_is_away() -> None:
    """One that has the file is enough."""
    source = any_source(Fake(None), a=Fake(None), b=Fake({}), c=Fake({"x": b"1"}))
    assert list(source.fetch("x")) == [b"1"]


def test_file_that_no_peer_has_does_not_exist_and_nobody_is_nobody() -> None:
    """A missing root version is a normal answer; silence is not."""
    with pytest.raises(FileNotFoundError):
        list(any_source(Fake(None), a=Fake({}), b=Fake(None)).fetch("x"))
    with pytest.raises(StateError) as caught:
        list(any_source(Fake(None), a=Fake(None)).fetch("x"))
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


def test_half_a_file_is_not_continued_by_somebody_else() -> None:
    """Joining parts of two files would fail later, with a worse explanation."""
    for source in (
        any_source(Fake({"x": b"1"}, breaks=True), a=Fake({"x": b"1"})),
        any_source(Fake(None), a=Fake({"x": b"1"}, breaks=True), b=Fake({"x": b"1"})),
    ):
        with pytest.raises(StateError):
            list(source.fetch("x"))


def test_node_serves_exactly_what_another_needs_to_verify_the_same_policy(tmp_path: Path) -> None:
    """Roots, lease, snapshot, roles and archives; nothing else."""
    world = World()
    world.release(b"not read here")
    mine = PolicyClient(tmp_path / "mine", world.root)
    mine.refresh(world.source())
    files = PeerFiles(mine, world.root)
    served = {path: data for path in world.files if (data := files.read(path)) is not None}
    assert served == world.files
    theirs = PolicyClient(tmp_path / "theirs", world.root)
    assert theirs.refresh(DictSource(served)).base.version == 1
    assert files.read("metadata/9.root.json") is None
    assert files.read("../identity/node.key") is None
    assert mine.base[0] == theirs.base[0] == 1
    assert mine.base == theirs.base


class Turns:
    """What two readers wait for: the first is nearly done when the second begins, and ends before it goes on."""

    def __init__(self, stored: Stored) -> None:
        self._stored, self._readers = stored, 0
        self.first_is_late, self.second_began, self.first_ended = (threading.Event() for _ in range(3))

    def stored(self) -> Stored:
        """Return what is kept, to one more reader."""
        self._readers += 1
        if self._readers == 1:
            return replace(self._stored, roles=LateRoles(self))
        return replace(self._stored, roots=EarlyRoots(self))


class LateRoles(dict[str, bytes]):
    """No roles; the reader comes to them last."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def items(self) -> Any:
        """Wait until the other reader has begun."""
        self._turns.first_is_late.set()
        self._turns.second_began.wait(10)
        return super().items()


class EarlyRoots(tuple[bytes, ...]):
    """No further roots; the reader begins with them."""

    __slots__ = ()
    turns: Turns

    def __new__(cls, turns: Turns) -> Self:
        """Make an empty one."""
        cls.turns = turns
        return super().__new__(cls)

    def __iter__(self) -> Iterator[bytes]:
        """Wait until the other reader has ended."""
        self.turns.second_began.set()
        self.turns.first_ended.wait(10)
        return super().__iter__()


def test_two_peers_that_ask_at_once_for_a_new_policy_both_get_it(tmp_path: Path) -> None:
    """A file that is there and is said to be missing would end a peer's walk over root versions too early."""
    world = World()
    world.release(b"not read here")
    mine = PolicyClient(tmp_path / "mine", world.root)
    mine.refresh(world.source())
    kept = mine.stored()
    assert kept is not None
    turns = Turns(kept)
    client = SimpleNamespace(newest=mine.newest, stored=turns.stored)
    served = PeerFiles(cast(Any, client), world.root)
    got: list[bytes | None] = []

    def first() -> None:
        got.append(served.read("metadata/1.root.json"))
        turns.first_ended.set()

    def second() -> None:
        turns.first_is_late.wait(10)
        served.read("metadata/1.root.json")

    threads = [threading.Thread(target=one) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [world.root]


def test_the_way_to_an_address_that_is_no_peer_s_any_more_is_closed() -> None:
    """A control plane that names other addresses with every report would else leave a connection at each of them."""
    peers, closed = {"a": "127.0.0.1:1"}, []

    class Closing(Fake):
        def close(self) -> None:
            closed.append(self)

    old, kept = Closing({"x": b"1"}), Closing({"x": b"2"})
    me = SpiffeId.of("mesh.local", "node", "me")
    source = AnySource(Fake(None), StaticIdentity(Authority()), me, lambda: peers)
    source._known["a", "127.0.0.1:1"] = Place("a", old)
    source._known["a", "127.0.0.1:2"] = Place("a", kept)
    source._sources += [old, kept]
    peers["a"] = "127.0.0.1:2"
    assert list(source.fetch("x")) == [b"2"]
    assert closed == [old]
    assert list(source._known) == [("a", "127.0.0.1:2")]
    source.close()
    assert closed == [old, kept]
