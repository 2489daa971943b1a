"""Policies in evidence: those of the past, of namespaces, under rotated roots, and signed with other kinds of keys."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from tests.support import second_verifier
from tests.support.evidence_world import BASE, EvidenceWorld, bundle
from tests.support.permits import NOW_MS
from tests.support.records import execution_id
from tests.support.second_verifier_base import verify_tuf
from tests.support.tuf_world import World, public, sign_raw, signer, twin
from trust.evidence import PolicyPart
from trust.evidence_verify import Report, Section, Verdict, verify_evidence
from trust.keys import NAME_FIELD
from trust.past_policy import find_policy, with_roots
from trust.permit import permit_sha256
from trust.record import Intent, Record
from trust.repository import Holders
from trust.superseded import superseded_path

LATER = bundle(allow=("alice", "bob"))
START_MS = NOW_MS - 1_000


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def accepted(data: bytes, root: bytes, world: EvidenceWorld) -> bool:
    try:
        second_verifier.check(data, root, world.ca.pem)
    except second_verifier.Refused:
        return False
    return True


def judged(data: bytes, world: EvidenceWorld, root: bytes | None = None) -> Report:
    """What the product says, if the second verifier agrees on whether to accept."""
    root = root or world.tuf.root
    report = verify_evidence(data, root, world.ca.pem)
    assert accepted(data, root, world) is (report.verdict() is Verdict.ESTABLISHED), report.findings
    return report


def superseded_world(tuf: World | None = None) -> tuple[EvidenceWorld, dict[str, list[Record]]]:
    """An execution under the first policy, and a second policy published since."""
    tuf = tuf or World(now_ms=START_MS)
    tuf.release(BASE)
    world = EvidenceWorld(tuf)
    sides = world.sides()
    tuf.now_ms = NOW_MS + 3_000
    tuf.release(LATER)
    return world, sides


def test_a_policy_of_the_past_verifies_from_what_the_repository_keeps() -> None:
    """Its own chain of that time: targets, snapshot, and the last timestamp that pinned it."""
    world, sides = superseded_world()
    data = world.file(sides, policies=[world.policy(version=1)])
    report = judged(data, world)
    assert report.verdict() is Verdict.ESTABLISHED
    assert [(a.role, a.version) for a in report.approved] == [("targets", 1)]


def test_a_repository_from_before_past_timestamps_were_kept_has_no_past_policy() -> None:
    """It is left out rather than pieced together from parts that do not belong together."""
    world, sides = superseded_world()
    del world.tuf.files[superseded_path(1)]
    assert find_policy(world.tuf.files.get, 1, digest(BASE), NOW_MS) is None
    report = judged(world.file(sides, policies=[]), world)
    assert report.verdict(Section.AUTHORITY) is Verdict.UNKNOWN


def test_another_bundle_of_the_same_version_is_not_taken_for_it() -> None:
    """Two histories of one repository: the digest in the record decides."""
    world, _ = superseded_world()
    assert find_policy(world.tuf.files.get, 1, digest(b"another"), NOW_MS) is None
    assert find_policy(world.tuf.files.get, 3, digest(BASE), NOW_MS) is None
    assert find_policy(lambda _path: None, 1, digest(BASE), NOW_MS) is None


def test_the_newest_policy_cannot_be_shown_in_place_of_the_one_that_was_decided_under() -> None:
    """The record names the bundle by digest: another one in the file is not it."""
    world, sides = superseded_world()
    report = judged(world.file(sides, policies=[world.policy(base=LATER, version=2)]), world)
    assert report.verdict(Section.AUTHORITY) is Verdict.CONTRADICTED


def rotated() -> tuple[EvidenceWorld, dict[str, list[Record]], bytes]:
    """An execution under the first policy; then root replaces every approver."""
    tuf = World(now_ms=START_MS)
    tuf.release(BASE)
    world = EvidenceWorld(tuf)
    sides = world.sides()
    new = [signer(f"new-{number}") for number in (1, 2, 3)]
    gone = [holder.public_key.keyid for holder in tuf.approvers]
    metadata = tuf.rotate(add=public(new), remove=gone)
    tuf.now_ms = NOW_MS + 3_000
    base = sign_raw(tuf.proposal(LATER), new[:2])
    tuf.publish({"root": metadata.to_bytes(), "targets": base}, {"base.tar.gz": LATER})
    tuf.approvers = new
    return world, sides, metadata.to_bytes()


def test_a_policy_from_before_a_root_rotation_verifies_under_the_root_of_its_time() -> None:
    """The approvers of then are no longer those of now; the chain in the file ends at the root of then."""
    world, sides, _ = rotated()
    part = world.policy(version=1)
    assert part.metadata.roots == ()
    assert judged(world.file(sides, policies=[part]), world).verdict() is Verdict.ESTABLISHED
    later = world.policy(base=LATER, version=2)
    assert len(later.metadata.roots) == 1


def test_what_a_node_holds_is_completed_with_the_roots_before_it_was_enrolled() -> None:
    """A node that was given the second root has no first one; a reader of the first needs the way to the second."""
    world, _, second_root = rotated()
    part = world.policy(base=LATER, version=2)
    held = replace(part.metadata, roots=())
    completed = with_roots(world.tuf.files.get, held)
    assert completed is not None
    assert completed.roots == (second_root,)
    assert with_roots(lambda _path: None, held) is None


def test_a_reader_of_a_later_root_is_told_to_use_the_earlier_one() -> None:
    """No root leads back: that is no contradiction, and no proof either."""
    world, sides, second_root = rotated()
    report = judged(world.file(sides, policies=[world.policy(version=1)]), world, second_root)
    assert report.verdict() is Verdict.UNKNOWN
    assert "root.json of that time" in report.findings[0].what


def test_both_policies_around_a_root_rotation_verify_in_one_file() -> None:
    """Each with its own chain from the reader's root."""
    world, sides, _ = rotated()
    said = {"policy_version": 2, "policy_digest": digest(LATER)}
    after = of_another_execution(world.sides(policy_version=2, policy_sha256=digest(LATER)), world, said)
    sides = {node: [*sides[node], *after[node]] for node in sides}
    parts = [world.policy(version=1), world.policy(base=LATER, version=2)]
    report = judged(world.file(sides, policies=parts), world)
    assert report.verdict() is Verdict.ESTABLISHED
    assert sorted(a.version for a in report.approved) == [1, 2]


