"""Source folders become archives, and mistakes are named by file and line."""

import json

import pytest

from tests.support.folders import SETTINGS, folder, namespace_folder
from trust.bundle import read_bundle
from trust.errors import InputError, Reason
from trust.policy.problems import Severity
from trust.policy.source import build, load


def places(files: dict[str, bytes]) -> list[tuple[str, int]]:
    """Where the errors of a folder are."""
    _, problems = load(files)
    return sorted({(p.file, p.line) for p in problems if p.severity is Severity.ERROR})


def test_folder_without_mistakes_becomes_a_bundle_with_its_settings() -> None:
    """Every setting of bundle.yaml arrives where sidecars read it."""
    bundle = read_bundle(build(folder()), role="targets")
    assert bundle.manifest.name == "shop"
    assert bundle.mesh is not None
    assert bundle.mesh.level == 4
    assert bundle.mesh.lease.ttl_s == 30
    assert bundle.mesh.level_of("legacy") == 1
    assert bundle.mesh.workload_of("stock") == "warehouse"
    assert bundle.mesh.services["stock"].namespace == "store"
    assert bundle.mesh.metadata_keys == ("tenant",)
    entities = {(e["uid"]["type"], e["uid"]["id"]): e["parents"] for e in json.loads(bundle.entities)}
    assert entities["Workload", "spiffe://mesh.local/workload/alice"] == [{"type": "Role", "id": "buyers"}]
    assert entities["Service", "payments"] == [{"type": "ServiceGroup", "id": "money"}]


def test_same_folder_gives_the_same_bytes() -> None:
    """Two authors who agree on the text agree on the digest."""
    assert build(folder()) == build(dict(reversed(list(folder().items()))))


def test_overrides_replace_level_and_trust_domain() -> None:
    """A development mesh reuses a folder under its own name."""
    policies = '@id("x") permit(principal, action, resource == Service::"payments");'
    archive = build(folder(policies=policies, tests=""), level_override=3, trust_domain_override="dev.local")
    bundle = read_bundle(archive, role="targets")
    assert bundle.mesh is not None
    assert (bundle.mesh.level, bundle.mesh.trust_domain) == (3, "dev.local")
    assert "spiffe://dev.local/workload/alice" in bundle.entities


def test_level_override_that_there_is_not_is_refused() -> None:
    """Asking for it is said, not approximated."""
    for level in (-1, 6, 7):
        with pytest.raises(InputError) as caught:
            build(folder(), level_override=level)
        assert f"level {level} does not exist" in caught.value.detail


def test_roles_are_merged_with_entities_of_the_file() -> None:
    """A workload may be in roles of both."""
    entities = json.dumps(
        [
            {
                "uid": {"type": "Workload", "id": "spiffe://mesh.local/workload/alice"},
                "attrs": {},
                "parents": [{"type": "Role", "id": "staff"}],
            },
            {"uid": {"__entity": {"type": "Role", "id": "staff"}}, "attrs": {}, "parents": []},
        ]
    )
    source, problems = load(folder(entities=entities))
    assert source is not None
    assert not problems
    alice = next(e for e in source.entities if e.id.endswith("/alice"))
    assert alice.parents == {("Role", "staff"), ("Role", "buyers")}


def test_namespace_bundle_carries_no_mesh_settings() -> None:
    """Only the base bundle speaks for the whole mesh."""
    bundle = read_bundle(build(namespace_folder()), role="store")
    assert bundle.mesh is None
    assert bundle.manifest.namespace == "store"


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("level: 6", 4),
        ("level: '4'", 4),
        ("levle: 4", 4),
        ("level: 4\nlevel: 3", 5),
        ("level: [4", 5),
        ("level: &a 4", 4),
        ("level: !!int 4", 4),
    ],
)
def test_mistake_in_a_setting_is_named_with_its_line(line: str, at: int) -> None:
    """Wrong, mistyped, misspelled, repeated, unfinished, aliased and tagged settings."""
    found = places(folder(settings=SETTINGS.replace("level: 4", line, 1)))
    assert [file for file, _ in found] == ["bundle.yaml"]
    assert found[0][1] in {at, at + 1}


