"""Whether bytes prove that a cosigner signed two things that cannot both be true: a witness, or a third party."""

from trust.attestation.cosignature import attested_text, verify_attestation
from trust.attestation.credential import log_verifier
from trust.attestation.roster import Roster, Witness, witness_key_name
from trust.attestation.statement import Evidence, open_evidence
from trust.checkpoint import Checkpoint, parse_checkpoint
from trust.compact import parse_object, write_object
from trust.misbehaviour_proof import Anchors, Found, Proof, is_node, node_key, unproven
from trust.note import KeyKind, Verifier, open_note
from trust.spiffe import SpiffeId


def cosigned_fork(proof: Proof, anchors: Anchors) -> Found:
    """Judge a cosigner. It is accused by key: the roster, and not the proof, says whose that is."""
    if len(proof.proof) != 1 or proof.endorsement:
        unproven("one key is expected")
    key = Verifier.parse(proof.proof[0].decode("utf-8", "replace"))
    known = None if anchors.roster is None else _named(anchors.roster, proof.accused, anchors.trust_domain)
    if key.kind is not KeyKind.COSIGNATURE_V1 or known is None or known.key != key:
        unproven(f"the signed roster does not know {proof.accused[:200]} by this key")
    heads: list[Checkpoint] = []
    times: list[int] = []
    for data in proof.statements:
        note = open_note(data, [key])
        heads.append(parse_checkpoint(note.text))
        times.append(note.verified[0].time_s or 0)
    one, two = heads
    if one.origin != two.origin:
        unproven("the two checkpoints are of two logs")
    if one.size == two.size and one.root != two.root:
        return Found(f"{proof.accused} cosigned two histories of {one.origin} at size {one.size}")
    if times[0] >= times[1] or two.size >= one.size:
        unproven("the two checkpoints can both have been cosigned")
    return Found(f"{proof.accused} cosigned {one.origin} at size {two.size} after size {one.size}")


def witness_rollback(proof: Proof, anchors: Anchors) -> Found:
    """Judge a witness by two trust credentials of one node that it must not have vouched for both."""
    if proof.endorsement:
        node, key = node_key(proof, anchors)
        verifier = Verifier(witness_key_name(anchors.trust_domain, node.name), key, KeyKind.COSIGNATURE_V1)
        witness = Witness(node.name, verifier, "")
    else:
        roster = anchors.roster
        known = None if roster is None else _named(roster, proof.accused, anchors.trust_domain)
        if known is None:
            unproven(f"the signed roster does not name {proof.accused[:200]}")
        witness = known
    (first, time1), (second, time2) = (_attested(data, witness) for data in proof.statements)
    one, two = first.statement, second.statement
    if one.node != two.node:
        unproven("the two credentials are of two nodes")
    if first.sha256 == second.sha256:
        unproven("it vouched for one and the same evidence")
    heads = [
        parse_checkpoint(open_note(e.statement.checkpoint, [log_verifier(e)]).text) for e in (first, second)
    ]
    if heads[0].size == heads[1].size and heads[0].root != heads[1].root:
        return Found(f"{proof.accused} vouched for two histories of the ledger of {one.node}")
    if time1 >= time2 or (two.counter > one.counter and heads[1].size >= heads[0].size):
        unproven("both can have been vouched for in this order")
    return Found(f"{proof.accused} vouched for an older state of {one.node} after a newer one")


def _named(roster: Roster, accused: str, trust_domain: str) -> Witness | None:
    """Return the witness of the roster that `accused` stands for: a node's SPIFFE ID, or a third party's name."""
    if is_node(accused, trust_domain):
        return roster.witnesses.get(SpiffeId.parse(accused).name)
    return roster.log_witnesses.get(accused)


def _attested(data: bytes, witness: Witness) -> tuple[Evidence, int]:
    """Return the evidence in a credential and when `witness` vouched for it."""
    try:
        value = parse_object(data)
        envelope, lines = write_object(value["evidence"]), value["attested"].encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        unproven("a statement is not a trust credential")
    evidence = open_evidence(envelope)
    text = attested_text(evidence.statement.node, evidence.sha256)
    times = verify_attestation(text, lines, [witness]).times_s
    if witness.name not in times:
        unproven(f"{witness.name} vouched for only one of the two")
    return evidence, times[witness.name]
