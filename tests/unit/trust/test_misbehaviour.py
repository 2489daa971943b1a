"""Proofs: each kind convicts the one who did it, and nobody who did not."""

from dataclasses import replace
from typing import Any

import pytest

from tests.support.attestation import DOMAIN, NOW_S, AttestedNode, Tree, credential_of, holders, roster_of
from tests.support.tuf_world import World, sign_raw
from trust.accusation import by_checkpoints, by_cosignatures, by_credentials, by_evidence, by_metadata
from trust.attestation.credential import log_origin
from trust.attestation.roster import WitnessSettings, witness_key_name
from trust.attestation.statement import Enforced
from trust.checkpoint import sign_checkpoint
from trust.errors import EvidenceError, Reason
from trust.merkle import CompactTree, leaf_hash
from trust.misbehaviour import (
    COUNTER_BACK,
    LEDGER_FORK,
    LEDGER_SHRUNK,
    POLICY_BACK,
    Anchors,
    Finding,
    Proof,
    proof_id,
    read_proof,
    verify_proof,
)
from trust.note import KeyKind, Verifier, cosign, with_signatures

ENTRIES = [bytes([number]) for number in range(11)]


def anchors(node: AttestedNode, **more: object) -> Anchors:
    """Return what an auditor of the node's mesh trusts."""
    return Anchors(DOMAIN, ca_pem=node.ca.pem, **more)  # type: ignore[arg-type]


def note(node: AttestedNode, tree: Tree, size: int | None = None) -> bytes:
    """Return a checkpoint that the node signed."""
    public = node.private.public_key().public_bytes_raw()
    return sign_checkpoint(tree.checkpoint(log_origin(node.id), size), node.private.sign, public_key=public)


def refused(data: bytes, by: Anchors, match: str = "not proven") -> None:
    """Assert that the proof proves nothing."""
    with pytest.raises(EvidenceError, match=match) as caught:
        verify_proof(data, by)
    assert caught.value.reason is Reason.MISBEHAVIOUR_UNPROVEN


def convicted(data: bytes | None, by: Anchors, kind: str) -> Finding:
    """Assert that the proof holds."""
    assert data is not None
    found = verify_proof(data, by)
    assert (found.kind, found.id) == (kind, proof_id(data))
    return found


def forked() -> tuple[AttestedNode, Tree, Tree]:
    """Return a node with two histories that part at record 5."""
    other = [*ENTRIES[:5], b"another", *ENTRIES[6:]]
    return AttestedNode(), Tree(ENTRIES), Tree(other)


def test_two_roots_of_one_size_convict_the_node() -> None:
    """The plainest lie: two histories."""
    node, one, two = forked()
    data = by_checkpoints(node.id, note(node, one), note(node, two), node.endorsement)
    found = convicted(data, anchors(node), LEDGER_FORK)
    assert found.node == str(node.id)
    assert "two trees of size 11" in found.summary


@pytest.mark.parametrize("small", [6, 7, 8, 9, 10])
def test_a_larger_tree_that_does_not_continue_the_smaller_convicts_the_node(small: int) -> None:
    """Histories of different length, as they are met in practice; powers of two need the root named."""
    node, one, two = forked()
    prefix = two.checkpoint("x", small).root if small == 8 else b""
    data = by_checkpoints(
        node.id,
        note(node, one, small),
        note(node, two),
        node.endorsement,
        path=two.proof(small),
        prefix=prefix,
    )
    convicted(data, anchors(node), LEDGER_FORK)


@pytest.mark.parametrize("small", [1, 3, 4, 7, 8])
def test_a_tree_that_continues_another_convicts_nobody(small: int) -> None:
    """The same path proves innocence."""
    node = AttestedNode()
    tree = Tree(ENTRIES)
    head, tip, path = note(node, tree, small), note(node, tree), tree.proof(small)
    root = tree.checkpoint("x", small).root
    assert by_checkpoints(node.id, head, tip, node.endorsement, path=path, prefix=root) is None
    refused(
        Proof(LEDGER_FORK, str(node.id), node.endorsement, (head, tip), (root, *path)).encode(), anchors(node)
    )


