"""Credentials that cannot all be honest convict the witness that signed them, and the node."""

from dataclasses import replace

import pytest

from tests.support.attestation import (
    DOMAIN,
    NOW_S,
    PARTY,
    PARTY_KEY,
    AttestedNode,
    Tree,
    WitnessHolder,
    credential_of,
    holders,
    roster_of,
    third_party,
)
from trust import limits
from trust.attestation.credential import write_credential
from trust.attestation.roster import Roster
from trust.attestation.statement import Evidence
from trust.misbehaviour import Anchors, Finding, verify_proof
from trust.note import cosign
from trust.spiffe import SpiffeId
from trust.vouched import Vouchings


def known(node: AttestedNode, roster: Roster) -> Vouchings:
    """Return what a member knows that has met the node's key."""
    return Vouchings(lambda: roster, lambda _node: node.endorsement)


def findings(proofs: list[bytes], node: AttestedNode, roster: Roster) -> dict[str, Finding]:
    """Verify proofs; return who is accused."""
    trusted = Anchors(DOMAIN, node.ca.pem, roster)
    return {one.accused: one for one in (verify_proof(data, trusted) for data in proofs)}


def rolled_back() -> tuple[AttestedNode, Evidence, Evidence]:
    """Return a node with a newer and an older statement of it, in this order."""
    node = AttestedNode()
    older = node.evidence()
    node.grow(b"four")
    return node, node.evidence(), older


def test_honest_renewals_convict_nobody_in_any_order() -> None:
    """The usual case: counters, times and ledgers grow, and gossip delivers as it likes."""
    witnesses = holders("w", "x")
    roster, node = roster_of(witnesses), AttestedNode()
    made = []
    for number in range(6):
        node.grow(b"more") if number % 2 else None
        made.append(credential_of(node.evidence(), witnesses, time_s=NOW_S + number))
    for order in (made, made[::-1], [made[index] for index in (3, 0, 5, 1, 4, 2)]):
        vouchings = known(node, roster)
        assert [proof for data in (*order, *order) for proof in vouchings.saw(data)] == []
    assert vouchings.show(4) == [made[-1]]


@pytest.mark.parametrize("newer_first", [True, False])
def test_a_witness_that_vouches_for_an_older_state_is_convicted_alone(newer_first: bool) -> None:
    """Whichever of the two credentials arrives first; those who signed one of them are innocent."""
    witness, honest, other = holders("w", "x", "y")
    roster = roster_of([witness, honest, other])
    node, newer, older = rolled_back()
    pair = [
        credential_of(newer, [witness, honest], time_s=NOW_S),
        credential_of(older, [witness, other], time_s=NOW_S + 9),
    ]
    vouchings = Vouchings(lambda: roster)
    first, second = pair if newer_first else pair[::-1]
    assert vouchings.saw(first) == []
    found = findings(vouchings.saw(second), node, roster)
    assert list(found) == [f"spiffe://{DOMAIN}/node/w"]
    assert found[f"spiffe://{DOMAIN}/node/w"].node


def test_the_node_that_goes_back_is_convicted_with_its_witness() -> None:
    """Its own statements are inside."""
    (witness,) = holders("w")
    roster = roster_of([witness])
    node = AttestedNode()
    older = node.evidence(issued_s=NOW_S + 9)
    node.counter = 4
    newer = node.evidence(issued_s=NOW_S)
    vouchings = known(node, roster)
    assert vouchings.saw(credential_of(newer, [witness], time_s=NOW_S)) == []
    found = findings(vouchings.saw(credential_of(older, [witness], time_s=NOW_S + 9)), node, roster)
    assert {one.kind for one in found.values()} == {"witness-rollback", "counter-back"}
    assert str(node.id) in found


def test_two_histories_of_one_size_convict_witness_and_node() -> None:
    """Invariant 6, wherever the two credentials meet."""
    (witness,) = holders("w")
    roster, node = roster_of([witness]), AttestedNode()
    one = node.evidence()
    node.tree = Tree([b"one", b"two", b"other"])
    two = node.evidence()
    vouchings = known(node, roster)
    vouchings.saw(credential_of(one, [witness]))
    found = findings(vouchings.saw(credential_of(two, [witness])), node, roster)
    assert {one.kind for one in found.values()} == {"witness-rollback", "ledger-fork"}


def party(evidence: Evidence, witness: WitnessHolder, time_s: int) -> bytes:
    """Return a credential with a third party's cosignature."""
    text = evidence.statement.checkpoint.partition(b"\n\n")[0] + b"\n"
    line = cosign(text, PARTY_KEY.name, PARTY.private.sign, public_key=PARTY_KEY.public_key, time_s=time_s)
    return write_credential(evidence, [witness.attest(evidence)], [witness.log(evidence), line])


def test_a_third_party_that_cosigns_a_rolled_back_head_is_convicted_by_its_name() -> None:
    """No node is quarantined for it; the alarm names it."""
    one, two = holders("w", "x")
    roster = roster_of([one, two], log_witnesses=third_party(), log_quorum=1)
    node, newer, older = rolled_back()
    vouchings = Vouchings(lambda: roster)
    vouchings.saw(party(newer, one, NOW_S))
    found = findings(vouchings.saw(party(older, two, NOW_S + 9)), node, roster)
    assert (found["w1"].kind, found["w1"].node) == ("cosigned-fork", "")


