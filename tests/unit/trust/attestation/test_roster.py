"""Rosters: which quorums are refused, and the roster as others read it."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.attestation import (
    PARTY,
    AttestedNode,
    WitnessHolder,
    holders,
    roster_of,
    settings_of,
    third_party,
)
from trust.attestation.advice import doubts
from trust.attestation.credential import log_origin
from trust.attestation.roster import (
    AttestationSettings,
    LogWitnessSettings,
    Roster,
    WitnessSettings,
    policy_text,
)
from trust.bundle import read_bundle
from trust.errors import EvidenceError
from trust.mesh import MeshSettings, parse_mesh
from trust.note import KeyKind, Verifier
from trust.policy.lint import lint
from trust.policy.problems import Severity
from trust.policy.source import build

THREE = holders("a", "b", "c")
FOUR = holders("a", "b", "c", "d")


@pytest.mark.parametrize(("count", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (32, 17)])
def test_the_default_quorum_is_a_majority(count: int, majority: int) -> None:
    """Two sides of a partition can never both hold it."""
    settings = settings_of(holders(*(f"n{i}" for i in range(count))))
    assert settings.needed == majority
    assert 2 * settings.needed > count


@pytest.mark.parametrize(("quorum", "of"), [(1, THREE), (2, FOUR), (1, FOUR)])
def test_a_quorum_that_two_sides_could_both_reach_is_refused(quorum: int, of: list[WitnessHolder]) -> None:
    """Unless the signed policy says why."""
    with pytest.raises(ValidationError, match="two sides of a partition could both reach it"):
        settings_of(of, quorum=quorum)
    assert settings_of(of, quorum=quorum, allow_split_quorum="two sites, availability first").needed == quorum


@pytest.mark.parametrize("why", ["", "  ", "a\nb", "x" * 201])
def test_a_split_quorum_needs_a_reason_that_a_person_can_read(why: str) -> None:
    """An empty reason is none."""
    with pytest.raises(ValidationError):
        settings_of(FOUR, quorum=2, allow_split_quorum=why)


@pytest.mark.parametrize(
    "changes",
    [
        {"witnesses": {}},
        {"quorum": 4},
        {"quorum": 0},
        {"ttl_s": 2},
        {"ttl_s": 3601},
        {"max_lag_s": -1},
        {"log_quorum": 1},
        {"surprise": 1},
        {
            "witnesses": {
                "a": WitnessSettings(key=THREE[0].key.encode()),
                "b": WitnessSettings(key=THREE[0].key.encode()),
            }
        },
        {"witnesses": {"A!": WitnessSettings(key=THREE[0].key.encode())}},
        {"log_witnesses": {"a": third_party()["w1"]}},
    ],
)
def test_rosters_that_cannot_be_meant_are_refused(changes: dict[str, Any]) -> None:
    """One key twice, a quorum beyond reach, a name used twice, a time out of bounds."""
    with pytest.raises((ValidationError, EvidenceError)):
        settings_of(THREE, **changes)


def test_a_log_key_is_no_witness_key() -> None:
    """The kind is in the key: a checkpoint key cannot stand in for a cosigner's."""
    log = Verifier("mesh.local/witness/a", THREE[0].key.public_key, KeyKind.ED25519)
    with pytest.raises(ValidationError, match="not a witness key"):
        WitnessSettings(key=log.encode())


@pytest.mark.parametrize(
    "url", ["witness.example", "ftp://x", "https://u:p@x/", "https://x/ y", "https://x\n"]
)
def test_a_submission_prefix_is_a_plain_http_url(url: str) -> None:
    """No user, no spaces, nothing else."""
    with pytest.raises(ValidationError):
        LogWitnessSettings(key=PARTY.key.encode(), url=url)


def test_the_key_of_a_witness_carries_its_own_name() -> None:
    """A key that was made for one node cannot be listed as another's, nor a node's as a third party's."""
    settings = settings_of(THREE)
    swapped = {**settings.witnesses, "a": settings.witnesses["b"], "b": settings.witnesses["a"]}
    with pytest.raises(ValidationError, match=r"must be named mesh\.local/witness/a"):
        MeshSettings(trust_domain="mesh.local", attestation=AttestationSettings(witnesses=swapped))
    ours = {"w1": LogWitnessSettings(key=WitnessHolder("x").key.encode(), url="https://x/")}
    with pytest.raises(ValidationError, match="third party"):
        MeshSettings(trust_domain="mesh.local", attestation=settings_of(THREE, log_witnesses=ours))


