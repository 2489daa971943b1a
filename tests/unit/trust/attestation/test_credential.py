"""Trust credentials: a quorum of distinct, young cosignatures over this evidence, and nothing less."""

import base64
import json
from dataclasses import replace

import pytest

from tests.support.attestation import (
    NOW_MS,
    NOW_S,
    PARTY,
    PARTY_KEY,
    AttestedNode,
    WitnessHolder,
    credential_of,
    holders,
    roster_of,
    third_party,
)
from trust.attestation.cosignature import (
    attestation_key_id,
    attested_message,
    attested_text,
    cosign_attestation,
    verify_attestation,
)
from trust.attestation.credential import (
    check_live,
    credential_sha256,
    live_until_ms,
    open_credential,
    write_credential,
)
from trust.errors import EvidenceError, MeshError, Reason
from trust.note import cosign

NODE = AttestedNode("n")
A, B, C = WITNESSES = holders("a", "b", "c")
ROSTER = roster_of(WITNESSES)
TTL_MS = ROSTER.ttl_ms


def reason_of(data: bytes, *, now_ms: int = NOW_MS) -> Reason:
    with pytest.raises(MeshError) as error:
        check_live(open_credential(data, ROSTER), ROSTER, now_ms=now_ms)
    return error.value.reason


def test_a_quorum_of_witnesses_makes_a_live_credential() -> None:
    """Two of three; it lives for the signed time from the second-youngest cosignature."""
    data = credential_of(NODE.evidence(), [A, C])
    credential = open_credential(data, ROSTER)
    assert credential.node == NODE.id
    assert credential.sha256 == credential_sha256(data)
    assert credential.attested_s == {"a": NOW_S, "c": NOW_S}
    assert check_live(credential, ROSTER, now_ms=NOW_MS) == NOW_S * 1000 + TTL_MS


def test_the_bytes_that_a_witness_signs_are_as_documented() -> None:
    """docs/protocol.md: text, message, key id."""
    evidence = NODE.evidence()
    text = attested_text(NODE.id, evidence.sha256)
    digest = base64.b64encode(evidence.sha256).decode()
    assert text.decode() == f"egm-attestation/v1\nspiffe://mesh.local/node/n\n{digest}\n"
    assert attested_message(text, 7) == b"egm-attestation-cosignature/v1\ntime 7\n" + text
    line = A.attest(evidence, time_s=7)
    value = base64.b64decode(line.decode().split(" ")[2])
    assert value[:4] == attestation_key_id(A.key) != A.key.key_id
    assert int.from_bytes(value[4:12], "big") == 7
    A.private.public_key().verify(value[12:], attested_message(text, 7))


def test_one_witness_is_no_quorum_however_often_it_signs() -> None:
    """Two lines of one key, at two times, are refused; one line alone is too few."""
    evidence = NODE.evidence()
    assert reason_of(credential_of(evidence, [A])) is Reason.ATTESTATION_INVALID
    twice = write_credential(evidence, [A.attest(evidence), A.attest(evidence, time_s=NOW_S - 1)], [])
    assert reason_of(twice) is Reason.ATTESTATION_INVALID


def test_a_stranger_does_not_count() -> None:
    """A key that the signed roster does not name vouches for nothing, whatever name it takes."""
    evidence = NODE.evidence()
    imposter = WitnessHolder("b")
    assert reason_of(credential_of(evidence, [A, imposter])) is Reason.ATTESTATION_INVALID
    assert reason_of(credential_of(evidence, [A, WitnessHolder("x")])) is Reason.ATTESTATION_INVALID


def test_cosignatures_of_other_evidence_do_not_count() -> None:
    """The digest binds level, bundle and measurement: a cosigned harmless statement lends nothing to another."""
    harmless, other = NODE.evidence(), NODE.evidence(level=0)
    data = write_credential(other, [A.attest(harmless), B.attest(harmless)], [])
    assert reason_of(data) is Reason.ATTESTATION_INVALID


def test_a_checkpoint_cosignature_is_no_attestation() -> None:
    """The same key signs both; one cannot be passed off as the other."""
    evidence = NODE.evidence()
    data = write_credential(evidence, [A.log(evidence), B.log(evidence)], [])
    assert reason_of(data) is Reason.ATTESTATION_INVALID


@pytest.mark.parametrize(
    ("times", "alive"),
    [
        ((NOW_S, NOW_S), True),
        ((NOW_S - 59, NOW_S), True),
        ((NOW_S - 60, NOW_S), False),
        ((NOW_S - 3600, NOW_S), False),
        ((NOW_S + 5, NOW_S), True),
        ((NOW_S + 7, NOW_S), False),
    ],
)
def test_each_cosignature_counts_for_its_own_time(times: tuple[int, int], alive: bool) -> None:
    """A quorum needs its slowest member in time; one from the future counts when that time has come."""
    evidence = NODE.evidence()
    data = write_credential(
        evidence, [A.attest(evidence, time_s=times[0]), B.attest(evidence, time_s=times[1])], []
    )
    credential = open_credential(data, ROSTER)
    assert (live_until_ms(credential, ROSTER, now_ms=NOW_S * 1000) > NOW_S * 1000) is alive
    if not alive:
        assert reason_of(data, now_ms=NOW_S * 1000) is Reason.ATTESTATION_EXPIRED


