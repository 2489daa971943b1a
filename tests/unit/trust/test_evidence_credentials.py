"""Trust credentials in evidence: permits of nodes that no quorum vouched for are found out, by two verifiers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support import second_verifier
from tests.support.attestation import (
    PARTY,
    AttestedNode,
    Tree,
    WitnessHolder,
    credential_of,
    holders,
    settings_of,
    third_party,
)
from tests.support.evidence_world import DOMAIN, EvidenceWorld, bundle, digest
from tests.support.permits import NOW_MS, NOW_S
from trust.attestation.credential import credential_sha256, write_credential
from trust.attestation.roster import AttestationSettings
from trust.evidence import FORMAT, SECOND_FORMAT, PolicyPart
from trust.evidence_verify import Report, Section, Verdict, verify_evidence
from trust.node_key import ed25519_spki_sha256
from trust.note import cosign
from trust.record import Intent

WITNESSES = holders("w1", "w2", "w3")


def world_of(settings: AttestationSettings | None) -> EvidenceWorld:
    """Nodes a and b under a policy that names these witnesses."""
    return EvidenceWorld(base=bundle(settings))


WORLD = world_of(settings_of(WITNESSES))


def credential(
    signed: Sequence[WitnessHolder] = tuple(WITNESSES[:2]),
    *,
    time_s: int = NOW_S,
    node: str = "a",
    private: Ed25519PrivateKey | None = None,
    world: EvidenceWorld = WORLD,
) -> bytes:
    """What these witnesses vouched for: node a with its key, unless said otherwise."""
    # its ledger was empty then: what witnesses saw of it is in test_evidence_links
    attested = AttestedNode(node, private=private or world.a.private, tree=Tree())
    return credential_of(attested.evidence(issued_s=NOW_S), signed, time_s=time_s)


def judged(
    data: bytes | None,
    *,
    world: EvidenceWorld = WORLD,
    enclosed: Sequence[bytes] | None = None,
    policies: Sequence[PolicyPart] | None = None,
    sides: Sequence[str] = ("a", "b"),
    **changes: Any,
) -> Report:
    """The report on a call whose permit names the credential `data`; both verifiers agree on whether to accept."""
    named = {} if data is None else {"credential_sha256": credential_sha256(data)}
    recorded = world.sides(world.permit(**named), **changes)
    credentials = enclosed if enclosed is not None else () if data is None else (data,)
    file = world.file(
        {name: recorded[name] for name in sides},
        credentials=credentials,
        policies=policies,
        endorsements=() if "a" in sides else (world.a.endorsement,),
    )
    report = verify_evidence(file, world.tuf.root, world.ca.pem)
    try:
        second_verifier.check(file, world.tuf.root, world.ca.pem)
        accepted = True
    except second_verifier.Refused:
        accepted = False
    assert accepted is (report.verdict() is Verdict.ESTABLISHED), report.findings
    return report


def found(report: Report) -> set[tuple[Section, Verdict]]:
    """The sections that are not established."""
    verdicts = {section: report.verdict(section) for section in Section}
    return {(section, verdict) for section, verdict in verdicts.items() if verdict is not Verdict.ESTABLISHED}


def test_the_quorum_that_vouched_for_the_node_is_verified_and_shown() -> None:
    """Without this, refusing everything would pass."""
    data = credential()
    report = judged(data)
    assert report.verdict() is Verdict.ESTABLISHED
    (one,) = report.attested
    assert (one.where, one.node, one.policy) == ("credentials[0]", f"spiffe://{DOMAIN}/node/a", "policies[0]")
    assert (one.witnesses, one.needed) == (("w1", "w2"), 2)
    assert one.sha256 == credential_sha256(data).hex()


def test_a_credential_that_is_not_in_the_file_leaves_the_authority_open_and_is_named() -> None:
    """Leaving it out proves less, and never more."""
    data = credential()
    report = judged(data, enclosed=())
    assert found(report) == {(Section.AUTHORITY, Verdict.UNKNOWN)}
    assert credential_sha256(data).hex() in report.findings[0].what
    assert {f.where for f in report.findings} == {"records[0].record", "records[2].record"}


def test_a_file_in_the_earlier_format_is_no_way_around_the_credentials() -> None:
    """Whoever relabels a file to a format without credentials gets an open question at best."""
    named = {"credential_sha256": credential_sha256(credential())}
    file = WORLD.file(WORLD.sides(WORLD.permit(**named)))
    earlier = file.replace(b'"credentials":[],', b"").replace(b'"links":[],', b"")
    earlier = earlier.replace(FORMAT.encode(), SECOND_FORMAT.encode())
    report = verify_evidence(earlier, WORLD.tuf.root, WORLD.ca.pem)
    assert found(report) == {(Section.AUTHORITY, Verdict.UNKNOWN)}


def test_a_permit_without_a_credential_under_a_policy_with_witnesses_is_open() -> None:
    """A callee refuses it; a record that says otherwise proves nothing."""
    assert found(judged(None)) == {(Section.AUTHORITY, Verdict.UNKNOWN)}


@pytest.mark.parametrize(
    "signed",
    [
        WITNESSES[:1],
        [WITNESSES[0], WitnessHolder("w2")],
        [WITNESSES[0], WitnessHolder("w9")],
    ],
    ids=["too few", "another key under the name of a witness", "a stranger"],
)
def test_a_credential_without_the_quorum_contradicts_the_authority(signed: list[WitnessHolder]) -> None:
    """k distinct witnesses of the signed roster, or nobody vouched."""
    assert found(judged(credential(signed))) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}


@pytest.mark.parametrize("kind", ["node", "key"])
def test_a_witness_that_the_policy_revokes_does_not_count_offline_either(kind: str) -> None:
    """Its node or its key; another witness makes up for it, and the quorum stays what it was."""
    value = "w2" if kind == "node" else ed25519_spki_sha256(WITNESSES[1].key.public_key).hex()
    world = EvidenceWorld(base=bundle(settings_of(WITNESSES), revoked=((kind, value),)))
    report = judged(credential(WITNESSES[:2], world=world), world=world)
    assert found(report) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}
    assert any("revoked or convicted: w2" in one.what for one in report.findings)
    report = judged(credential(WITNESSES, world=world), world=world)
    assert report.verdict() is Verdict.ESTABLISHED
    assert report.attested[0].witnesses == ("w1", "w3")


def test_cosignatures_of_other_evidence_contradict_the_authority() -> None:
    """Witnesses vouch for one statement."""
    node = AttestedNode("a", private=WORLD.a.private, tree=Tree())
    first, second = node.evidence(issued_s=NOW_S), node.evidence(issued_s=NOW_S)
    lines = [one.attest(first, time_s=NOW_S) for one in WITNESSES]
    data = write_credential(second, lines, [one.log(second, time_s=NOW_S) for one in WITNESSES])
    assert found(judged(data)) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}


@pytest.mark.parametrize(
    ("time_s", "alive"),
    [(NOW_S - 60, True), (NOW_S - 66, False), (NOW_S + 5, True), (NOW_S + 7, False)],
    ids=["at its end", "after it", "a clock ahead", "far ahead"],
)
def test_a_credential_of_another_time_than_the_permit_contradicts_the_time(time_s: int, alive: bool) -> None:
    """It lives for the roster's time (60 s here) after its cosignatures; 5 s are forgiven."""
    expected = set() if alive else {(Section.TIME, Verdict.CONTRADICTED)}
    assert found(judged(credential(time_s=time_s))) == expected