def test_all_mistakes_of_the_settings_are_reported_together() -> None:
    """One run, one list."""
    bad = "trust_domain: UPPER\nservices:\n  Payments: {}\n  p: {levl: 1}\nmetadata_keys: [x-bin, grpc-x]\n"
    assert places(folder(settings=bad)) == [("bundle.yaml", line) for line in (1, 3, 4, 5)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("risky: [shop.Orders/Place", "risky: [shop.Orders/Plaice", "no descriptor knows shop.Orders/Plaice"),
        ("  risky:", "  shop.Orders:", "cannot name a group"),
        ("  risky:", "  any:", "cannot name a group"),
        ("money: [payments]", "money: [paiments]", "there is no service 'paiments'"),
        ("buyers: [alice,", "buyers: [Alice!,", "is not a name"),
        ('"spiffe://mesh.local/workload/bob"', '"spiffe://mesh.local/../bob"', "forbidden segment"),
        ("namespace: store", "namespace: targets", "reserved"),
        ("ttl_s: 30", "ttl_s: 1", "greater than or equal to 2"),
        ("name: shop", 'name: "a\\u0007b"', "printable"),
    ],
)
def test_name_that_cannot_be_is_refused(old: str, new: str, words: str) -> None:
    """Members that do not exist would silently never match."""
    assert old in SETTINGS
    _, problems = load(folder(settings=SETTINGS.replace(old, new, 1)))
    assert any(words in p.message for p in problems), problems


def test_namespace_folder_that_sets_what_belongs_to_the_base_is_refused() -> None:
    """A namespace's approvers cannot lower a level, move a service or change the lease."""
    settings = (
        "name: s\nnamespace: store\nlevel: 0\nlease: {ttl_s: 9}\nservices:\n"
        "  stock: {level: 0, workload: evil, namespace: other}\n"
    )
    _, problems = load(namespace_folder(settings=settings))
    words = [p.message for p in problems]
    assert [p.line for p in problems] == [3, 4, 6, 6, 6]
    assert sum("base bundle alone" in w for w in words) == 4


@pytest.mark.parametrize(
    ("entities", "line"),
    [
        ("[", 1),
        ("{}", 1),
        ("[\n{}\n]", 2),
        ('[\n\n{"uid": {"type": "Workload", "id": "alice"}, "attrs": {}, "parents": []}]', 3),
        ('[{"uid": {"type": "Role", "id": "a"}, "attrs": {"x": 1}, "parents": []}]', 1),
        ('[{"uid": {"type": "Robot", "id": "a"}, "attrs": {}, "parents": []}]', 1),
        ('[{"uid": {"type": "Role", "id": "a"}, "parents": [{"type": "Service", "id": "a"}]}]', 1),
        ('[{"uid": {"type": "Role", "id": "a"}},\n{"uid": {"type": "Role", "id": "a"}}]', 2),
        ('[{"uid": {"type": "Role", "id": "a"}, "parents": [{"type": "Role", "id": "a"}]}]', 1),
        (
            '[{"uid": {"type": "Role", "id": "a"}, "parents": [{"type": "Role", "id": "b"}]},\n'
            '{"uid": {"type": "Role", "id": "b"}, "parents": [{"type": "Role", "id": "a"}]}]',
            1,
        ),
        ('[{"uid": 1, "uid": 2}]', 1),
        ("[" * 5000, 1),
        ('[{"uid": {"type": "Role", "id": "a"}}] x', 1),
    ],
)
def test_mistake_in_entities_is_named_with_its_line(entities: str, line: int) -> None:
    """Broken JSON, wrong ids, attributes, unknown types, duplicates and cycles."""
    assert places(folder(entities=entities)) == [("entities.json", line)]


def test_files_that_would_be_left_out_are_reported() -> None:
    """A policy under a misspelled name must not silently be missing; a README may lie beside."""
    files = folder() | {
        "policies/x.ceder": b"",
        "policies/../x.cedar": b"",
        "README.md": b"",
        "tests/x.yml": b"",
    }
    assert places(files) == [("policies/../x.cedar", 0), ("policies/x.ceder", 0), ("tests/x.yml", 0)]
    _, problems = load(files)
    assert [p.file for p in problems if p.severity is Severity.WARNING] == ["README.md"]


def test_unreadable_parts_are_reported_not_raised() -> None:
    """No settings, broken descriptors, text that is not UTF-8."""
    assert places({}) == [("bundle.yaml", 0)]
    assert places(folder(settings="- a")) == [("bundle.yaml", 1)]
    assert places(folder() | {"descriptors.binpb": b"\xff\xff"}) == [("descriptors.binpb", 0)]
    assert places(folder() | {"policies/x.cedar": b"a\n\xff"}) == [("policies/x.cedar", 2)]


def test_building_a_folder_with_mistakes_raises_all_of_them() -> None:
    """Settings, policies and tests in one message."""
    with pytest.raises(InputError) as caught:
        build(folder(policies="permit(principal, action, resource);", tests="- name: x"))
    assert caught.value.reason is Reason.INPUT_INVALID
    lines = caught.value.detail.splitlines()
    assert any(line.startswith("policies/shop.cedar:1: the policy has no @id") for line in lines)
    assert any(line.startswith("tests/shop.yaml:1: caller is missing") for line in lines)