def test_a_made_up_path_convicts_nobody() -> None:
    """Whoever forges a path must hit the signed root."""
    node = AttestedNode()
    tree, foreign = Tree(ENTRIES), Tree([b"x" * n for n in range(11)])
    head, tip = note(node, tree, 7), note(node, tree)
    path = foreign.proof(7)
    assert by_checkpoints(node.id, head, tip, node.endorsement, path=path) is None
    for prefix in (foreign.checkpoint("x", 7).root, b"\0" * 32):
        proof = Proof(LEDGER_FORK, str(node.id), node.endorsement, (head, tip), (prefix, *path))
        refused(proof.encode(), anchors(node))


def test_one_counter_under_two_statements_convicts_the_node() -> None:
    """Two processes with one key, or a disk that was copied."""
    node = AttestedNode()
    first = node.evidence(counter=5)
    second = node.evidence(counter=5, boot=b"another!")
    found = convicted(by_evidence(first, second, node.endorsement), anchors(node), COUNTER_BACK)
    assert "two different statements with the counter 5" in found.summary


def test_a_smaller_counter_at_a_later_time_convicts_the_node() -> None:
    """A restored disk; times of a node never go back, so the order is the node's own word."""
    node = AttestedNode()
    first = node.evidence(counter=9, issued_s=NOW_S)
    second = node.evidence(counter=5, issued_s=NOW_S + 1)
    for pair in ((first, second), (second, first)):
        convicted(by_evidence(*pair, node.endorsement), anchors(node), COUNTER_BACK)


def test_a_shorter_ledger_under_a_greater_counter_convicts_the_node() -> None:
    """Records were removed."""
    node = AttestedNode()
    first = node.evidence()
    node.tree = Tree([b"one"])
    second = node.evidence()
    found = convicted(by_evidence(first, second, node.endorsement), anchors(node), LEDGER_SHRUNK)
    assert "1 records after one of 3" in found.summary


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({"policy": Enforced(8, b"\x08" * 32)}, {"policy": Enforced(7, b"\x07" * 32)}, "targets version 7"),
        (
            {"namespaces": (("pay", Enforced(3, b"\x03" * 32)),)},
            {"namespaces": (("pay", Enforced(2, b"\x02" * 32)),), "policy": Enforced(9, b"\x09" * 32)},
            "pay version 2",
        ),
    ],
    ids=["base", "namespace"],
)
def test_an_older_policy_under_a_greater_counter_convicts_the_node(
    before: dict[str, Any], after: dict[str, Any], named: str
) -> None:
    """Versions never go back, on any node, across restarts: two statements of it say otherwise."""
    node = AttestedNode()
    first, second = node.evidence(**before), node.evidence(**after)
    data = by_evidence(second, first, node.endorsement)
    found = convicted(data, anchors(node), POLICY_BACK)
    assert (found.node, named in found.summary) == (str(node.id), True)
    assert data is not None
    back = replace(read_proof(data), statements=read_proof(data).statements[::-1])
    refused(back.encode(), anchors(node), "older")


def test_a_namespace_that_is_gone_or_new_convicts_nobody() -> None:
    """The approvers may withdraw one; only a version can go back."""
    node = AttestedNode()
    first = node.evidence(namespaces=(("pay", Enforced(3, b"\x03" * 32)),))
    second, third = node.evidence(), node.evidence(namespaces=(("stock", Enforced(1, b"\x01" * 32)),))
    for pair in ((first, second), (second, third), (first, third)):
        assert by_evidence(*pair, node.endorsement) is None


def test_honest_statements_convict_nobody_in_any_order() -> None:
    """A node that only grows is safe, also when somebody swaps its statements."""
    node = AttestedNode()
    first = node.evidence()
    node.grow(b"four")
    second = node.evidence(issued_s=NOW_S + 5)
    assert by_evidence(first, second, node.endorsement) is None
    assert by_evidence(first, first, node.endorsement) is None
    for kind in (COUNTER_BACK, LEDGER_SHRUNK):
        for pair in ((first.envelope, second.envelope), (second.envelope, first.envelope)):
            refused(Proof(kind, str(node.id), node.endorsement, pair).encode(), anchors(node))