def test_the_credential_of_another_node_or_key_contradicts_the_identity() -> None:
    """A borrowed credential: who minted the permit is not who was vouched for."""
    assert found(judged(credential(node="b"))) == {(Section.IDENTITY, Verdict.CONTRADICTED)}
    stolen = credential(private=Ed25519PrivateKey.generate())
    assert found(judged(stolen)) == {(Section.IDENTITY, Verdict.CONTRADICTED)}


def test_a_witness_that_the_roster_pins_to_another_key_is_not_vouched_for() -> None:
    """The roster decides over the certificate."""
    pinned = settings_of([*WITNESSES[:2], WitnessHolder("a")])
    world = world_of(pinned)
    assert found(judged(credential(world=world), world=world)) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}


def test_a_credential_that_no_permit_names_or_a_policy_asks_for_is_out_of_place() -> None:
    """A file holds what proves it and nothing else."""
    extra = credential(WITNESSES)
    report = judged(credential(), enclosed=[extra])
    assert (Section.AUTHORITY, Verdict.CONTRADICTED) in found(report)
    without = world_of(None)
    unasked = judged(credential(world=without), world=without)
    assert found(unasked) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}


def test_bytes_that_are_no_credential_contradict_though_the_permit_names_them() -> None:
    """Whatever a lying node puts its digest of into a permit."""
    good = credential()
    for data in (b"{}", b"\xff", good + b"\n", good.replace(b'"attested"', b'"Attested"'), good[:-1]):
        assert found(judged(data)) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}, data


def test_third_parties_that_the_policy_asks_for_must_have_cosigned() -> None:
    """The quorum of log witnesses counts by itself."""
    world = world_of(settings_of(WITNESSES, log_witnesses={"outside": third_party()["w1"]}, log_quorum=1))
    assert found(judged(credential(world=world), world=world)) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}
    evidence = AttestedNode("a", private=world.a.private, tree=Tree()).evidence(issued_s=NOW_S)
    text = evidence.statement.checkpoint.partition(b"\n\n")[0] + b"\n"
    line = cosign(
        text,
        "witness.example/w1",
        PARTY.private.sign,
        public_key=PARTY.key.public_key,
        time_s=NOW_S,
    )
    attested = [one.attest(evidence, time_s=NOW_S) for one in WITNESSES]
    data = write_credential(evidence, attested, [line])
    assert judged(data, world=world).verdict() is Verdict.ESTABLISHED


def test_a_callee_under_another_roster_is_asked_for_its_own_witnesses() -> None:
    """A caller's node cannot choose an old policy whose witnesses it owns: what the callee went by is open."""
    world = world_of(settings_of(WITNESSES))
    callee_base = bundle(settings_of(holders("w1", "w2", "w3")), allow=("alice", "bob"))
    token_claims = world.policy_claims
    data = credential(world=world)
    first = world.policy()
    world.tuf.release(callee_base)
    token = world.a.permit(**token_claims, credential_sha256=credential_sha256(data))
    sides = world.sides(token)
    for name, records in sides.items():
        version, base = (1, world.base) if name == "a" else (2, callee_base)
        sides[name] = [
            replace(record, policy_version=version, policy_sha256=digest(base))
            if isinstance(record, Intent)
            else record
            for record in records
        ]
    second = world.policy(NOW_MS, callee_base, 2)
    file = world.file(sides, credentials=[data], policies=[first, second])
    report = verify_evidence(file, world.tuf.root, world.ca.pem)
    assert found(report) == {(Section.AUTHORITY, Verdict.UNKNOWN)}
    assert report.findings[0].where == "records[2].record"
    with pytest.raises(second_verifier.Refused):
        second_verifier.check(file, world.tuf.root, world.ca.pem)


def test_the_callees_side_alone_proves_who_vouched_for_the_callers_node() -> None:
    """The callee keeps what it accepted."""
    assert judged(credential(), sides=("b",)).verdict() is Verdict.ESTABLISHED