def test_the_third_cosignature_lengthens_nothing_below_the_quorum() -> None:
    """The quorum's slowest counts: two old and one young are as old as the second."""
    evidence = NODE.evidence()
    lines = [one.attest(evidence, time_s=NOW_S - age) for one, age in ((A, 50), (B, 30), (C, 0))]
    credential = open_credential(write_credential(evidence, lines, []), ROSTER)
    assert live_until_ms(credential, ROSTER, now_ms=NOW_MS) == (NOW_S - 30) * 1000 + TTL_MS


def test_a_new_roster_asks_for_new_verification() -> None:
    """What was verified under one roster is not believed under another."""
    credential = open_credential(credential_of(NODE.evidence(), [A, B]), ROSTER)
    with pytest.raises(EvidenceError):
        check_live(credential, roster_of(holders("a", "b", "c")), now_ms=NOW_MS)


def test_a_third_party_is_required_where_the_policy_says_so() -> None:
    """log_quorum: without its cosignature of the checkpoint two witnesses are not enough."""
    roster = roster_of(WITNESSES, log_witnesses=third_party(), log_quorum=1)
    evidence = NODE.evidence()
    attested = [A.attest(evidence), B.attest(evidence)]
    body = evidence.statement.checkpoint.partition(b"\n\n")[0] + b"\n"
    line = cosign(body, PARTY_KEY.name, PARTY.private.sign, public_key=PARTY_KEY.public_key, time_s=NOW_S)
    without = open_credential(write_credential(evidence, attested, [A.log(evidence)]), roster)
    with pytest.raises(EvidenceError):
        check_live(without, roster, now_ms=NOW_MS)
    full = open_credential(write_credential(evidence, attested, [line, A.log(evidence)]), roster)
    assert full.logged_s == {"w1": NOW_S}
    assert check_live(full, roster, now_ms=NOW_MS) > NOW_MS


def test_the_checkpoint_in_a_credential_is_the_nodes_own() -> None:
    """Another log's tree head, signed by somebody else, is refused."""
    other = AttestedNode("m")
    evidence = NODE.evidence(checkpoint=other.statement().checkpoint)
    assert reason_of(credential_of(evidence, [A, B])) is Reason.ATTESTATION_INVALID


def test_every_other_spelling_is_refused() -> None:
    """Order, spaces, members, signature lines out of order or twice, size."""
    evidence = NODE.evidence()
    data = credential_of(evidence, [A, B])
    value = json.loads(data)
    lines = value["attested"].splitlines(keepends=True)
    bad = [
        b"",
        data + b" ",
        json.dumps(value).encode(),
        json.dumps({**value, "x": 1}, separators=(",", ":")).encode(),
        json.dumps({**value, "attested": "".join(reversed(lines))}, separators=(",", ":")).encode(),
        json.dumps({**value, "attested": lines[0] * 2 + lines[1]}, separators=(",", ":")).encode(),
        json.dumps({**value, "attested": "x" + lines[0]}, separators=(",", ":")).encode(),
        json.dumps({**value, "logged": "nonsense"}, separators=(",", ":")).encode(),
        json.dumps({**value, "evidence": {}}, separators=(",", ":")).encode(),
        json.dumps({**value, "attested": 1}, separators=(",", ":")).encode(),
        b"x" * 40_000,
    ]
    for wrong in bad:
        with pytest.raises(EvidenceError) as error:
            open_credential(wrong, ROSTER)
        assert error.value.reason is Reason.ATTESTATION_INVALID


def test_another_trust_domain_is_refused() -> None:
    """A credential of a mesh with the same witness keys says nothing here."""
    with pytest.raises(EvidenceError):
        open_credential(credential_of(NODE.evidence(), [A, B]), replace(ROSTER, trust_domain="other.example"))


def test_lines_without_a_known_signer_are_passed_over() -> None:
    """After a roster change a credential may carry a former witness's line."""
    evidence = NODE.evidence()
    text = attested_text(NODE.id, evidence.sha256)
    stranger = WitnessHolder("z")
    line = cosign_attestation(text, stranger.key, stranger.private.sign, time_s=NOW_S)
    assert verify_attestation(text, line, ROSTER.witnesses.values()).times_s == {}
    assert verify_attestation(text, b"", ROSTER.witnesses.values()).times_s == {}


def test_a_credential_of_a_witness_needs_the_key_that_the_roster_pins() -> None:
    """A quorum of liars apart, nobody gets another key accepted for a witness's own node."""
    member = AttestedNode("a")
    with pytest.raises(EvidenceError, match="pins another key"):
        open_credential(credential_of(member.evidence(), [B, C]), ROSTER)
    pinned = roster_of([WitnessHolder("a", private=member.private), B, C])
    open_credential(credential_of(member.evidence(), [B, C]), pinned)
