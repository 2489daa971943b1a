"""The metadata linter: every shape that weakens a quorum is named, and sound metadata has no findings."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    Targets,
    Timestamp,
)

from tests.support.tuf_world import World, public, signer, twin
from trust.errors import EvidenceError, Reason
from trust.metadata import (
    Finding,
    check,
    check_root,
    is_development,
    lint_root,
    lint_snapshot,
    lint_targets,
    lint_timestamp,
    trust_domain_of,
)
from trust.repository import Holders

FAR = datetime.datetime(2090, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def world() -> World:
    made = World()
    made.release(b"base")
    payers = [signer("p1"), signer("p2")]
    made.delegate("payments", Holders(public(payers), 2))
    made.release(b"payments", "payments", payers)
    return made


def fresh_root(world: World) -> Root:
    return Metadata[Root].from_bytes(world.root).signed


def fresh_base(world: World) -> Targets:
    return Metadata[Targets].from_bytes(world.state.roles["targets"]).signed


def test_sound_metadata_has_no_findings(world: World) -> None:
    """The linter is silent about what we publish."""
    root, now = fresh_root(world), world.now_ms
    assert lint_root(root, development=False, now_ms=now) == []
    assert lint_targets("targets", fresh_base(world), development=False, root=root, now_ms=now) == []
    payments = Metadata[Targets].from_bytes(world.state.roles["payments"]).signed
    assert lint_targets("payments", payments, development=False, root=root, now_ms=now) == []
    assert world.state.snapshot is not None and world.state.timestamp is not None
    assert lint_snapshot(Metadata[Snapshot].from_bytes(world.state.snapshot).signed, now_ms=now) == []
    assert lint_timestamp(Metadata[Timestamp].from_bytes(world.state.timestamp).signed, now_ms=now) == []
    assert not is_development(root) and trust_domain_of(root) == "mesh.local"


def _threshold(role: str, value: Any) -> Callable[[Root], None]:
    def change(root: Root) -> None:
        root.roles[role].threshold = value

    return change


def _share_online(root: Root) -> None:
    root.roles["snapshot"] = Role([root.roles["targets"].keyids[0]], 1)


ROOT_CASES: dict[str, tuple[Callable[[Root], None], str]] = {
    "root threshold one": (_threshold("root", 1), "at least 2"),
    "approver threshold one": (_threshold("targets", 1), "at least 2"),
    "threshold zero": (_threshold("targets", 0), "positive integer"),
    "threshold negative": (_threshold("timestamp", -1), "positive integer"),
    "threshold true": (_threshold("timestamp", True), "positive integer"),
    "threshold a float": (_threshold("targets", 2.0), "positive integer"),
    "threshold above the keys": (_threshold("targets", 4), "only 3 distinct"),
    "no consistent snapshots": (lambda r: setattr(r, "consistent_snapshot", False), "consistent_snapshot"),
    "consistent snapshots unset": (lambda r: setattr(r, "consistent_snapshot", None), "consistent_snapshot"),
    "undefined key": (lambda r: r.roles["targets"].keyids.append("00"), "not defined"),
    "online key approves": (_share_online, "online key"),
    "expiry in decades": (lambda r: setattr(r, "expires", FAR), "later than"),
    "version true": (lambda r: setattr(r, "version", True), "version"),
    "version beyond exact integers": (lambda r: setattr(r, "version", 2**53), "version"),
    "development spelled oddly": (
        lambda r: r.unrecognized_fields.update({"x-egm-development": "yes"}),
        "true or false",
    ),
    "trust domain not a name": (
        lambda r: r.unrecognized_fields.update({"x-egm-trust-domain": "Not A Domain"}),
        "trust domain",
    ),
    "too many keys": (lambda r: r.roles["root"].keyids.extend(map(str, range(100))), "at most 64"),
}


@pytest.mark.parametrize("case", ROOT_CASES)
def test_unsafe_root_is_found(case: str, world: World) -> None:
    """Each measured trap has a finding that says what is wrong."""
    change, expected = ROOT_CASES[case]
    root = fresh_root(world)
    change(root)
    findings = lint_root(root, development=False, now_ms=world.now_ms)
    assert any(expected in str(finding) for finding in findings), findings
    with pytest.raises(EvidenceError) as caught:
        check_root(root, now_ms=world.now_ms)
    assert caught.value.reason is Reason.METADATA_UNSAFE


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_one_key_under_two_ids_is_found_in_every_role(role: str, world: World) -> None:
    """It would count twice towards the threshold."""
    original = {
        "root": world.roots[0],
        "targets": world.approvers[0],
        "snapshot": world.online.snapshot,
        "timestamp": world.online.timestamp,
    }[role]
    root = fresh_root(world)
    root.add_key(twin(original).public_key, role)  # type: ignore[arg-type]
    assert any("same key" in f.problem and f.where == role for f in lint_root(root, development=False))


def test_development_relaxes_the_threshold_and_nothing_else(world: World) -> None:
    """Two ids for one key are wrong in development too."""
    root = fresh_root(world)
    root.roles["targets"].threshold = 1
    assert lint_root(root, development=True) == []
    root.add_key(twin(world.approvers[0]).public_key, "targets")
    assert lint_root(root, development=True)


def _delegation(name: str = "shop", **changes: Any) -> Delegations:
    keys = public([signer("a"), signer("b")])
    fields: dict[str, Any] = {
        "keyids": [key.keyid for key in keys],
        "threshold": 2,
        "terminating": True,
        "paths": [f"{name}/*"],
    } | changes
    return Delegations({key.keyid: key for key in keys}, {name: DelegatedRole(name, **fields)})


def _succinct() -> Delegations:
    keys = public([signer("a"), signer("b")])
    ids = [key.keyid for key in keys]
    return Delegations({key.keyid: key for key in keys}, succinct_roles=SuccinctRoles(ids, 2, 8, "bin"))


def _many() -> Delegations:
    one = _delegation()
    assert one.roles is not None
    role = one.roles["shop"]
    names = [f"n{i}" for i in range(65)]
    return Delegations(one.keys, {n: DelegatedRole(n, list(role.keyids), 2, True, [f"{n}/*"]) for n in names})


DELEGATION_CASES: dict[str, tuple[Callable[[], Delegations], str]] = {
    "every path": (lambda: _delegation(paths=["*"]), "exactly shop/*"),
    "the base target": (lambda: _delegation(paths=["base.tar.gz"]), "exactly shop/*"),
    "another namespace": (lambda: _delegation(paths=["shop/*", "payments/*"]), "exactly shop/*"),
    "no path": (lambda: _delegation(paths=[]), "exactly shop/*"),
    "hash prefixes": (lambda: _delegation(paths=None, path_hash_prefixes=["00"]), "exactly shop/*"),
    "not terminating": (lambda: _delegation(terminating=False), "terminating"),
    "threshold one": (lambda: _delegation(threshold=1), "at least 2"),
    "traversal in the name": (lambda: _delegation("../x"), "valid name"),
    "glob in the name": (lambda: _delegation("*"), "valid name"),
    "upper case": (lambda: _delegation("Shop"), "valid name"),
    "succinct roles": (_succinct, "succinct"),
    "too many": (_many, "at most 64"),
}


@pytest.mark.parametrize("case", DELEGATION_CASES)
def test_unsafe_delegation_is_found(case: str, world: World) -> None:
    """A namespace gets its own paths, by name, from a quorum; nothing wider."""
    make, expected = DELEGATION_CASES[case]
    base = fresh_base(world)
    base.delegations = make()
    findings = lint_targets("targets", base, development=False, root=fresh_root(world))
    assert any(expected in str(finding) for finding in findings), findings


def test_namespace_may_not_delegate_or_speak_for_another(world: World) -> None:
    """Delegation is one level deep; each role signs its own bundle."""
    base = fresh_base(world)
    problems = [f.problem for f in lint_targets("payments", base, development=False)]
    assert any("delegate further" in p for p in problems)
    assert any("does not list payments/bundle.tar.gz" in p for p in problems)
    assert any("'base.tar.gz'" in p for p in problems)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hashes", {"md5": "00"}),
        ("hashes", {"sha256": "AA" * 32}),
        ("hashes", {"sha256": "../../x"}),
        ("hashes", {"sha512": "00" * 64, "sha256": "00" * 32}),
        ("length", 0),
        ("length", True),
        ("length", 10**12),
    ],
)
def test_target_with_odd_hash_or_length_is_found(field: str, value: object, world: World) -> None:
    """The hash becomes a file name and the length a download limit."""
    base = fresh_base(world)
    setattr(base.targets["base.tar.gz"], field, value)
    assert lint_targets("targets", base, development=False)


@pytest.mark.parametrize(
    "name", ["targets", "../x.json", "root.json", "snapshot.json", "A.json", "x.json.json"]
)
def test_snapshot_that_lists_something_else_than_roles_is_found(name: str) -> None:
    """Names in the snapshot become file names."""
    snapshot = Snapshot(meta={name: MetaFile(1, 10, {"sha256": "00" * 32})})
    assert lint_snapshot(snapshot)


def test_unpinned_metadata_and_long_leases_are_found(world: World) -> None:
    """Length and digest are pinned everywhere, and a lease ends within a day."""
    assert lint_snapshot(Snapshot(meta={"targets.json": MetaFile(1)}))
    assert lint_timestamp(Timestamp(snapshot_meta=MetaFile(1)))
    assert world.state.timestamp is not None
    timestamp = Metadata[Timestamp].from_bytes(world.state.timestamp).signed
    timestamp.expires = FAR
    assert lint_timestamp(timestamp, now_ms=world.now_ms)


def test_long_list_of_findings_is_shortened() -> None:
    """An error message stays readable."""
    with pytest.raises(EvidenceError, match="and 15 more"):
        check(Finding("root", str(i)) for i in range(20))
    check([])
