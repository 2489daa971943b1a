"""What a member notices of others by itself, and acts on."""

from pathlib import Path

from tests.support.attestation import (
    DOMAIN,
    NOW_MS,
    NOW_S,
    AttestedNode,
    Tree,
    credential_of,
    holders,
    roster_of,
)
from trust import limits
from trust.attestation.credential import log_origin
from trust.checkpoint import sign_checkpoint
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.lookout import Lookout
from trust.gossip import Head
from trust.misbehaviour import Anchors
from trust.node_key import NodeKey, verify_endorsement
from trust.spiffe import SpiffeId

ENTRIES = [bytes([number]) for number in range(5)]


class Member:
    """One member of a mesh with one witness, and a node that it hears of."""

    def __init__(self, home: Path) -> None:
        self.node = AttestedNode(tree=Tree(ENTRIES))
        self.witnesses = holders("w", "x", "y")
        self.roster = roster_of(self.witnesses)
        self.keeper = DenialKeeper(
            home / "denials.json",
            DOMAIN,
            now_ms=lambda: NOW_MS,
            monotonic_ms=lambda: 0,
            anchors=lambda: Anchors(DOMAIN, self.node.ca.pem, self.roster),
        )
        self.lookout = Lookout(self.keeper, self.verify, lambda: self.roster)

    def verify(self, endorsement: bytes) -> NodeKey:
        """Return the key of a node of this mesh."""
        return verify_endorsement(endorsement, self.node.ca.pem, DOMAIN, NOW_MS)

    def head(self, tree: Tree) -> Head:
        """Return a head that the node signed."""
        private = self.node.private
        public = private.public_key().public_bytes_raw()
        note = sign_checkpoint(tree.checkpoint(log_origin(self.node.id)), private.sign, public_key=public)
        return Head(note, self.node.endorsement)

    def quarantined(self, name: str) -> bool:
        """Whether a node is locked out."""
        return self.keeper.denials.of_node(str(SpiffeId.of(DOMAIN, "node", name))) is not None


def test_two_heads_lock_the_node_out(tmp_path: Path) -> None:
    """From whomever they come."""
    member = Member(tmp_path)
    member.lookout.saw(member.head(Tree(ENTRIES)))
    assert not member.quarantined("a")
    member.lookout.saw(member.head(Tree([b"other", *ENTRIES[1:]])))
    assert member.quarantined("a")


def test_a_witness_that_vouches_for_an_older_state_is_locked_out_with_the_node_that_went_back(
    tmp_path: Path,
) -> None:
    """The endorsement of the node's key is known from its ledger's head."""
    member = Member(tmp_path)
    node, (liar, *honest) = member.node, member.witnesses
    older = node.evidence(issued_s=NOW_S + 9)
    node.counter = 7
    newer = node.evidence()
    member.lookout.saw(member.head(node.tree))
    member.lookout.vouched(credential_of(newer, [liar, honest[0]]))
    member.lookout.vouched(credential_of(older, [liar, honest[1]], time_s=NOW_S + 9))
    assert [member.quarantined(name) for name in ("w", "a", "x", "y")] == [True, True, False, False]


def test_a_member_shows_its_own_head_and_credential_first_and_no_more_than_the_limit(tmp_path: Path) -> None:
    """Whoever it talks to learns of it at once; of others in turn."""
    member = Member(tmp_path)
    own = credential_of(member.node.evidence(), member.witnesses)
    member.lookout.gained(own)
    assert list(member.lookout.shown_credentials()) == [own]
    others = [AttestedNode(f"n{number}", ca=member.node.ca) for number in range(4)]
    made = [credential_of(one.evidence(), member.witnesses) for one in others]
    for data in made:
        member.lookout.vouched(data)
    for _ in range(8):
        shown = list(member.lookout.shown_credentials())
        assert shown[0] == own
        assert len(shown) <= limits.MAX_GOSSIP_CREDENTIALS
    head = member.head(member.node.tree)
    member.lookout.saw(head)
    assert member.lookout.shown_heads(head)[0] == head
    assert len(member.lookout.shown_heads(head)) <= limits.MAX_GOSSIP_HEADS


def test_a_proof_that_does_not_hold_here_is_not_acted_on(tmp_path: Path) -> None:
    """The keeper verifies what was made here like everything else."""
    member = Member(tmp_path)
    assert not member.lookout.accuse(b"nonsense", "a test")
    assert member.keeper.denials.active == ()