def test_another_node_s_statements_do_not_convict_the_one_that_is_named() -> None:
    """The endorsement says whose key it is."""
    node, other = AttestedNode("a"), AttestedNode("b")
    other.ca = node.ca
    other.__post_init__()
    first, second = other.evidence(counter=5), other.evidence(counter=5, level=4)
    proof = read_proof(by_evidence(first, second, other.endorsement) or b"")
    refused(replace(proof, accused=str(node.id)).encode(), anchors(node), "not of spiffe://mesh.local/node/a")
    refused(
        replace(proof, accused=str(node.id), endorsement=node.endorsement).encode(),
        anchors(node),
        "endorsed key",
    )


def test_a_key_under_a_foreign_ca_convicts_nobody() -> None:
    """Anybody can make a CA."""
    node, stranger = AttestedNode(), AttestedNode()
    first, second = stranger.evidence(counter=5), stranger.evidence(counter=5, level=4)
    refused(by_evidence(first, second, stranger.endorsement) or b"", anchors(node))
    refused(by_evidence(first, second, stranger.endorsement) or b"", Anchors(DOMAIN), "CA certificates")


def test_whoever_owns_the_ca_cannot_accuse_a_node_that_the_roster_pins() -> None:
    """Otherwise a compromised control plane could lock the witnesses out, one by one."""
    honest = AttestedNode()
    forged = AttestedNode(ca=honest.ca)  # another key, endorsed as the same node
    first, second = forged.evidence(counter=5), forged.evidence(counter=5, level=4)
    data = by_evidence(first, second, forged.endorsement)
    assert data is not None
    convicted(data, anchors(honest), COUNTER_BACK)
    public = honest.private.public_key().public_bytes_raw()
    pinned = Verifier(witness_key_name(DOMAIN, "a"), public, KeyKind.COSIGNATURE_V1).encode()
    roster = roster_of(holders("b", "c"), witnesses={"a": WitnessSettings(key=pinned)})
    refused(data, anchors(honest, roster=roster), "pins another key")


def test_a_witness_that_vouches_for_an_older_state_is_convicted() -> None:
    """A witness must remember what it saw."""
    witness, *others = holders("w", "x", "y")
    roster = roster_of([witness, *others])
    node = AttestedNode()
    older = node.evidence()
    node.grow(b"four")
    newer = node.evidence()
    first = credential_of(newer, [witness], time_s=NOW_S)
    second = credential_of(older, [witness], time_s=NOW_S + 9)
    accused = replace(node.id, path="node/w")
    found = verify_proof(by_credentials(accused, first, second), anchors(node, roster=roster))
    assert (found.node, found.kind) == (str(accused), "witness-rollback")
    refused(by_credentials(accused, second, first), anchors(node, roster=roster), "in this order")
    late = credential_of(older, others, time_s=NOW_S + 9)
    refused(by_credentials(accused, first, late), anchors(node, roster=roster), "only one of the two")
    refused(by_credentials(accused, first, second), anchors(node), "does not name")


def test_a_witness_that_vouches_for_two_histories_is_convicted_whatever_the_times() -> None:
    """Invariant 6: two histories need a witness that signs both."""
    (witness,) = holders("w")
    node = AttestedNode()
    one = node.evidence()
    node.tree = Tree([b"one", b"two", b"other"])
    two = node.evidence()
    accused = replace(node.id, path="node/w")
    data = by_credentials(accused, credential_of(one, [witness]), credential_of(two, [witness]))
    found = verify_proof(data, anchors(node, roster=roster_of([witness])))
    assert "two histories" in found.summary


