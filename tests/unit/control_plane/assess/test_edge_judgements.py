"""What the assessor tries on files: changed policy, ledgers and credentials, and verifiers that do not notice."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tuf.api.metadata import Root, Targets

from control_plane.assess.edge import ledgers, policies, records
from control_plane.assess.edge.collect import Installation, weakest_quorum
from control_plane.assess.edge.history import history, keep, named
from control_plane.assess.edge.trust import judge_credential
from control_plane.assess.model import Outcome
from control_plane.edge.release import InForce
from tests.support.assessments import assessment
from tests.support.attestation import NOW_S, AttestedNode, credential_of, holders, roster_of
from tests.support.ledgers import fill
from tests.support.tuf_world import World
from trust.authoring import parse_metadata
from trust.edge.ledger import verify as verify_ledger
from trust.edge.tuf_client import PolicyClient
from trust.errors import InputError, Reason, StateError
from trust.verified import VerifiedPolicy

BUNDLE = b"a bundle of sixty-four bytes or more, so that one of them can be changed on the way"


class Renewed:
    """A source whose lease has been renewed when it is asked a second time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.first = world.source()
        world.renew(now_ms=world.now_ms + 1)
        self.later = world.source()
        self.waited = False

    def fetch(self, path: str) -> Iterator[bytes]:
        return (self.later if self.waited else self.first).fetch(path)

    def wait(self, _seconds: float) -> None:
        self.waited = True


@pytest.fixture
def world() -> World:
    made = World()
    made.release(BUNDLE)
    return made


def by_id(checks: list[Any]) -> dict[str, Outcome]:
    return {check.id: check.outcome for check in checks}


def test_the_policy_client_of_this_version_refuses_changed_and_older_policy(world: World) -> None:
    """The client that every sidecar runs, over genuine files that were changed or are older."""
    source = Renewed(world)
    found = by_id(policies.client_checks(world.root, source, source.wait))

    assert found == {"tampered-policy-refused": Outcome.HELD, "rollback-refused": Outcome.HELD}


def test_a_client_that_accepts_everything_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar whose verification was taken out."""
    real = PolicyClient

    class Careless:
        def __init__(self, directory: Path, root: bytes) -> None:
            self._real = real(directory, root)
            self.newest: tuple[int, bytes] = (0, b"")

        def refresh(self, source: Any) -> VerifiedPolicy:
            timestamp = b"".join(source.fetch("metadata/timestamp.json"))
            self.newest = (json.loads(timestamp)["signed"]["version"], timestamp)
            for path in world.files:
                if path.startswith("targets/"):
                    b"".join(source.fetch(path))
            return cast("VerifiedPolicy", SimpleNamespace(digest="whatever"))

    monkeypatch.setattr(policies, "PolicyClient", Careless)
    source = Renewed(world)
    found = by_id(policies.client_checks(world.root, source, source.wait))

    assert found == {"tampered-policy-refused": Outcome.FAILED, "rollback-refused": Outcome.FAILED}


def test_without_a_newer_lease_a_rollback_cannot_be_told(world: World) -> None:
    """Nothing was rolled back, so nothing was refused."""
    found = by_id(policies.client_checks(world.root, world.source(), lambda _s: None))

    assert found["rollback-refused"] is Outcome.UNKNOWN


def test_a_source_that_does_not_answer_proves_nothing(world: World) -> None:
    """A client that refuses even the unchanged policy has not refused the changed one."""
    source = world.source()
    source.files.clear()
    found = by_id(policies.client_checks(world.root, source, lambda _s: None))

    assert set(found.values()) == {Outcome.UNKNOWN}


def _in_force(world: World) -> InForce:
    metadata = parse_metadata(world.files["metadata/1.targets.json"], Targets)
    return InForce(parse_metadata(world.root, Root), {"targets": metadata}, None)


def test_one_signature_less_than_the_quorum_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a verifier for which one is enough is noticed."""
    assert policies.short_quorum(_in_force(world)).outcome is Outcome.HELD

    monkeypatch.setattr(policies, "require_quorum", lambda *_a, **_k: None)
    assert policies.short_quorum(_in_force(world)).outcome is Outcome.FAILED


