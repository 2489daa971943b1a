"""What a witness vouches for, and every lie about the past that it refuses with both statements in hand."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.attestation import (
    BASE,
    EMPTY,
    MEASUREMENT,
    NONCE,
    NOW_MS,
    NOW_S,
    AttestedNode,
    Tree,
    WitnessHolder,
    holders,
    roster_of,
    view_of,
)
from tests.support.pki import Authority
from trust import limits
from trust.attestation.cosignature import attested_text
from trust.attestation.measurement import ReferenceValues, parse_reference_values
from trust.attestation.memory import read_memory, write_memory
from trust.attestation.statement import Enforced, Evidence
from trust.attestation.witness import (
    Answer,
    Challenges,
    Contradiction,
    ContradictionError,
    Memory,
    Seen,
    Submission,
    authenticate,
    judge,
)
from trust.checkpoint import Checkpoint, sign_checkpoint
from trust.errors import EvidenceError, MeshError, Reason

ROSTER = roster_of(holders("a", "b", "c"))


@pytest.fixture
def node() -> AttestedNode:
    """A node nobody has seen yet."""
    return AttestedNode("n")


def asked(
    node: AttestedNode,
    memory: Memory = EMPTY,
    *,
    evidence: Evidence | None = None,
    submission: Submission | None = None,
    monotonic_ms: int = 0,
    **view: Any,
) -> Answer:
    """Ask the witness, over the whole way."""
    sent = submission or node.submission(evidence, since=memory.size)
    seen = view_of(node, ROSTER, **view)
    found, _ = authenticate(sent, seen, now_ms=NOW_MS)
    return judge(memory, sent, found, seen, now_ms=NOW_MS, monotonic_ms=monotonic_ms)


def refused(node: AttestedNode, memory: Memory = EMPTY, **changes: Any) -> MeshError:
    """Return why the witness refuses."""
    with pytest.raises(MeshError) as error:
        asked(node, memory, **changes)
    return error.value


def test_a_witness_vouches_for_this_evidence_and_remembers_it(node: AttestedNode) -> None:
    """What it signs is the digest of all of it; what it remembers is what the next one must continue."""
    evidence = node.evidence()
    answer = asked(node, evidence=evidence)
    assert answer.text == attested_text(node.id, evidence.sha256)
    assert answer.checkpoint.startswith(b"mesh.local/node/n\n3\n")
    assert answer.time_s == NOW_S
    memory = answer.memory
    assert (memory.revision, memory.size, memory.counter) == (1, 3, 1)
    assert memory.evidence == evidence.envelope
    assert memory.versions == {"targets": 7}


def test_a_ledger_that_grows_is_followed(node: AttestedNode) -> None:
    """Each step is proved from the last one that this witness cosigned."""
    memory = EMPTY
    for number in range(1, 9):
        memory = asked(node, memory).memory
        assert (memory.revision, memory.counter) == (number, number)
        node.grow(*(b"x%d" % i for i in range(number)))
    assert memory.size == 3 + sum(range(1, 8))


def test_an_unchanged_ledger_is_attested_again(node: AttestedNode) -> None:
    """A node without calls keeps its credential."""
    memory = asked(node).memory
    assert asked(node, memory).memory.size == memory.size


def values_of(value: dict[str, Any]) -> ReferenceValues:
    """Read reference values as a bundle holds them."""
    return parse_reference_values(json.dumps(value).encode())


# who speaks


def test_evidence_of_another_node_is_not_accepted_from_a_peer(node: AttestedNode) -> None:
    """The connection, the certificate and the statement must name the same node."""
    sent = replace(node.submission(), peer=AttestedNode("m").id)
    assert refused(node, submission=sent).reason is Reason.EVIDENCE_INVALID


def test_a_key_that_the_certificate_does_not_vouch_for_is_refused(node: AttestedNode) -> None:
    """An endorsement of another key, another CA, or another node does not help."""
    other = AttestedNode("n", ca=node.ca)
    strange = AttestedNode("n")
    elsewhere = AttestedNode("m", ca=node.ca)
    for endorsement in (other.endorsement, strange.endorsement, elsewhere.endorsement, b"x"):
        sent = replace(node.submission(), endorsement=endorsement)
        assert refused(node, submission=sent).reason in {Reason.EVIDENCE_INVALID, Reason.PERMIT_INVALID}


def test_a_nonce_counts_once_and_for_its_node_alone(node: AttestedNode) -> None:
    """A recorded statement cannot be sent again, nor one made for another witness."""
    challenges = Challenges()
    said = node.statement()
    with pytest.raises(MeshError) as error:
        challenges.answer(said, monotonic_ms=0)
    assert error.value.reason is Reason.NONCE_UNKNOWN
    challenges.open(node.id, NONCE, monotonic_ms=0)
    challenges.answer(said, monotonic_ms=10)
    with pytest.raises(MeshError):
        challenges.answer(said, monotonic_ms=11)
    challenges.open(AttestedNode("m").id, NONCE, monotonic_ms=0)
    with pytest.raises(MeshError):
        challenges.answer(said, monotonic_ms=1)


def test_a_nonce_ends(node: AttestedNode) -> None:
    """Evidence that was held back is stale."""
    challenges = Challenges()
    challenges.open(node.id, NONCE, monotonic_ms=0)
    with pytest.raises(MeshError):
        challenges.answer(node.statement(), monotonic_ms=limits.NONCE_LIFETIME_MS)


def test_open_challenges_are_bounded(node: AttestedNode) -> None:
    """Only the newest of a node count; many nodes push out the oldest."""
    challenges = Challenges()
    for number in range(5):
        challenges.open(node.id, bytes([number]) * 32, monotonic_ms=0)
    with pytest.raises(MeshError):
        challenges.answer(node.statement(nonces=(b"\x00" * 32,)), monotonic_ms=1)


@pytest.mark.parametrize("off_s", [21, -21, 86_400])
def test_a_clock_that_is_wrong_is_named(node: AttestedNode, off_s: int) -> None:
    """The node learns that its clock is the problem."""
    evidence = node.evidence(issued_s=NOW_S + off_s)
    assert refused(node, evidence=evidence).reason is Reason.CLOCK_WRONG


def test_a_node_in_quarantine_is_not_vouched_for(node: AttestedNode) -> None:
    """Whatever it says of itself."""
    assert refused(node, quarantined={"n"}).reason is Reason.NODE_QUARANTINED


# what it says of its past


@pytest.mark.parametrize("counter", [1, 2, 3])
def test_a_counter_that_does_not_go_up_is_a_contradiction(node: AttestedNode, counter: int) -> None:
    """A restored disk, or a copied one: both signed statements come with the refusal."""
    memory = asked(node, evidence=node.evidence(counter=3)).memory
    evidence = node.evidence(counter=counter)
    error = refused(node, memory, evidence=evidence)
    assert isinstance(error, ContradictionError)
    assert (error.reason, error.kind) == (Reason.COUNTER_REGRESSED, Contradiction.COUNTER)
    assert error.before_evidence == memory.evidence
    assert error.now_evidence == evidence.envelope
    assert error.before_endorsement == error.now_endorsement == node.endorsement


def test_an_earlier_run_that_speaks_again_is_a_contradiction(node: AttestedNode) -> None:
    """Two processes from one disk take turns: one of them was over."""
    memory = asked(node, evidence=node.evidence(boot=b"boot-one")).memory
    memory = asked(node, memory, evidence=node.evidence(boot=b"boot-two")).memory
    error = refused(node, memory, evidence=node.evidence(boot=b"boot-one"))
    assert isinstance(error, ContradictionError)
    assert error.reason is Reason.BOOT_RETURNED
    assert asked(node, memory, evidence=node.evidence(boot=b"boot-two")).memory.boot == b"boot-two"


def test_earlier_runs_are_bounded(node: AttestedNode) -> None:
    """A node that restarts often does not fill a witness."""
    memory = EMPTY
    for number in range(limits.MAX_EARLIER_BOOTS + 5):
        memory = asked(node, memory, evidence=node.evidence(boot=b"run%05d" % number)).memory
    assert len(memory.earlier_boots) == limits.MAX_EARLIER_BOOTS


def test_a_shorter_ledger_is_a_contradiction(node: AttestedNode) -> None:
    """Removed records, or an older disk."""
    memory = asked(node).memory
    del node.tree.leaves[2:]
    error = refused(node, memory, submission=node.submission(consistency=()))
    assert isinstance(error, ContradictionError)
    assert error.reason is Reason.CHECKPOINT_REGRESSED


def test_two_roots_at_one_size_are_a_contradiction(node: AttestedNode) -> None:
    """Two histories."""
    memory = asked(node).memory
    node.tree = Tree([b"one", b"two", b"forged"])
    error = refused(node, memory)
    assert isinstance(error, ContradictionError)
    assert error.reason is Reason.CHECKPOINT_CONFLICT


def test_a_fork_that_its_own_proof_shows_is_a_contradiction(node: AttestedNode) -> None:
    """The proof leads to the new root, and from another old one."""
    memory = asked(node).memory
    node.tree = Tree([b"one", b"two", b"forged", b"four", b"five"])
    error = refused(node, memory)
    assert isinstance(error, ContradictionError)
    assert error.reason is Reason.CHECKPOINT_CONFLICT
    assert error.consistency


def test_a_proof_that_leads_nowhere_is_refused_and_accuses_nobody(node: AttestedNode) -> None:
    """It may be of another moment; without a contradiction there is no quarantine."""
    memory = asked(node).memory
    node.grow(b"four", b"five")
    sent = node.submission(since=3)
    for proof in ((), sent.consistency[:-1], tuple(reversed(sent.consistency)), (b"\x00" * 32,) * 3):
        error = refused(node, memory, submission=replace(sent, consistency=proof))
        assert not isinstance(error, ContradictionError)
        assert error.reason is Reason.PROOF_INVALID


def test_an_oversized_proof_is_not_looked_at(node: AttestedNode) -> None:
    """Bounded, and every hash of its size."""
    for proof in ((b"\x00" * 32,) * 65, (b"\x00",)):
        sent = replace(node.submission(), consistency=proof)
        assert refused(node, submission=sent).reason is Reason.EVIDENCE_INVALID


def test_a_checkpoint_of_another_log_or_key_is_refused(node: AttestedNode) -> None:
    """Origin and signature must be the node's."""
    other = AttestedNode("m", ca=node.ca)
    root = node.tree.checkpoint("mesh.local/node/m")
    public = node.private.public_key().public_bytes_raw()
    foreign = sign_checkpoint(root, node.private.sign, public_key=public)
    extended = Checkpoint("mesh.local/node/n", root.size, root.root, ("more",))
    notes = [
        other.statement().checkpoint,
        foreign,
        sign_checkpoint(extended, node.private.sign, public_key=public),
        b"nonsense",
    ]
    for note in notes:
        error = refused(node, evidence=node.evidence(checkpoint=note))
        assert error.reason is Reason.EVIDENCE_INVALID


