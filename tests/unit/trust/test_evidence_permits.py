"""Permits in evidence: nodes that record false, foreign, late or missing ones are found out, by two verifiers."""

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from tests.support import second_verifier
from tests.support.evidence_world import DOMAIN, EvidenceWorld
from tests.support.permits import NOW_MS, NOW_S, NodeCa, Signing, b64, forge, payload_of
from tests.support.permits import claims as good_claims
from tests.support.records import digest, execution_id, outcome
from trust.evidence import FIRST_FORMAT, FORMAT, SECOND_FORMAT, THIRD_FORMAT
from trust.evidence_verify import Report, Section, Verdict, verify_evidence
from trust.permit import permit_sha256
from trust.record import Intent, Link, Record

WORLD = EvidenceWorld()


def judged(data: bytes, world: EvidenceWorld = WORLD) -> Report:
    """What the product says, if the second verifier agrees on whether to accept."""
    report = verify_evidence(data, world.tuf.root, world.ca.pem)
    try:
        second_verifier.check(data, world.tuf.root, world.ca.pem)
        accepted = True
    except second_verifier.Refused:
        accepted = False
    assert accepted is (report.verdict() is Verdict.ESTABLISHED), report.findings
    return report


def found(report: Report) -> set[tuple[Section, Verdict]]:
    """The sections that are not established."""
    return {
        (section, report.verdict(section))
        for section in Section
        if report.verdict(section) is not Verdict.ESTABLISHED
    }


def test_a_genuine_permit_is_verified_on_both_sides_and_shown() -> None:
    """Without this, refusing everything would pass."""
    report = judged(WORLD.file(WORLD.sides()))
    assert report.verdict() is Verdict.ESTABLISHED
    assert [(p.where, p.issuer, p.verified) for p in report.permits] == [
        ("records[0].record", f"spiffe://{DOMAIN}/node/a", True),
        ("records[2].record", f"spiffe://{DOMAIN}/node/a", True),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": f"spiffe://{DOMAIN}/workload/mallory"},
        {"audience": f"spiffe://{DOMAIN}/workload/other"},
        {"method": "shop.Payments/Refund"},
        {"request_sha256": digest("another request")},
        {"execution_id": execution_id(9), "root_id": execution_id(9)},
        {"root_id": execution_id(9), "parent_sha256": digest("parent")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_permit_that_says_something_else_than_the_record_contradicts_it(changes: dict[str, Any]) -> None:
    """A node that shows a genuine permit for another call than it recorded."""
    report = judged(WORLD.file(WORLD.sides(WORLD.permit(**changes))))
    assert (Section.INTEGRITY, Verdict.CONTRADICTED) in found(report)
    assert {f.where for f in report.findings} == {"records[0].record", "records[2].record"}


@pytest.mark.parametrize("changes", [{"policy_digest": digest("other")}, {"policy_version": 9}])
def test_a_permit_under_another_policy_than_the_minting_node_recorded_is_named(
    changes: dict[str, Any],
) -> None:
    """The permit says what the caller's node decided under; its record must say the same."""
    report = judged(WORLD.file(WORLD.sides(WORLD.permit(**changes))))
    assert found(report) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}


def test_a_permit_signed_by_another_key_than_it_names_is_a_matter_of_identity() -> None:
    """The header names node a's key, node b signed."""
    token = WORLD.permit()
    head, body, _ = token.split(".")
    false = f"{head}.{body}.{b64(WORLD.b.private.sign(f'{head}.{body}'.encode()))}"
    assert found(judged(WORLD.file(WORLD.sides(false)))) == {(Section.IDENTITY, Verdict.CONTRADICTED)}


def test_a_permit_of_another_node_than_the_one_that_recorded_the_callers_side_is_named() -> None:
    """Genuine, of node b, recorded by node a as its own."""
    token = WORLD.b.permit(**WORLD.policy_claims)
    assert found(judged(WORLD.file(WORLD.sides(token)))) == {(Section.IDENTITY, Verdict.CONTRADICTED)}


def test_a_permit_that_claims_to_be_of_another_node_than_its_key_is_named() -> None:
    """Node b's key, node a's name."""
    token = WORLD.b.permit(issuer=f"spiffe://{DOMAIN}/node/a", **WORLD.policy_claims)
    assert found(judged(WORLD.file(WORLD.sides(token)))) == {(Section.IDENTITY, Verdict.CONTRADICTED)}


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"alg": "HS256"}, {"typ": "JWT"}, {"crit": ["x"]}], ids=str
)
def test_a_permit_with_another_algorithm_or_type_is_no_permit(header: dict[str, Any]) -> None:
    """Signed by the right key, and still refused."""
    signing = Signing(WORLD.a.spiffe_id, private=WORLD.a.private)
    right = {"alg": "EdDSA", "typ": "egm-permit+jwt", "kid": signing.kid}
    token = forge(signing, payload_of(WORLD.permit()), header=right | header)
    assert found(judged(WORLD.file(WORLD.sides(token)))) == {(Section.INTEGRITY, Verdict.CONTRADICTED)}


