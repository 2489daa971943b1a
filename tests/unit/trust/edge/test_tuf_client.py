"""The policy client against hostile sources, on real metadata: what it accepts, keeps, and never goes back on."""

import copy
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from tests.support.tuf_world import DictSource, World, public, sign_raw, signer, twin
from trust import limits
from trust.edge.tuf_client import PolicyClient
from trust.errors import EvidenceError, MeshError, Reason, StateError
from trust.repository import Holders

DAY_MS = 24 * 3600 * 1000


class SteppingClock:
    """Real wall time, so that python-tuf agrees, plus an offset; monotonic time moves by hand."""

    def __init__(self) -> None:
        self.offset_ms = 0
        self.mono = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.offset_ms

    def monotonic_ms(self) -> int:
        return self.mono


@pytest.fixture
def world() -> World:
    made = World()
    made.release(b"bundle 1")
    return made


@pytest.fixture
def client(world: World, tmp_path: Path) -> PolicyClient:
    return PolicyClient(tmp_path / "policy", world.root)


def refuses(reason: Reason, action: Callable[[], object]) -> MeshError:
    with pytest.raises(MeshError) as caught:
        action()
    assert caught.value.reason is reason, caught.value
    return caught.value


def test_first_refresh_yields_the_signed_policy_and_load_repeats_it(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """What was verified once is found again after a restart, without a source."""
    refuses(Reason.POLICY_MISSING, client.load)
    policy = client.refresh(world.source())
    assert policy.base.data == b"bundle 1" and policy.base.version == 1
    assert policy.base.signers == tuple(sorted(k.keyid for k in public(world.approvers[:2])))
    assert policy.base.threshold == 2
    assert policy.versions == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    assert policy.lease_expires_ms == (world.now_ms + 60_000) // 1000 * 1000
    assert policy.expires_ms == (world.now_ms + 30 * DAY_MS) // 1000 * 1000
    assert PolicyClient(tmp_path / "policy", world.root).load() == policy


def test_refresh_without_change_downloads_only_root_probe_and_timestamp(
    world: World, client: PolicyClient
) -> None:
    """The steady state is cheap."""
    client.refresh(world.source())
    world.renew()
    source = world.source()
    policy = client.refresh(source)
    assert source.asked == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert policy.versions["timestamp"] == 2


def test_every_published_namespace_is_fetched_with_its_own_signers(
    world: World, client: PolicyClient
) -> None:
    """A delegated namespace without a policy yet is skipped; one with a policy is verified by its approvers."""
    payers = [signer("p1"), signer("p2")]
    world.delegate("payments", Holders(public(payers), 2))
    assert client.refresh(world.source()).namespaces == {}
    world.release(b"payments 1", "payments", payers)
    policy = client.refresh(world.source())
    assert policy.namespaces["payments"].data == b"payments 1"
    assert policy.namespaces["payments"].signers == tuple(sorted(k.keyid for k in public(payers)))
    assert client.load() == policy


def test_root_rotation_is_followed_and_survives_a_restart(world: World, tmp_path: Path) -> None:
    """The chain from the anchor the node was given is kept and verified again."""
    client = PolicyClient(tmp_path / "policy", world.root)
    client.refresh(world.source())
    for _ in range(3):
        world.publish({"root": world.rotate(threshold=2).to_bytes()})
    policy = client.refresh(world.source())
    assert policy.versions["root"] == 4
    assert PolicyClient(tmp_path / "policy", world.root).load() == policy
    newer_anchor = PolicyClient(tmp_path / "policy", world.files["metadata/3.root.json"])
    assert newer_anchor.load() == policy
    assert newer_anchor.refresh(world.source()) == policy


def test_old_approver_counts_no_longer_after_rotation(world: World, client: PolicyClient) -> None:
    """A node that saw the new root refuses metadata that leans on the replaced approver."""
    gone, *staying = world.approvers
    world.release(b"bundle 2", signers=staying)
    root = world.rotate(add=[signer("dave").public_key], remove=[gone.public_key.keyid])
    world.publish({"root": root.to_bytes()})
    kept = client.refresh(world.source())
    forged = forge_targets(world, b"bundle 3", [gone, staying[0]])
    refuses(Reason.QUORUM_NOT_MET, lambda: client.refresh(forged))
    assert client.load() == kept


def forge_targets(world: World, bundle: bytes, signers: list[Any], **edits: Any) -> DictSource:
    """Return a repository whose online keys collude: they pin targets metadata signed by `signers`."""
    metadata = world.proposal(bundle)
    for name, value in edits.items():
        setattr(metadata.signed, name, value)
    data = sign_raw(metadata, signers)
    return pinned(world, data, metadata.signed, {f"targets/{digest(bundle)}.base.tar.gz": bundle})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pinned(world: World, data: bytes, signed: Targets, extra: dict[str, bytes]) -> DictSource:
    """Sign a snapshot and timestamp over any targets metadata, with the real online keys."""
    files = dict(world.files) | extra
    versions = world.state.versions()
    files[f"metadata/{signed.version}.targets.json"] = data
    snapshot = Metadata(
        Snapshot(
            version=versions["snapshot"] + 1,
            expires=signed.expires,
            meta={"targets.json": MetaFile.from_data(signed.version, data, ["sha256"])},
        )
    )
    snapshot_data = sign_raw(snapshot, [world.online.snapshot])  # type: ignore[list-item]
    files[f"metadata/{snapshot.signed.version}.snapshot.json"] = snapshot_data
    timestamp = Metadata[Timestamp].from_bytes(world.files["metadata/timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, snapshot_data, ["sha256"])
    timestamp.signatures.clear()
    files["metadata/timestamp.json"] = sign_raw(timestamp, [world.online.timestamp])  # type: ignore[list-item]
    return DictSource(files)


def test_stolen_online_keys_cannot_publish_below_the_quorum(world: World, client: PolicyClient) -> None:
    """k-1 signatures: a compromised control plane can delay policy, never write it."""
    kept = client.refresh(world.source())
    for signers in ([], world.approvers[:1], [world.approvers[0], signer("mallory")]):
        refuses(
            Reason.QUORUM_NOT_MET,
            lambda signers=signers: client.refresh(forge_targets(world, b"evil", signers)),  # type: ignore[misc]
        )
    assert client.load() == kept
    assert client.refresh(forge_targets(world, b"good", world.approvers[:2])).base.data == b"good"


def test_root_that_counts_one_key_twice_is_refused_and_the_old_policy_stays(
    world: World, client: PolicyClient
) -> None:
    """python-tuf would accept one approver under two ids; the client does not."""
    kept = client.refresh(world.source())
    alice = world.approvers[0]
    root = world.rotate(threshold=2)
    root.signed.add_key(twin(alice).public_key, "targets")
    root.signatures.clear()
    source = forge_targets(world, b"evil", [alice, twin(alice)])
    source.files["metadata/2.root.json"] = sign_raw(root, world.roots[:2])
    refuses(Reason.METADATA_UNSAFE, lambda: client.refresh(source))
    assert client.load() == kept
    assert client.refresh(world.source()) == kept


@pytest.mark.parametrize("role", ["root", "targets"])
def test_root_with_a_threshold_of_one_is_refused(role: str, world: World, client: PolicyClient) -> None:
    """A quorum of root holders cannot quietly abolish the quorum."""
    client.refresh(world.source())
    root = world.rotate(threshold=2)
    root.signed.roles[role].threshold = 1
    root.signatures.clear()
    source = world.source()
    source.files["metadata/2.root.json"] = sign_raw(root, world.roots[:2])
    refuses(Reason.METADATA_UNSAFE, lambda: client.refresh(source))


def test_anchor_that_is_unsafe_or_unsigned_is_refused_at_once(world: World, tmp_path: Path) -> None:
    """A node does not start from a root that it would not follow."""
    unsigned = Metadata[Root].from_bytes(world.root)
    unsigned.signatures.clear()
    refuses(Reason.QUORUM_NOT_MET, lambda: PolicyClient(tmp_path / "p", unsigned.to_bytes()))
    refuses(Reason.METADATA_INVALID, lambda: PolicyClient(tmp_path / "p", b"garbage"))


def test_targets_that_list_a_second_file_are_refused(world: World, client: PolicyClient) -> None:
    """A role speaks of its own bundle alone."""
    metadata = world.proposal(b"x")
    target = metadata.signed.targets["base.tar.gz"]
    both = {"base.tar.gz": target, "../../etc/passwd": target}
    source = forge_targets(world, b"x", world.approvers[:2], targets=both)
    refuses(Reason.METADATA_UNSAFE, lambda: client.refresh(source))


def test_swapped_archive_and_mixed_versions_are_refused(world: World, client: PolicyClient) -> None:
    """Mix and match: every file must be the one its signed parent pins."""
    client.refresh(world.source())
    old = dict(world.files)
    world.release(b"bundle 2")
    swapped = world.source()
    swapped.files[f"targets/{digest(b'bundle 2')}.base.tar.gz"] = b"bundle X"
    refuses(Reason.DIGEST_MISMATCH, lambda: client.refresh(swapped))
    for name in ("metadata/2.targets.json", "metadata/2.snapshot.json"):
        mixed = world.source()
        mixed.files[name] = old[name.replace("2.", "1.")]
        error = refuses(Reason.DIGEST_MISMATCH, lambda mixed=mixed: client.refresh(mixed))  # type: ignore[misc]
        assert isinstance(error, EvidenceError)
    assert client.load().base.data == b"bundle 1"
    assert client.refresh(world.source()).base.data == b"bundle 2"


def test_older_repository_is_a_rollback(world: World, client: PolicyClient) -> None:
    """A source that serves last week's files is refused."""
    old = world.source()
    world.release(b"bundle 2")
    kept = client.refresh(world.source())
    refuses(Reason.POLICY_ROLLBACK, lambda: client.refresh(old))
    assert client.load() == kept


def test_wiped_cache_does_not_make_a_rollback_acceptable(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """The floor lives outside the cache: validly signed older metadata stays refused."""
    old = world.source()
    world.release(b"bundle 2")
    client.refresh(world.source())
    shutil.rmtree(tmp_path / "policy")
    fresh = PolicyClient(tmp_path / "policy", world.root)
    refuses(Reason.POLICY_ROLLBACK, lambda: fresh.refresh(old))
    refuses(Reason.POLICY_MISSING, fresh.load)
    assert fresh.refresh(world.source()).base.data == b"bundle 2"


def test_restored_old_cache_is_refused_until_refreshed(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """A disk restored from a backup does not bring yesterday's policy back."""
    client.refresh(world.source())
    shutil.copytree(tmp_path / "policy", tmp_path / "backup")
    world.release(b"bundle 2")
    client.refresh(world.source())
    shutil.rmtree(tmp_path / "policy")
    shutil.copytree(tmp_path / "backup", tmp_path / "policy")
    refuses(Reason.POLICY_ROLLBACK, client.load)
    assert client.refresh(world.source()).base.data == b"bundle 2"


def test_damaged_floor_is_refused_with_advice(world: World, client: PolicyClient, tmp_path: Path) -> None:
    """Without its memory a node cannot exclude a rollback; a person must decide."""
    client.refresh(world.source())
    for damage in (b"", b"{}", b'{"versions": {"root": "1"}, "online": {}}', b"[" * 10_000):
        (tmp_path / "policy.floor.json").write_bytes(damage)
        assert "delete it" in refuses(Reason.POLICY_ROLLBACK, client.load).detail
        refuses(Reason.POLICY_ROLLBACK, lambda: client.refresh(world.source()))


def test_crash_between_cache_and_floor_does_not_brick(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """The cache may be ahead of the floor (killed in between): it is accepted and the floor follows."""
    client.refresh(world.source())
    floor = (tmp_path / "policy.floor.json").read_bytes()
    world.release(b"bundle 2")
    kept = client.refresh(world.source())
    (tmp_path / "policy.floor.json").write_bytes(floor)
    assert client.load() == kept
    assert json.loads((tmp_path / "policy.floor.json").read_bytes())["versions"]["targets"] == 2


def test_namespace_hidden_from_the_snapshot_is_refused(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """A control plane must not drop a namespace's prohibitions by not listing it, not even after a wipe."""
    payers = [signer("p1"), signer("p2")]
    world.delegate("payments", Holders(public(payers), 2))
    world.release(b"p1", "payments", payers)
    client.refresh(world.source())
    data = world.state.roles["targets"]
    source = pinned(world, data, Metadata[Targets].from_bytes(data).signed, {})
    refuses(Reason.METADATA_INVALID, lambda: client.refresh(source))
    shutil.rmtree(tmp_path / "policy")
    refuses(Reason.POLICY_ROLLBACK, lambda: client.refresh(source))


def test_stolen_timestamp_key_that_ran_ahead_is_forgotten_after_rotation(
    world: World, client: PolicyClient
) -> None:
    """Fast-forward: huge versions signed with a stolen key must not lock nodes out for ever."""
    timestamp = Metadata[Timestamp].from_bytes(world.files["metadata/timestamp.json"])
    timestamp.signed.version = 2**40
    timestamp.signatures.clear()
    source = world.source()
    source.files["metadata/timestamp.json"] = sign_raw(timestamp, [world.online.timestamp])  # type: ignore[list-item]
    assert client.refresh(source).versions["timestamp"] == 2**40
    new, old = signer("timestamp"), world.online.timestamp.public_key.keyid
    root = world.rotate(role="timestamp", add=[new.public_key], remove=[old])
    world.online = type(world.online)(world.online.snapshot, new)
    world.publish({"root": root.to_bytes()})
    assert client.refresh(world.source()).versions["timestamp"] == 2


def test_keys_that_a_new_root_replaced_extend_no_lease_though_what_came_with_it_was_refused(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """A stolen quorum ran ahead: the rotation against it brings an older version, and must count all the same."""
    thief = copy.deepcopy(world)  # the approvers' and the online keys of the first root
    for number in (2, 3, 4):
        thief.release(b"bundle of the thief %d" % number)
    held = client.refresh(thief.source())
    new, old = signer("timestamp"), world.online.timestamp.public_key.keyid
    root = world.rotate(role="timestamp", add=[new.public_key], remove=[old])
    world.online = type(world.online)(world.online.snapshot, new)
    world.publish({"root": root.to_bytes()})
    refuses(Reason.POLICY_ROLLBACK, lambda: client.refresh(world.source()))
    thief.renew()
    refuses(Reason.POLICY_ROLLBACK, lambda: client.refresh(thief.source()))
    again = PolicyClient(tmp_path / "policy", world.root)
    assert again.load() == held, "what is in force may be resumed, within its lease"
    refuses(Reason.POLICY_ROLLBACK, lambda: again.refresh(thief.source()))
    for number in (2, 3, 4, 5):
        world.release(b"bundle %d" % number)
    assert again.refresh(world.source()).base.version == 5


def test_a_root_counts_although_the_one_after_it_is_refused(world: World, client: PolicyClient) -> None:
    """Whoever adds a root that nobody can accept must not undo the rotation before it."""
    thief = copy.deepcopy(world)
    client.refresh(thief.source())
    new, old = signer("timestamp"), world.online.timestamp.public_key.keyid
    root = world.rotate(role="timestamp", add=[new.public_key], remove=[old])
    world.online = type(world.online)(world.online.snapshot, new)
    world.publish({"root": root.to_bytes()})
    unsafe = world.rotate(threshold=2)
    unsafe.signed.roles["targets"].threshold = 1
    unsafe.signatures.clear()
    source = world.source()
    source.files["metadata/3.root.json"] = sign_raw(unsafe, world.roots[:2])
    refuses(Reason.METADATA_UNSAFE, lambda: client.refresh(source))
    thief.renew()
    refuses(Reason.POLICY_ROLLBACK, lambda: client.refresh(thief.source()))
    assert client.refresh(world.source()).versions["root"] == 2


def test_expired_lease_is_refused_online_and_still_loads_offline(
    tmp_path: Path,
) -> None:
    """Freeze: a source that stops renewing cannot pass for fresh; the node decides how long to go on."""
    world = World()
    world.release(b"bundle 1", lease_ttl_s=2)
    clock = SteppingClock()
    client = PolicyClient(tmp_path / "policy", world.root, clock=clock)
    kept = client.refresh(world.source())
    clock.offset_ms = 10 * 60 * 1000
    refuses(Reason.POLICY_EXPIRED, lambda: client.refresh(world.source()))
    loaded = client.load()
    assert loaded == kept and loaded.lease_expires_ms < clock.now_ms()
    assert PolicyClient(tmp_path / "policy", world.root).load() == kept


def test_lease_that_expired_before_the_first_contact_is_refused(tmp_path: Path) -> None:
    """python-tuf's own expiry check, on metadata signed ten minutes ago."""
    world = World()
    world.release(b"bundle 1", now_ms=world.now_ms - 600_000)
    client = PolicyClient(tmp_path / "policy", world.root)
    refuses(Reason.POLICY_EXPIRED, lambda: client.refresh(world.source()))
    refuses(Reason.POLICY_MISSING, client.load)
    world.renew()
    assert client.refresh(world.source()).base.version == 1


def test_lease_that_lasts_too_long_is_unsafe(world: World, client: PolicyClient) -> None:
    """A stolen timestamp key must not buy itself a year of freeze."""
    timestamp = Metadata[Timestamp].from_bytes(world.files["metadata/timestamp.json"])
    root = Metadata[Root].from_bytes(world.root)
    timestamp.signed.expires = root.signed.expires
    timestamp.signed.version += 1
    timestamp.signatures.clear()
    source = world.source()
    source.files["metadata/timestamp.json"] = sign_raw(timestamp, [world.online.timestamp])  # type: ignore[list-item]
    refuses(Reason.METADATA_UNSAFE, lambda: client.refresh(source))


def test_announcement_spares_the_timestamp_download(world: World, client: PolicyClient) -> None:
    """A good announcement is used as it is."""
    client.refresh(world.source())
    new = world.renew()["metadata/timestamp.json"]
    source = world.source()
    assert client.refresh(source, new).versions["timestamp"] == 2
    assert source.asked == ["metadata/2.root.json"]
    assert client.rejected_announcement is None


def test_garbage_replayed_or_forged_announcement_changes_nothing_but_is_reported(
    world: World, client: PolicyClient
) -> None:
    """The broker is untrusted: whatever it says, the source decides."""
    old = world.files["metadata/timestamp.json"]
    world.release(b"bundle 2")
    client.refresh(world.source())
    forged = Metadata[Timestamp].from_bytes(world.files["metadata/timestamp.json"])
    forged.signed.version = 99
    forged.signatures.clear()
    stranger = sign_raw(forged, [signer("mallory")])
    cases = {
        b"": Reason.METADATA_INVALID,
        b"\xff\x00": Reason.METADATA_INVALID,
        b"[" * 20_000: Reason.METADATA_INVALID,
        b" " * (limits.MAX_ANNOUNCEMENT_BYTES + 1): Reason.LIMIT_EXCEEDED,
        old: Reason.POLICY_ROLLBACK,
        stranger: Reason.QUORUM_NOT_MET,
        world.root: Reason.METADATA_INVALID,
    }
    for announced, reason in cases.items():
        policy = client.refresh(world.source(), announced)
        assert policy.base.data == b"bundle 2"
        assert client.rejected_announcement is not None
        assert client.rejected_announcement.reason is reason
    client.refresh(world.source())
    assert client.rejected_announcement is None


class Endless:
    """Serves one path without end; every chunk takes `step_ms`."""

    def __init__(
        self, inner: DictSource, path: str, clock: SteppingClock, chunk: bytes, step_ms: int
    ) -> None:
        self.inner, self.path, self.clock, self.chunk, self.step_ms = inner, path, clock, chunk, step_ms
        self.served = 0

    def fetch(self, path: str) -> Iterator[bytes]:
        if path != self.path:
            yield from self.inner.fetch(path)
            return
        while True:
            self.clock.mono += self.step_ms
            self.served += len(self.chunk)
            yield self.chunk


PATHS = [
    "metadata/2.root.json",
    "metadata/timestamp.json",
    "metadata/2.snapshot.json",
    "metadata/2.targets.json",
]


@pytest.mark.parametrize("path", [*PATHS, f"targets/{digest(b'bundle 2')}.base.tar.gz"])
def test_endless_and_slow_downloads_are_given_up(path: str, tmp_path: Path) -> None:
    """Endless data hits the length cap, a drip hits the pace, silence hits the deadline; the old policy stays."""
    world, clock = World(), SteppingClock()
    world.release(b"bundle 1")
    client = PolicyClient(tmp_path / "policy", world.root, clock=clock)
    kept = client.refresh(world.source())
    world.release(b"bundle 2")
    flood = Endless(world.source(), path, clock, b"x" * 65536, 0)
    refuses(Reason.LIMIT_EXCEEDED, lambda: client.refresh(flood))
    assert flood.served <= 2 * limits.MAX_METADATA_BYTES
    drip = Endless(world.source(), path, clock, b"", 100)
    refuses(Reason.DOWNLOAD_TOO_SLOW, lambda: client.refresh(drip))
    silent = Endless(world.source(), path, clock, b"", 120_000)
    refuses(Reason.DOWNLOAD_TOO_SLOW, lambda: client.refresh(silent))
    assert client.load() == kept


def test_source_failures_are_named(world: World, client: PolicyClient) -> None:
    """Missing files and broken connections say which file and why."""

    class Broken:
        def fetch(self, path: str) -> Iterator[bytes]:
            raise ConnectionResetError(104, "Connection reset by peer")

    assert "reset" in refuses(Reason.SOURCE_UNAVAILABLE, lambda: client.refresh(Broken())).detail
    empty = DictSource({})
    refuses(Reason.POLICY_MISSING, lambda: client.refresh(empty))
    partial = world.source()
    del partial.files["metadata/1.targets.json"]
    assert "1.targets" in refuses(Reason.SOURCE_UNAVAILABLE, lambda: client.refresh(partial)).detail


def test_archive_larger_than_the_limit_is_refused_before_it_is_fetched(
    world: World, client: PolicyClient
) -> None:
    """A signed length is still a length."""
    metadata = world.proposal(b"x")
    metadata.signed.targets["base.tar.gz"].length = limits.MAX_BUNDLE_ARCHIVE_BYTES + 1
    source = pinned(world, sign_raw(metadata, world.approvers[:2]), metadata.signed, {})
    refuses(Reason.METADATA_UNSAFE, lambda: client.refresh(source))
    assert not any(path.startswith("targets/") for path in source.asked)


def cache_files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != ".lock"]


def test_half_written_cache_is_recovered_by_the_next_refresh(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """kill -9 or a failing disk: truncated, emptied or deleted files never load, and never stay."""
    kept = client.refresh(world.source())
    for file in cache_files(tmp_path / "policy"):
        whole = file.read_bytes()
        for damage in (whole[: len(whole) // 2], b"", b"\x00" * 100, None):
            if damage is None:
                file.unlink()
            else:
                file.write_bytes(damage)
            with pytest.raises(MeshError):
                client.load()
            assert client.refresh(world.source()) == kept
            assert client.load() == kept


def test_leftovers_of_a_killed_refresh_are_removed(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """Scratch directories and archives that nothing names do not pile up."""
    client.refresh(world.source())
    left = tmp_path / "policy" / ".refresh-dead"
    left.mkdir()
    (left / "timestamp.json").write_bytes(b"half")
    (tmp_path / "policy" / "targets" / ("00" * 32)).write_bytes(b"orphan")
    world.release(b"bundle 2")
    client.refresh(world.source())
    assert not left.exists()
    assert [p.name for p in (tmp_path / "policy" / "targets").iterdir()] == [digest(b"bundle 2")]


def test_tampered_cache_never_loads(world: World, client: PolicyClient, tmp_path: Path) -> None:
    """Whoever can write the cache cannot make it say anything the approvers did not sign."""
    client.refresh(world.source())
    accepted = tmp_path / "policy" / "accepted.json"
    record = json.loads(accepted.read_bytes())
    targets = json.loads(record["roles"]["targets"])
    targets["signed"]["expires"] = "2099-01-01T00:00:00Z"
    edits: list[dict[str, Any]] = [
        {"roles": {"targets": json.dumps(targets)}},
        {"roles": {}},
        {"roles": {"../../x": "{}"}},
        {"snapshot": record["timestamp"]},
        {"roots": [world.root.decode()] * 3},
        {"roots": 7},
        {"format": 2},
    ]
    for edit in edits:
        accepted.write_text(json.dumps(record | edit))
        if edit.get("roots") == [world.root.decode()] * 3:
            client.load()  # roots not newer than the anchor are ignored
        else:
            with pytest.raises(EvidenceError):
                client.load()
    accepted.write_text(json.dumps(record))
    client.load()


def test_second_process_on_one_cache_is_refused(world: World, client: PolicyClient, tmp_path: Path) -> None:
    """Two writers would undo each other's versions."""
    client.refresh(world.source())
    descriptor = os.open(tmp_path / "policy" / ".lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        refuses(Reason.CONFLICT, lambda: client.refresh(world.source()))
    finally:
        os.close(descriptor)
    client.refresh(world.source())


def test_unwritable_cache_is_a_clear_error(world: World, tmp_path: Path) -> None:
    """A full or read-only disk is a state, not a traceback."""
    (tmp_path / "file").write_bytes(b"")
    client = PolicyClient(tmp_path / "file" / "policy", world.root)
    with pytest.raises(StateError) as caught:
        client.refresh(world.source())
    assert caught.value.reason is Reason.INTERNAL


def test_a_floor_that_cannot_be_read_stops_the_policy_and_not_the_node(
    world: World, client: PolicyClient, tmp_path: Path
) -> None:
    """Any failure of the disk has a reason; an exception of another kind would end the sidecar at its start."""
    client.refresh(world.source())
    floor = tmp_path / "policy.floor.json"
    floor.unlink()
    floor.mkdir()
    refuses(Reason.INTERNAL, client.load)
    refuses(Reason.INTERNAL, lambda: client.refresh(world.source()))
    (archive,) = (tmp_path / "policy" / "targets").iterdir()
    floor.rmdir()
    archive.unlink()
    archive.mkdir()
    refuses(Reason.INTERNAL, client.load)