# what it enforces


def test_an_older_policy_than_before_is_a_contradiction(node: AttestedNode) -> None:
    """Versions never go back on a node, and its peers notice when they do."""
    memory = asked(node, evidence=node.evidence(policy=Enforced(8, b"\x08" * 32))).memory
    error = refused(node, memory)
    assert isinstance(error, ContradictionError)
    assert (error.reason, error.kind) == (Reason.POLICY_ROLLBACK, Contradiction.POLICY)


def test_a_node_that_is_behind_beyond_the_signed_lag_is_refused(node: AttestedNode) -> None:
    """Within the lag it is given time to catch up; ahead of the witness it may always be."""
    newer = {"targets": Seen(Enforced(8, b"\x08" * 32), 1_000)}
    lag = ROSTER.max_lag_ms
    assert asked(node, bundles=newer, monotonic_ms=1_000 + lag)
    error = refused(node, bundles=newer, monotonic_ms=1_001 + lag)
    assert error.reason is Reason.POLICY_BEHIND
    assert asked(node, evidence=node.evidence(policy=Enforced(9, b"\x09" * 32)), bundles=newer)


def test_a_namespace_that_is_missing_counts_as_behind(node: AttestedNode) -> None:
    """A delegated namespace hidden from a node takes its forbids away."""
    both = {"targets": Seen(BASE, 0), "payments": Seen(Enforced(2, b"\x02" * 32), 0)}
    assert refused(node, bundles=both, monotonic_ms=10**9).reason is Reason.POLICY_BEHIND