def test_a_witness_that_only_cosigns_the_tree_head_is_convicted_by_that() -> None:
    """A witness can withhold its attestation and still cosign two histories."""
    liar, one, two = holders("w", "x", "y")
    roster = roster_of([liar, one, two])
    node, newer, older = rolled_back()
    vouchings = Vouchings(lambda: roster)
    vouchings.saw(write_credential(newer, [one.attest(newer)], [liar.log(newer, time_s=NOW_S)]))
    proofs = vouchings.saw(write_credential(older, [two.attest(older)], [liar.log(older, time_s=NOW_S + 9)]))
    found = findings(proofs, node, roster)
    assert [one.kind for one in found.values()] == ["cosigned-fork"]
    assert found[f"spiffe://{DOMAIN}/node/w"].node


def test_strangers_and_garbage_are_passed_over_and_cost_one_look() -> None:
    """A hostile peer can show anything."""
    (witness,) = holders("w")
    (stranger,) = holders("w")
    node = AttestedNode()
    vouchings = known(node, roster_of([witness]))
    for data in (b"", b"garbage", b"{}", credential_of(node.evidence(), [stranger])):
        assert vouchings.saw(data) == []
    unsigned = write_credential(node.evidence(), [], [])
    assert vouchings.saw(unsigned) == []
    assert (len(vouchings), vouchings.show(4)) == (0, [])
    assert Vouchings(lambda: None).saw(credential_of(node.evidence(), [witness])) == []


def test_another_roster_keeps_what_it_can_verify() -> None:
    """A new policy must not let a witness that lied before it go free."""
    witness, *others = holders("w", "x", "y")
    rosters = [roster_of([witness, *others])]
    node, newer, older = rolled_back()
    vouchings = Vouchings(lambda: rosters[-1])
    vouchings.saw(credential_of(newer, [witness, others[0]], time_s=NOW_S))
    rosters.append(roster_of([witness, others[0]], quorum=2))
    found = findings(vouchings.saw(credential_of(older, [witness], time_s=NOW_S + 9)), node, rosters[-1])
    assert list(found) == [f"spiffe://{DOMAIN}/node/w"]
    rosters.append(roster_of([others[1]]))
    assert vouchings.show(4) != []  # nothing looks at the roster before the next credential comes
    vouchings.saw(b"anything")
    assert vouchings.show(4) == []


def test_memory_is_bounded_and_everybody_is_shown_in_turn() -> None:
    """However many nodes there are."""
    (witness,) = holders("w")
    roster = roster_of([witness])
    vouchings = Vouchings(lambda: roster, capacity=3)
    nodes = [AttestedNode(f"n{number}") for number in range(4)]
    made = [credential_of(node.evidence(), [witness]) for node in nodes]
    for data in made:
        vouchings.saw(data)
    assert len(vouchings) == 3
    assert {one for _ in range(3) for one in vouchings.show(1)} == set(made[1:])


def test_a_lying_witness_that_invents_nodes_and_keys_makes_nobody_forget_what_it_signed() -> None:
    """Its word alone is cheap: what a quorum signed stays, is what is shown on, and convicts it all the same."""
    liar, *others = holders("w", "x", "y")
    roster = roster_of([liar, *others])
    node, newer, older = rolled_back()
    truth = credential_of(newer, [liar, others[0]], time_s=NOW_S)
    vouchings = Vouchings(lambda: roster, capacity=100)
    vouchings.saw(truth)
    double = AttestedNode()  # the same name, a key that the liar made
    double.tree = node.tree
    for number in range(8):
        shown = credential_of(double.evidence(counter=2**20 + number), [liar], time_s=NOW_S + 1)
        assert vouchings.saw(shown) == []
    for number in range(200):
        vouchings.saw(credential_of(AttestedNode(f"n{number}").evidence(), [liar], time_s=NOW_S + 1))
    assert vouchings.show(4) == [truth]
    assert len(vouchings) <= 1 + limits.MAX_WEAKLY_VOUCHED_NODES
    found = findings(vouchings.saw(credential_of(older, [liar], time_s=NOW_S + 9)), node, roster)
    assert list(found) == [f"spiffe://{DOMAIN}/node/w"]


def test_an_endorsement_of_another_key_accuses_nobody() -> None:
    """A node that has a new key is not accused with the old one's endorsement."""
    (witness,) = holders("w")
    roster = roster_of([witness])
    node, stranger = AttestedNode(), AttestedNode()
    vouchings = Vouchings(lambda: roster, lambda _node: stranger.endorsement)
    one, two = node.evidence(counter=5), node.evidence(counter=5, level=4)
    vouchings.saw(credential_of(one, [witness], time_s=NOW_S))
    found = findings(vouchings.saw(credential_of(two, [witness], time_s=NOW_S + 1)), node, roster)
    assert set(found) == {str(SpiffeId.of(DOMAIN, "node", "w"))}
    assert replace(node.id, path="node/w") == SpiffeId.of(DOMAIN, "node", "w")