def of_another_execution(
    sides: dict[str, list[Record]], world: EvidenceWorld, said: dict[str, Any]
) -> dict[str, list[Record]]:
    """The same call once more, under another id and the policy `said`."""
    other = execution_id(77)
    token = world.a.permit(execution_id=other, root_id=other, **said)
    permitted: dict[str, Any] = {
        "root_id": other,
        "permit": token.encode(),
        "permit_sha256": permit_sha256(token),
    }
    return {
        node: [
            replace(r, execution_id=other, **(permitted if isinstance(r, Intent) else {})) for r in records
        ]
        for node, records in sides.items()
    }


def with_namespace() -> tuple[EvidenceWorld, list[CryptoSigner], dict[str, list[Record]]]:
    """A base that delegates `payments`, whose own approvers published a bundle."""
    tuf = World(now_ms=NOW_MS - 120_000)
    tuf.release(BASE)
    payers = [signer("payer-1"), signer("payer-2")]
    tuf.delegate("payments", Holders(public(payers), 2))
    tuf.now_ms = START_MS
    tuf.release(b"payments 1", "payments", payers)
    world = EvidenceWorld(tuf)
    return world, payers, world.sides()


def archives(part: PolicyPart) -> dict[str, bytes]:
    return dict(part.archives)


def test_a_namespace_is_in_the_file_with_its_own_quorum() -> None:
    """Its approvers are named beside those of the base."""
    world, _, sides = with_namespace()
    report = judged(world.file(sides), world)
    assert report.verdict() is Verdict.ESTABLISHED
    assert {a.role: a.approvers for a in report.approved} == {
        "payments": ("payer-1", "payer-2"),
        "targets": ("approver-1", "approver-2"),
    }


