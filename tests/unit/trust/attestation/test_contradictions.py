"""What a node signed before and signs now becomes a proof that stands without its witness."""

from dataclasses import replace

import pytest

from tests.support.attestation import DOMAIN, EMPTY, NOW_MS, AttestedNode, Tree, holders, roster_of, view_of
from trust.accusation import by_checkpoints, by_evidence
from trust.attestation.statement import Enforced, open_evidence
from trust.attestation.witness import Contradiction, ContradictionError, Memory, Submission, View, judge
from trust.errors import EvidenceError, Reason
from trust.misbehaviour import LEDGER_FORK, POLICY_BACK, Anchors, verify_proof

ENTRIES = [bytes([number]) for number in range(11)]


def seen(node: AttestedNode, view: View) -> Memory:
    """Return what a witness remembers of the node's first statement."""
    submission = node.submission()
    evidence = open_evidence(submission.evidence)
    return judge(EMPTY, submission, evidence, view, now_ms=NOW_MS, monotonic_ms=0).memory


def contradicted(memory: Memory, submission: Submission, view: View) -> ContradictionError:
    """Return the refusal that the submission meets."""
    evidence = open_evidence(submission.evidence)
    with pytest.raises(ContradictionError) as caught:
        judge(memory, submission, evidence, view, now_ms=NOW_MS, monotonic_ms=0)
    return caught.value


def forked(small: int) -> tuple[AttestedNode, Memory, Submission, View]:
    """Return a node that showed `small` records, and then a longer ledger with another first record."""
    node = AttestedNode(tree=Tree(ENTRIES[:small]))
    view = view_of(node, roster_of(holders("w")))
    memory = seen(node, view)
    node.tree = Tree([b"other", *ENTRIES[1:]])
    root = node.tree.checkpoint("any", small).root
    return node, memory, replace(node.submission(since=small), root=root), view


@pytest.mark.parametrize("small", [1, 2, 3, 4, 7, 8, 10])
def test_a_fork_below_the_cosigned_size_is_proven_at_every_size(small: int) -> None:
    """At a power of two the consistency path does not hold the root: the node's own word for it does."""
    node, memory, submission, view = forked(small)
    error = contradicted(memory, submission, view)
    assert (error.reason, error.kind) == (Reason.CHECKPOINT_CONFLICT, Contradiction.CHECKPOINT)
    notes = [open_evidence(data).statement.checkpoint for data in (error.before_evidence, error.now_evidence)]
    proof = by_checkpoints(
        node.id, notes[0], notes[1], error.now_endorsement, path=error.consistency, prefix=error.root
    )
    assert proof is not None
    assert verify_proof(proof, Anchors(DOMAIN, node.ca.pem)).kind == LEDGER_FORK


@pytest.mark.parametrize("root", [b"", b"\0" * 32], ids=["none", "made up"])
def test_a_fork_at_a_power_of_two_whose_root_is_kept_back_is_refused_and_not_proven(root: bytes) -> None:
    """A node that forks on purpose can refuse to prove itself guilty; it is not vouched for either."""
    _, memory, submission, view = forked(4)
    silent = replace(submission, root=root)
    with pytest.raises(EvidenceError) as caught:
        judge(memory, silent, open_evidence(silent.evidence), view, now_ms=NOW_MS, monotonic_ms=0)
    assert caught.value.reason is Reason.PROOF_INVALID


@pytest.mark.parametrize("small", [1, 2, 3, 4, 8])
def test_an_honest_ledger_is_vouched_for_whatever_root_comes_with_the_path(small: int) -> None:
    """The named root decides nothing where the path fits what the witness remembers."""
    for root in (b"", Tree(ENTRIES).checkpoint("any", small).root):
        node = AttestedNode(tree=Tree(ENTRIES[:small]))
        view = view_of(node, roster_of(holders("w")))
        memory = seen(node, view)
        node.tree = Tree(ENTRIES)
        submission = replace(node.submission(since=small), root=root)
        evidence = open_evidence(submission.evidence)
        answer = judge(memory, submission, evidence, view, now_ms=NOW_MS, monotonic_ms=0)
        assert answer.memory.size == len(ENTRIES)


def test_a_root_that_is_no_hash_is_refused() -> None:
    """Canonical or rejected."""
    _, memory, submission, view = forked(4)
    odd = replace(submission, root=b"short")
    with pytest.raises(EvidenceError, match="5 bytes") as caught:
        judge(memory, odd, open_evidence(odd.evidence), view, now_ms=NOW_MS, monotonic_ms=0)
    assert caught.value.reason is Reason.EVIDENCE_INVALID


def test_an_older_policy_than_before_is_refused_and_proven() -> None:
    """A restored policy cache under a counter that went on."""
    node = AttestedNode()
    view = view_of(node, roster_of(holders("w")))
    memory = seen(node, view)
    old = node.evidence(policy=Enforced(6, b"\x06" * 32))
    error = contradicted(memory, node.submission(old, since=memory.size), view)
    assert (error.reason, error.kind) == (Reason.POLICY_ROLLBACK, Contradiction.POLICY)
    proof = by_evidence(open_evidence(error.before_evidence), old, error.now_endorsement)
    assert proof is not None
    assert verify_proof(proof, Anchors(DOMAIN, node.ca.pem)).kind == POLICY_BACK