def test_what_is_no_text_or_no_token_in_place_of_a_permit_is_refused() -> None:
    """A node records what it likes; the file is refused, not the reader."""
    for junk in ("é", "a.b.c", "x" * 4000):
        sides = WORLD.sides()
        false: list[Record] = [
            replace(r, permit=junk.encode(), permit_sha256=sha256(junk.encode()).digest())
            if isinstance(r, Intent)
            else r
            for r in sides["a"]
        ]
        report = judged(WORLD.file({"a": false, "b": sides["b"]}))
        assert (Section.INTEGRITY, Verdict.CONTRADICTED) in found(report)


@pytest.mark.parametrize(("issued_s", "when"), [(NOW_S - 60, "long before"), (NOW_S + 60, "long after")])
def test_a_permit_recorded_outside_of_its_time_contradicts_the_time(issued_s: int, when: str) -> None:
    """It was used when it was not valid, or dated otherwise afterwards."""
    token = WORLD.permit(issued_s=issued_s, expires_s=issued_s + 30)
    assert found(judged(WORLD.file(WORLD.sides(token)))) == {(Section.TIME, Verdict.CONTRADICTED)}, when


def test_a_permit_minted_after_what_vouches_for_its_key_had_ended_contradicts_the_time() -> None:
    """A key that nobody vouched for any more, or a permit that was dated back."""
    world = EvidenceWorld()
    old = world.a.endorse(NOW_MS - 1_800_000, ca=_short_lived(world.ca))
    token = world.a.permit(endorsement=old, **world.policy_claims)
    report = judged(world.file(world.sides(token), endorsements=[old]), world)
    assert found(report) == {(Section.TIME, Verdict.CONTRADICTED)}


def _short_lived(ca: NodeCa) -> Any:
    """The same CA; its certificates ended half an hour before."""

    class Short:
        def svid(self, spiffe_id: Any) -> Any:
            return ca.svid(spiffe_id, before_ms=NOW_MS - 3_600_000, after_ms=NOW_MS - 600_000)

    return Short()


def test_an_earlier_endorsement_of_the_same_key_vouches_for_earlier_permits() -> None:
    """Endorsements are renewed; each permit names the one of its time."""
    earlier = WORLD.a.endorse(NOW_MS - 600_000)
    token = WORLD.a.permit(endorsement=earlier, **WORLD.policy_claims)
    data = WORLD.file(WORLD.sides(token), endorsements=[earlier])
    assert judged(data).verdict() is Verdict.ESTABLISHED
    without = judged(WORLD.file(WORLD.sides(token)))
    assert found(without) == {(Section.IDENTITY, Verdict.UNKNOWN)}
    assert not any(permit.verified for permit in without.permits)
    unneeded = judged(WORLD.file(WORLD.sides(), endorsements=[earlier]))
    assert [f.where for f in unneeded.findings] == ["endorsements[0]"]


def test_an_endorsement_under_a_foreign_ca_vouches_for_nothing() -> None:
    """Whoever makes a CA of their own can endorse any key."""
    foreign = WORLD.a.endorse(NOW_MS - 600_000, ca=NodeCa())
    token = WORLD.a.permit(endorsement=foreign, **WORLD.policy_claims)
    report = judged(WORLD.file(WORLD.sides(token), endorsements=[foreign]))
    assert found(report) == {(Section.IDENTITY, Verdict.CONTRADICTED)}


def test_the_callees_side_alone_needs_the_endorsement_of_the_callers_node() -> None:
    """An auditor of the callee has its ledger alone; who signed stays open without the other's endorsement."""
    sides = {"b": WORLD.sides()["b"]}
    assert found(judged(WORLD.file(sides))) == {(Section.IDENTITY, Verdict.UNKNOWN)}
    data = WORLD.file(sides, endorsements=[WORLD.a.endorsement])
    assert judged(data).verdict() is Verdict.ESTABLISHED