def test_tolerance_is_counted() -> None:
    """What docs/trust.md says of three, four and seven witnesses."""
    found = {
        count: (roster.tolerates_lost, roster.tolerates_lying)
        for count in (3, 4, 5, 7)
        for roster in [roster_of(holders(*(f"n{i}" for i in range(count))))]
    }
    assert found == {3: (1, 0), 4: (1, 1), 5: (2, 0), 7: (3, 0)}
    assert roster_of(holders(*(f"n{i}" for i in range(7))), quorum=5).tolerates_lying == 2


def test_the_roster_survives_the_signed_file() -> None:
    """bundle.yaml -> mesh.json -> roster: the same witnesses, keys and numbers."""
    settings = settings_of(THREE, log_witnesses=third_party(), log_quorum=1, ttl_s=30)
    mesh = MeshSettings(trust_domain="mesh.local", attestation=settings)
    read = parse_mesh(mesh.model_dump_json(exclude_none=True).encode())
    assert read.roster() == mesh.roster()
    roster = read.roster()
    assert roster is not None
    assert (roster.needed, roster.log_needed, roster.ttl_ms) == (2, 1, 30_000)
    assert roster.digest != Roster.of(settings_of(THREE), "mesh.local").digest


def test_the_roster_as_tlog_policy() -> None:
    """C2SP tlog-policy: a verifier of others can require the same quorum of checkpoints."""
    node = AttestedNode("n")
    log = Verifier(log_origin(node.id), node.private.public_key().public_bytes_raw())
    roster = roster_of(THREE, log_witnesses=third_party(), log_quorum=1)
    lines = policy_text(roster, [log]).splitlines()
    assert lines[0] == f"log {log.encode()}"
    assert lines[1] == f"witness a {THREE[0].key.encode()}"
    assert lines[4].endswith(" https://witness.example/w1")
    assert lines[5:] == [
        "group mesh_nodes 2 a b c",
        "group third_parties 1 w1",
        "group both_groups all mesh_nodes third_parties",
        "quorum both_groups",
    ]
    assert policy_text(roster_of(THREE)).splitlines()[-1] == "quorum mesh_nodes"


def folder(extra: str) -> dict[str, bytes]:
    return {
        "bundle.yaml": f"name: x\nservices:\n  payments: {{}}\n{extra}".encode(),
        "policies/a.cedar": b'@id("p") permit(principal, action, resource == Service::"payments");\n',
    }


def yaml_of(**changes: Any) -> str:
    lines = "".join(f"    {one.name}:\n      key: {one.key.encode()}\n" for one in FOUR)
    rest = "".join(f"  {key}: {value}\n" for key, value in changes.items())
    return f"attestation:\n{rest}  witnesses:\n{lines}"


def test_lint_names_the_line_of_a_split_quorum() -> None:
    """`egm policy lint` refuses it before anybody signs; with a reason it is a warning."""
    errors = [p for p in lint(folder(yaml_of(quorum=2))) if p.severity is Severity.ERROR]
    assert [(p.file, p.line > 0) for p in errors] == [("bundle.yaml", True)]
    assert "two sides of a partition" in errors[0].message
    with_reason = lint(folder(yaml_of(quorum=2, allow_split_quorum="two sites")))
    assert [p for p in with_reason if p.severity is Severity.ERROR] == []
    assert any("two sides" in p.message and "two sites" in p.hint for p in with_reason)


def test_level_5_without_witnesses_is_a_warning() -> None:
    """It is allowed, and says that nodes do not vouch for each other."""
    problems = lint(folder("level: 5\n"))
    assert any("level 5 without attestation" in p.message for p in problems)
    assert not any("attestation" in p.message for p in lint(folder("level: 4\n")))
    assert doubts(None, {4}, references=None) == []


def test_reference_values_become_part_of_the_bundle() -> None:
    """And are read from it; malformed ones are an error of the folder."""
    good = b'{"format":1,"distributions":[{"version":"1","sha256":"' + b"ab" * 32 + b'"}]}'
    files = {**folder(yaml_of()), "reference_values.json": good}
    bundle = read_bundle(build(files), role="targets")
    assert bundle.reference_values is not None
    assert bundle.reference_values.distributions[0].version == "1"
    assert bundle.mesh is not None
    assert bundle.mesh.attestation is not None
    bad = lint({**files, "reference_values.json": b"{}"})
    assert any(p.file == "reference_values.json" and p.severity is Severity.ERROR for p in bad)