def test_other_content_under_one_version_is_a_split_view(node: AttestedNode) -> None:
    """TUF does not notice it; peers do."""
    other = {"targets": Seen(Enforced(BASE.version, b"\x08" * 32), 0)}
    assert refused(node, bundles=other).reason is Reason.POLICY_CONFLICT


def test_a_level_below_the_signed_one_is_refused(node: AttestedNode) -> None:
    """Under the same policy; another version may ask for another level."""
    assert refused(node, evidence=node.evidence(level=4)).reason is Reason.LEVEL_TOO_LOW
    assert asked(node, evidence=node.evidence(level=4, policy=Enforced(8, b"\x08" * 32)))


def test_what_runs_must_be_among_the_reference_values(node: AttestedNode) -> None:
    """Version and digest together; configurations where the approvers list them."""
    good = {"version": "1.2.3", "sha256": MEASUREMENT.distribution.hex()}
    values = values_of({"distributions": [good]})
    assert asked(node, references=values)
    for bad in ({**good, "version": "1.2.4"}, {**good, "sha256": "00" * 32}):
        wrong = values_of({"distributions": [bad]})
        assert refused(node, references=wrong).reason is Reason.MEASUREMENT_REFUSED
    ours = {"n": [MEASUREMENT.configuration.hex()]}
    assert asked(node, references=values_of({"distributions": [good], "configurations": ours}))
    for listed in ({"n": ["00" * 32]}, {"m": ours["n"]}):
        strict = values_of({"distributions": [good], "configurations": listed})
        assert refused(node, references=strict).reason is Reason.MEASUREMENT_REFUSED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"distributions":[]}',
        b'{"distributions":[{"version":"1","sha256":"AB"}]}',
        b'{"distributions":[{"version":"1","sha256":"' + b"00" * 32 + b'"}],"configurations":{"A":["x"]}}',
        b'{"distributions":[{"version":"1","sha256":"' + b"00" * 32 + b'"}],"configurations":{"a":[]}}',
        b'{"format":2,"distributions":[{"version":"1","sha256":"' + b"00" * 32 + b'"}]}',
    ],
)
def test_malformed_reference_values_are_refused(data: bytes) -> None:
    """A bundle with values that nobody could meet, or read, is no bundle."""
    with pytest.raises(EvidenceError) as error:
        parse_reference_values(data)
    assert error.value.reason is Reason.BUNDLE_MALFORMED