def test_the_policy_of_the_callers_node_is_open_when_only_the_callees_side_is_there() -> None:
    """The callee decided under its own policy; what the caller's node decided under must be in the file, too."""
    token = WORLD.permit(policy_digest=digest("other"), policy_version=4)
    data = WORLD.file({"b": WORLD.sides(token)["b"]}, endorsements=[WORLD.a.endorsement])
    assert found(judged(data)) == {(Section.AUTHORITY, Verdict.UNKNOWN)}
    token = WORLD.permit(policy_version=4)
    data = WORLD.file({"b": WORLD.sides(token)["b"]}, endorsements=[WORLD.a.endorsement])
    assert found(judged(data)) == {(Section.AUTHORITY, Verdict.CONTRADICTED)}


def test_a_record_from_before_permits_were_kept_leaves_its_signer_open() -> None:
    """Ledgers of yesterday still verify; what they do not hold is said."""
    sides = {node: [_older(r) for r in records] for node, records in WORLD.sides().items()}
    assert found(judged(WORLD.file(sides))) == {(Section.IDENTITY, Verdict.UNKNOWN)}


def _older(record: Record) -> Record:
    return replace(record, permit=b"") if isinstance(record, Intent) else record


def test_an_execution_at_level_5_without_any_permit_leaves_its_authority_open() -> None:
    """Level 5 asks for one; a record that names none is not proof of a governed call."""
    bare: dict[str, Any] = {"permit": b"", "permit_sha256": b""}
    assert found(judged(WORLD.file(WORLD.sides(**bare)))) == {(Section.AUTHORITY, Verdict.UNKNOWN)}
    data = WORLD.file(WORLD.sides(level=4, **bare))
    assert judged(data).verdict() is Verdict.ESTABLISHED


@pytest.mark.parametrize(
    "change",
    [
        {"subject": f"spiffe://{DOMAIN}/workload/alice"},  # the parent was for payments
        {"root_id": execution_id(7)},
    ],
    ids=["workload", "chain"],
)
def test_a_permit_that_continues_a_chain_it_is_not_of_contradicts(change: dict[str, Any]) -> None:
    """The parent permit is in the file: it must be for the workload that calls, and of the same root."""
    parent = WORLD.permit()
    right: dict[str, Any] = {
        "execution_id": execution_id(5),
        "root_id": good_claims().execution_id,
        "parent_sha256": permit_sha256(parent),
        "subject": f"spiffe://{DOMAIN}/workload/payments",
        "audience": f"spiffe://{DOMAIN}/workload/stock",
    }

    def with_child(claims: dict[str, Any]) -> Report:
        token = WORLD.b.permit(**WORLD.policy_claims, **claims)
        sides = WORLD.sides(parent)
        upper = sides["b"][0]
        assert isinstance(upper, Intent)
        child = replace(
            upper,
            execution_id=claims["execution_id"],
            root_id=claims["root_id"],
            parent_id=good_claims().execution_id,
            parent_permit_sha256=permit_sha256(parent),
            link=Link.VERIFIED,
            side=sides["a"][0].side,
            caller=claims["subject"],
            callee=claims["audience"],
            permit=token.encode(),
            permit_sha256=permit_sha256(token),
        )
        return judged(WORLD.file({"a": sides["a"], "b": [*sides["b"], child, outcome(child)]}))

    assert with_child(right).verdict() is Verdict.ESTABLISHED
    assert (Section.INTEGRITY, Verdict.CONTRADICTED) in found(with_child(right | change))


def test_files_of_the_earlier_formats_are_still_read() -> None:
    """Evidence lives for years: files from before `endorsements`, `credentials` and `links` verify as they did."""
    data = WORLD.file(WORLD.sides())
    third = data.replace(b'"links":[],', b"").replace(FORMAT.encode(), THIRD_FORMAT.encode())
    assert verify_evidence(third, WORLD.tuf.root, WORLD.ca.pem).verdict() is Verdict.ESTABLISHED
    second = third.replace(b'"credentials":[],', b"").replace(THIRD_FORMAT.encode(), SECOND_FORMAT.encode())
    assert verify_evidence(second, WORLD.tuf.root, WORLD.ca.pem).verdict() is Verdict.ESTABLISHED
    first = second.replace(b'"endorsements":[],', b"").replace(SECOND_FORMAT.encode(), FIRST_FORMAT.encode())
    assert verify_evidence(first, WORLD.tuf.root, WORLD.ca.pem).verdict() is Verdict.ESTABLISHED
