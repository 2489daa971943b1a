"""Tree heads that peers show: remembered, shown on, compared."""

from tests.support.attestation import DOMAIN, NOW_MS, AttestedNode, Tree
from trust.attestation.credential import log_origin
from trust.checkpoint import sign_checkpoint
from trust.gossip import Head
from trust.heads import Heads
from trust.misbehaviour import Anchors, verify_proof
from trust.node_key import NodeKey, verify_endorsement


def head(node: AttestedNode, tree: Tree, size: int) -> Head:
    """Return a head that the node signed."""
    public = node.private.public_key().public_bytes_raw()
    note = sign_checkpoint(tree.checkpoint(log_origin(node.id), size), node.private.sign, public_key=public)
    return Head(note, node.endorsement)


def heads(*nodes: AttestedNode, capacity: int = 100) -> Heads:
    """Return what a member knows whose CA is that of the nodes."""
    pem = b"".join(node.ca.pem for node in nodes)

    def verify(endorsement: bytes) -> NodeKey:
        return verify_endorsement(endorsement, pem, DOMAIN, NOW_MS)

    return Heads(verify, capacity=capacity)


GROWN = Tree([bytes([number]) for number in range(9)])
OTHER = Tree([b"other", *(bytes([number]) for number in range(1, 9))])


def test_growing_ledger_is_no_news_and_its_newest_head_is_shown() -> None:
    """The usual case, in whatever order heads arrive."""
    node = AttestedNode()
    known = heads(node)
    for size in (3, 9, 5, 9, 3):
        assert known.saw(head(node, GROWN, size)) is None
    assert known.show(4) == [head(node, GROWN, 9)]


def test_two_heads_of_one_size_make_a_proof_that_holds() -> None:
    """Equivocation, seen by one honest member."""
    node = AttestedNode()
    known = heads(node)
    known.saw(head(node, GROWN, 3))
    known.saw(head(node, GROWN, 9))
    proof = known.saw(head(node, OTHER, 3))
    assert proof is not None
    assert verify_proof(proof, Anchors(DOMAIN, node.ca.pem)).node == str(node.id)


def test_heads_of_strangers_and_garbage_are_passed_over() -> None:
    """A hostile peer costs one failed check."""
    node, stranger = AttestedNode(), AttestedNode("x")
    known = heads(node)
    assert known.saw(head(stranger, GROWN, 3)) is None
    assert known.saw(Head(b"garbage", node.endorsement)) is None
    assert known.saw(Head(head(node, GROWN, 3).checkpoint, b"garbage")) is None
    assert len(known) == 0


def test_another_node_s_endorsement_does_not_vouch_for_a_head() -> None:
    """The key in the endorsement must have signed it, under its node's origin."""
    one, two = AttestedNode("a"), AttestedNode("b")
    known = heads(one, two)
    assert known.saw(Head(head(one, GROWN, 3).checkpoint, two.endorsement)) is None
    assert len(known) == 0


def test_memory_is_bounded_and_everybody_is_shown_in_turn() -> None:
    """However many ledgers there are."""
    nodes = [AttestedNode(f"n{number}") for number in range(4)]
    known = heads(*nodes, capacity=3)
    for node in nodes:
        known.saw(head(node, GROWN, 3))
    assert len(known) == 3
    shown = [one.endorsement for _ in range(3) for one in known.show(1)]
    assert set(shown) == {node.endorsement for node in nodes[1:]}