def test_time_never_goes_back_in_what_a_witness_signs(node: AttestedNode) -> None:
    """Its clock may; its cosignatures of one node do not."""
    memory = replace(EMPTY, cosigned_s=NOW_S + 3)
    assert asked(node, memory).time_s == NOW_S + 3


def test_a_renewed_node_key_is_accepted_by_its_certificate(node: AttestedNode) -> None:
    """The key may be replaced; counter and ledger must go on."""
    memory = asked(node).memory
    renewed = AttestedNode("n", ca=node.ca, tree=node.tree, counter=node.counter)
    assert asked(renewed, memory).memory.counter == 2


def test_an_expired_endorsement_is_refused() -> None:
    """Certificates end."""
    ca = Authority()
    node = AttestedNode("n", ca=ca)
    with pytest.raises(MeshError):
        authenticate(node.submission(), view_of(node, ROSTER), now_ms=NOW_MS + 25 * 3_600_000)


def test_what_a_witness_remembers_survives_a_restart_or_is_refused(node: AttestedNode) -> None:
    """Damaged memory is no memory: the witness then does not vouch."""
    memory = asked(node, asked(node).memory, evidence=node.evidence(boot=b"another1")).memory
    data = write_memory(memory)
    assert read_memory(data) == memory
    for bad in (b"", b"{}", data[:-1], data + b" ", data.replace(b'"size":3', b'"size":-3')):
        with pytest.raises(EvidenceError) as error:
            read_memory(bad)
        assert error.value.reason is Reason.WITNESS_UNAVAILABLE


def test_a_witness_is_itself_attested_with_the_key_that_the_roster_pins(node: AttestedNode) -> None:
    """Whoever owns the CA cannot put another key in the place of a witness's."""
    member = AttestedNode("a", ca=node.ca)
    seen = view_of(member, roster_of([WitnessHolder("a", private=member.private), *holders("b", "c")]))
    authenticate(member.submission(), seen, now_ms=NOW_MS)
    other = AttestedNode("a", ca=node.ca)
    with pytest.raises(EvidenceError, match="pins another key"):
        authenticate(other.submission(), seen, now_ms=NOW_MS)