def test_a_cosigner_of_two_roots_or_of_a_rolled_back_head_is_convicted() -> None:
    """C2SP tlog-cosignature, by anybody who has the two notes."""
    (witness,) = holders("w")
    node, one, two = forked()
    accused = str(replace(node.id, path="node/w"))
    trusted = anchors(node, roster=roster_of([witness]))

    def cosigned(tree: Tree, size: int, time_s: int) -> bytes:
        text = tree.checkpoint(log_origin(node.id), size).body()
        line = cosign(
            text, witness.key.name, witness.private.sign, public_key=witness.key.public_key, time_s=time_s
        )
        return with_signatures(note(node, tree, size), [line])

    for pair in (
        (cosigned(one, 9, 5), cosigned(two, 9, 5)),
        (cosigned(one, 9, 5), cosigned(one, 7, 6)),
    ):
        found = verify_proof(by_cosignatures(accused, witness.key, *pair), trusted)
        assert found.node == accused
    honest = cosigned(one, 7, 5), cosigned(one, 9, 6)
    refused(by_cosignatures(accused, witness.key, *honest), trusted, "can both")
    (stranger,) = holders("w")
    refused(by_cosignatures(accused, stranger.key, *pair), trusted, "does not know")


def test_two_contents_of_one_version_convict_the_approvers_who_signed_both() -> None:
    """A split view: TUF alone does not notice it."""
    world = World()
    one, two = world.proposal(b"one"), world.proposal(b"two")
    first, second = sign_raw(one, world.approvers[:2]), sign_raw(two, world.approvers[1:])
    found = verify_proof(by_metadata("targets", first, second), Anchors(DOMAIN, root=world.root))
    assert (found.node, found.keys) == ("", (world.approvers[1].public_key.keyid,))
    assert "two contents of targets version 1" in found.summary
    assert found.summary.endswith(f"1 keys signed both: {world.approvers[1].public_key.keyid}")


def test_a_second_content_below_the_quorum_or_of_another_version_convicts_nobody() -> None:
    """One approver alone can sign what they like: nobody accepts it."""
    world = World()
    first = sign_raw(world.proposal(b"one"), world.approvers[:2])
    alone = sign_raw(world.proposal(b"two"), world.approvers[:1])
    refused(by_metadata("targets", first, alone), Anchors(DOMAIN, root=world.root), "lacks its quorum")
    world.release(b"one")
    later = sign_raw(world.proposal(b"two"), world.approvers[:2])
    refused(by_metadata("targets", first, later), Anchors(DOMAIN, root=world.root), "two contents")
    again = sign_raw(world.proposal(b"two"), world.approvers[1:])
    refused(by_metadata("targets", later, again), Anchors(DOMAIN, root=world.root), "two contents")
    refused(by_metadata("targets", first, alone), Anchors(DOMAIN), "root metadata")
    refused(by_metadata("root", first, alone), Anchors(DOMAIN, root=world.root), "not a role")


def test_every_changed_byte_of_a_proof_makes_it_worthless() -> None:
    """It is signed through and through, and has one encoding."""
    node, one, two = forked()
    data = by_checkpoints(node.id, note(node, one), note(node, two), node.endorsement)
    assert data is not None
    trusted = anchors(node)
    for place in range(0, len(data), 7):
        refused(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], trusted)
    refused(data[:-1], trusted)
    refused(data + b" ", trusted)
    refused(b"", trusted)


def test_unknown_kind_and_equal_statements_prove_nothing() -> None:
    """Fail closed, and say so."""
    node = AttestedNode()
    head = note(node, node.tree)
    refused(
        Proof("rudeness", str(node.id), node.endorsement, (head, head)).encode(), anchors(node), "rudeness"
    )
    refused(Proof(LEDGER_FORK, str(node.id), node.endorsement, (head, head)).encode(), anchors(node), "same")


def test_the_support_tree_is_the_product_s() -> None:
    """Two trees that agree on their first records have the same root there."""
    tree = CompactTree()
    for entry in ENTRIES[:5]:
        tree.append(leaf_hash(entry))
    assert tree.root() == forked()[1].checkpoint("x", 5).root == forked()[2].checkpoint("x", 5).root