def test_of_a_past_policy_the_namespaces_of_the_time_of_the_execution_are_taken() -> None:
    """The base stayed, the namespace changed under it: what the lease of then covered is what was in force."""
    world, payers, sides = with_namespace()
    world.tuf.now_ms = NOW_MS + 120_000
    world.tuf.release(b"payments 2", "payments", payers)
    then, now = world.policy(), world.policy(at_ms=NOW_MS + 130_000)
    assert (archives(then)["payments"], archives(now)["payments"]) == (b"payments 1", b"payments 2")
    assert judged(world.file(sides, policies=[then]), world).verdict() is Verdict.ESTABLISHED


def test_a_namespace_that_ended_is_not_in_a_later_policy_and_still_in_the_earlier() -> None:
    """Delegations end; the metadata stays in the repository."""
    world, _, _ = with_namespace()
    world.tuf.now_ms = NOW_MS + 120_000
    world.tuf.delegate("payments", None)
    assert set(archives(world.policy(version=2))) == {"targets", "payments"}
    assert set(archives(world.policy(version=3))) == {"targets"}


def test_an_execution_after_the_policy_had_expired_contradicts_whatever_the_time_is_now() -> None:
    """Expiry is judged at the time of the execution, not when somebody reads."""
    three_years_ms = 3 * 366 * 24 * 3600 * 1000
    tuf = World(now_ms=NOW_MS - three_years_ms)
    tuf.release(BASE)
    world = EvidenceWorld(tuf)
    report = judged(world.file(world.sides()), world)
    assert report.verdict(Section.TIME) is Verdict.CONTRADICTED


def test_an_execution_after_the_lease_had_ended_leaves_the_time_open() -> None:
    """It may have been within the signed grace, which the file does not say."""
    tuf = World(now_ms=NOW_MS - 120_000)
    tuf.release(BASE)
    world = EvidenceWorld(tuf)
    report = judged(world.file(world.sides()), world)
    assert report.verdict(Section.TIME) is Verdict.UNKNOWN


def ecdsa(name: str) -> CryptoSigner:
    made = CryptoSigner.generate_ecdsa()
    made.public_key.unrecognized_fields[NAME_FIELD] = name
    return made


def rsa(name: str) -> CryptoSigner:
    made = CryptoSigner.generate_rsa(size=3072)
    made.public_key.unrecognized_fields[NAME_FIELD] = name
    return made


@pytest.mark.parametrize(
    "holders",
    [
        [ecdsa("approver-1"), ecdsa("approver-2"), ecdsa("approver-3")],
        [ecdsa("approver-1"), signer("approver-2"), signer("approver-3")],
        [rsa("approver-1"), ecdsa("approver-2"), signer("approver-3")],
    ],
    ids=["P-256", "P-256 and Ed25519", "RSA and P-256"],
)
def test_quorums_of_every_kind_of_key_are_verified_by_both(holders: Sequence[CryptoSigner]) -> None:
    """Approvers may use hardware that does not speak Ed25519."""
    tuf = World(now_ms=START_MS, approvers=list(holders))
    tuf.release(BASE)
    world = EvidenceWorld(tuf)
    report = judged(world.file(world.sides()), world)
    assert report.verdict() is Verdict.ESTABLISHED
    assert report.approved[0].approvers == ("approver-1", "approver-2")


def test_one_ecdsa_key_under_two_ids_is_one_approver_to_the_second_verifier() -> None:
    """Keys are counted, not labels; the product refuses such metadata before it counts."""
    only = ecdsa("approver-1")
    both, message = [only, twin(only)], b"what is signed"
    materials = {
        str(verify_tuf(one.public_key.to_dict(), bytes.fromhex(one.sign(message).signature), message))
        for one in both
    }
    assert len({one.public_key.keyid for one in both}) == 2
    assert len(materials) == 1