def test_the_weakest_namespace_counts_as_the_quorum_of_the_mesh(world: World) -> None:
    """A delegation that one person signs alone is a way around the others."""

    def role(threshold: int) -> Any:
        return SimpleNamespace(threshold=threshold, keyids=["k1", "k2"])

    keys = {name: SimpleNamespace(keyval={"public": name}) for name in ("k1", "k2")}
    delegations = SimpleNamespace(keys=keys, roles={"payments": role(1), "shop": role(2)})
    root = SimpleNamespace(signed=SimpleNamespace(roles={"root": role(2), "targets": role(2)}, keys=keys))

    def in_force(found: Any) -> InForce:
        base = SimpleNamespace(signed=SimpleNamespace(delegations=found))
        return cast("InForce", SimpleNamespace(root=root, roles={"targets": base}))

    assert weakest_quorum(in_force(None)) == (2, 2)
    assert weakest_quorum(in_force(delegations)) == (1, 2)
    assert weakest_quorum(_in_force(world))[0] == 2


class Operators:
    """A control plane as far as proposals go."""

    def __init__(self, publishes: bool) -> None:
        self.publishes, self.withdrawn = publishes, list[str]()

    async def propose(self, *_a: Any, **_k: Any) -> Any:
        return SimpleNamespace(id="p1", signatures=())

    async def publish(self, _id: str) -> None:
        if not self.publishes:
            raise StateError(Reason.QUORUM_NOT_MET, "2 signatures are missing")

    async def withdraw(self, proposal: str) -> None:
        self.withdrawn.append(proposal)


@pytest.mark.parametrize(("publishes", "outcome"), [(False, Outcome.HELD), (True, Outcome.FAILED)])
async def test_a_control_plane_that_publishes_unsigned_policy_is_noticed(
    publishes: bool, outcome: Outcome
) -> None:
    """And the proposal is withdrawn either way."""
    operators = Operators(publishes)
    policy = SimpleNamespace(base=SimpleNamespace(data=b""))
    installation = cast("Installation", SimpleNamespace(in_force=SimpleNamespace(policy=policy)))
    check = await policies.unsigned(installation, cast("Any", operators), cast("Any", operators))

    assert check.outcome is outcome
    assert operators.withdrawn == ["p1"]


async def test_an_assessment_at_the_same_time_does_not_take_the_proposal_away() -> None:
    """Both propose the same, and each withdraws it when it is done."""

    class Busy(Operators):
        conflicts = 2

        async def publish(self, proposal: str) -> None:
            self.conflicts -= 1
            if self.conflicts >= 0:
                raise StateError(Reason.CONFLICT, "the proposal is withdrawn")
            await super().publish(proposal)

    operators = cast("Any", Busy(publishes=False))
    policy = SimpleNamespace(base=SimpleNamespace(data=b""))
    installation = cast("Installation", SimpleNamespace(in_force=SimpleNamespace(policy=policy)))

    assert (await policies.unsigned(installation, operators, operators, 0.0)).outcome is Outcome.HELD


def _files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def _mesh_with_ledger(tmp_path: Path, count: int = 50) -> Installation:
    ledger = tmp_path / "data" / "ledger"
    await fill(ledger, count)
    config = tmp_path / "sidecar.yaml"
    config.write_text(json.dumps({"data_dir": str(tmp_path / "data")}))
    nodes = {"a": SimpleNamespace(config=str(config))}
    facts = SimpleNamespace(policy=SimpleNamespace(witnesses=("a",)))
    return cast(
        "Installation", SimpleNamespace(mesh=SimpleNamespace(nodes=nodes), facts=facts, credentials={})
    )


async def test_an_intact_ledger_holds_and_changed_copies_of_it_are_found(tmp_path: Path) -> None:
    """The original is not touched."""
    installation = await _mesh_with_ledger(tmp_path)
    before = _files(tmp_path)
    found = by_id(ledgers.ledgers(installation, "shop", ["a"]))

    found.pop("ledger-durable")  # as the machine's temporary directory is
    assert found == {
        "ledger-intact": Outcome.HELD,
        "ledger-cosigned": Outcome.UNKNOWN,
        "ledger-tampering-noticed": Outcome.HELD,
    }
    assert before == _files(tmp_path)


async def test_a_damaged_ledger_is_not_intact(tmp_path: Path) -> None:
    """One byte on the node's disk."""
    installation = await _mesh_with_ledger(tmp_path)
    segment = sorted((tmp_path / "data" / "ledger" / "records").iterdir())[0]
    data = segment.read_bytes()
    segment.write_bytes(data[:150] + bytes([data[150] ^ 1]) + data[151:])
    found = by_id(ledgers.ledgers(installation, "shop", ["a"]))

    assert found["ledger-intact"] is Outcome.FAILED
    assert found["ledger-tampering-noticed"] is not Outcome.HELD


