"""The client of third-party witnesses: the exact request of C2SP tlog-witness, and no trust in the answer."""

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.edge.tlog_witness import TlogWitness
from tests.support.attestation import PARTY_KEY, AttestedNode
from tests.support.tlog_witness import ThirdParty
from trust import limits
from trust.attestation.roster import Witness
from trust.checkpoint import open_checkpoint
from trust.errors import MeshError, Reason
from trust.note import Verifier


@pytest.fixture
def party() -> Iterator[ThirdParty]:
    """A third party that answers."""
    with ThirdParty() as running:
        yield running


def client(party: ThirdParty, key: Verifier | None = None) -> TlogWitness:
    return TlogWitness(Witness("w1", key or party.key, party.url))


def test_a_growing_ledger_is_cosigned(party: ThirdParty) -> None:
    """Each line is a cosignature of the checkpoint that was sent."""
    node, asked = AttestedNode("n"), client(party)
    for _ in range(5):
        note = node.statement().checkpoint
        line = asked.add_checkpoint(note, node.tree.proof)
        public = node.private.public_key().public_bytes_raw()
        opened = open_checkpoint(note + line, Verifier("mesh.local/node/n", public), [party.key])
        assert any(s.time_s is not None for s in opened.note.verified)
        node.grow(b"x", b"y", b"z")


def test_a_restarted_node_learns_what_the_witness_has_seen(party: ThirdParty) -> None:
    """409 carries the size; the second request proves from there."""
    node = AttestedNode("n")
    client(party).add_checkpoint(node.statement().checkpoint, node.tree.proof)
    node.grow(b"x")
    client(party).add_checkpoint(node.statement().checkpoint, node.tree.proof)


def test_a_rolled_back_ledger_is_refused(party: ThirdParty) -> None:
    """The third party remembers more than we show: no line."""
    node = AttestedNode("n")
    client(party).add_checkpoint(node.statement().checkpoint, node.tree.proof)
    del node.tree.leaves[1:]
    with pytest.raises(MeshError) as error:
        client(party).add_checkpoint(node.statement().checkpoint, node.tree.proof)
    assert error.value.reason is Reason.SOURCE_UNAVAILABLE
    assert "409" in error.value.detail


def test_an_answer_of_another_key_is_no_line(party: ThirdParty) -> None:
    """The roster pins the key; whoever answers at the URL is not believed."""
    node = AttestedNode("n")
    with pytest.raises(MeshError):
        client(party, PARTY_KEY).add_checkpoint(node.statement().checkpoint, node.tree.proof)


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"x" * 100_000, "— a b\n".encode()])
def test_a_nonsensical_answer_is_refused(
    party: ThirdParty, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """Bounded and parsed strictly."""
    monkeypatch.setattr(party, "answer", lambda _body: (200, answer))
    node = AttestedNode("n")
    with pytest.raises(MeshError):
        client(party).add_checkpoint(node.statement().checkpoint, node.tree.proof)


def test_an_unreachable_witness_is_named() -> None:
    """Nobody listens on port 1."""
    asked = TlogWitness(Witness("w1", PARTY_KEY, "http://127.0.0.1:1/x"))
    node = AttestedNode("n")
    with pytest.raises(MeshError) as error:
        asked.add_checkpoint(node.statement().checkpoint, node.tree.proof)
    assert "w1" in error.value.detail


def test_the_request_is_as_specified(party: ThirdParty, monkeypatch: pytest.MonkeyPatch) -> None:
    """old size, proof lines, an empty line, the checkpoint."""
    bodies: list[bytes] = []
    answer = party.answer

    def noting(body: bytes) -> tuple[int, bytes]:
        bodies.append(body)
        return answer(body)

    monkeypatch.setattr(party, "answer", noting)
    node, asked = AttestedNode("n"), client(party)
    first = node.statement().checkpoint
    asked.add_checkpoint(first, node.tree.proof)
    node.grow(b"x")
    second: Any = node.statement().checkpoint
    asked.add_checkpoint(second, node.tree.proof)
    assert bodies[0] == b"old 0\n\n" + first
    lines = "".join(base64.b64encode(h).decode() + "\n" for h in node.tree.proof(3))
    assert bodies[1] == f"old 3\n{lines}\n".encode() + second


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_party_that_sends_a_byte_now_and_then_is_not_listened_to_for_ever(
    party: ThirdParty, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Each byte would begin the time anew: a few of them would take every thread of the node, for hours."""
    monkeypatch.setattr(limits, "WITNESS_TIMEOUT_S", 0.3)
    left = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            if scheme == "https":
                connection.sendall(b"\x16\x03\x03\x3f\xff")  # a long handshake record begins
            while not left.wait(0.02):
                connection.sendall(b"\x02" if scheme == "https" else b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        dripping = threading.Thread(target=drip, args=(listener,))
        dripping.start()
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        asked = TlogWitness(Witness("w1", party.key, url))
        node = AttestedNode("n")
        ended = threading.Event()

        def ask() -> None:
            with pytest.raises(MeshError) as error:
                asked.add_checkpoint(node.statement().checkpoint, node.tree.proof)
            assert error.value.reason is Reason.SOURCE_UNAVAILABLE
            ended.set()

        asking = threading.Thread(target=ask)
        asking.start()
        gave_up = ended.wait(10)
        left.set()
        asking.join()
        dripping.join()
    assert gave_up, "the party ended it, not the node"