async def test_a_verifier_that_sees_no_tampering_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit log that accepts anything."""
    installation = await _mesh_with_ledger(tmp_path)
    whole = verify_ledger(tmp_path / "data" / "ledger")
    monkeypatch.setattr(ledgers, "verify_ledger", lambda _directory, **_keys: whole)
    found = by_id(ledgers.ledgers(installation, "shop", ["a"]))

    assert found["ledger-tampering-noticed"] is Outcome.FAILED


async def test_a_ledger_that_is_elsewhere_or_empty_is_not_established(tmp_path: Path) -> None:
    """What cannot be read is not intact."""
    installation = await _mesh_with_ledger(tmp_path, count=0)

    assert set(by_id(ledgers.ledgers(installation, "shop", ["a", "b"])).values()) == {Outcome.UNKNOWN}
    assert by_id(ledgers.ledgers(installation, "shop", ["a"]))["ledger-tampering-noticed"] is Outcome.UNKNOWN
    assert set(by_id(ledgers.ledgers(installation, "shop", [])).values()) == {Outcome.UNKNOWN}


def test_a_trust_credential_holds_only_with_the_quorum_of_the_signed_roster() -> None:
    """Too few, none, too old, or of strangers: the new node is not vouched for."""
    a, b, c = holders("a", "b", "c")
    roster, node = roster_of([a, b, c]), AttestedNode("n")
    good, now_ms = credential_of(node.evidence(), [a, c]), NOW_S * 1000
    stranger = replace(holders("x")[0], name="c")

    assert judge_credential(good, roster, now_ms).outcome is Outcome.HELD
    for bad in (
        b"",
        b"{}",
        credential_of(node.evidence(), [a]),
        credential_of(node.evidence(), [a, stranger]),
    ):
        assert judge_credential(bad, roster, now_ms).outcome is Outcome.FAILED
    assert judge_credential(good, roster, now_ms + 3_600_000).outcome is Outcome.FAILED


def test_history_only_grows_and_finds_runs_by_their_beginning(tmp_path: Path) -> None:
    """A run that was kept is not changed by another, and an unknown or ambiguous name is refused."""
    first = assessment()
    second = replace(first, run="0123ffffffff", started_ms=first.started_ms + 1)
    path = keep(tmp_path, first)
    keep(tmp_path, second)

    assert history(tmp_path) == ([first, second], [])
    assert path.stat().st_mode & 0o222 == 0
    with pytest.raises(FileExistsError):
        keep(tmp_path, first)
    assert named(tmp_path, "01234") == first
    assert named(None, str(path)) == first
    for name in ("0123", "f", "missing.json"):
        with pytest.raises(InputError):
            named(tmp_path, name)
    (tmp_path / "assessments" / "1-bad.json").write_text("{}")
    (tmp_path / "assessments" / "2-bad.json").mkdir()
    found, damaged = history(tmp_path)

    assert found == [first, second], "one damaged file must not hide the others"
    assert ["1-bad.json" in damaged[0], "2-bad.json" in damaged[1]] == [True, True]


def _record(**changes: Any) -> Any:
    intent = SimpleNamespace(
        **{
            "permit_sha256": b"p" * 32,
            "authn": "mtls",
            "execution_id": b"e" * 16,
            "caller": "spiffe://mesh.local/workload/egm-probe-1",
            **changes,
        }
    )
    return SimpleNamespace(intent=intent)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, Outcome.HELD),
        ({"permit_sha256": b"x" * 32}, Outcome.FAILED),
        ({"execution_id": b"x" * 16}, Outcome.FAILED),
        ({"authn": "jwt"}, Outcome.FAILED),
    ],
    ids=["ours", "a-permit-nobody-showed", "another-execution", "no-certificate"],
)
def test_only_a_record_of_the_permit_that_was_shown_attributes_the_call(
    changes: dict[str, Any], outcome: Outcome
) -> None:
    """An index that makes up a digest has attributed nothing."""
    check = records._attributed("shop", [_record(**changes)], {b"p" * 32: b"e" * 16})

    assert check.outcome is outcome
