"""The cases of the TUF conformance suite against our client, over HTTP on loopback (key rotations: test_tuf_rotations).

Each case runs twice. `plain`: python-tuf with our fetcher and limits, through the suite's command line protocol;
it must do what the suite expects. `policy`: the whole `PolicyClient`, which differs on purpose in three ways:

- it refuses shapes that plain TUF allows: the stories whose expectation says `plain_accepts`, with the reason;
- a policy version never goes back, not even by the recovery that TUF describes;
- a refresh that fails changes nothing, where plain TUF keeps the part that verified (a newer root, say).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root

from tests.support.raw_repository import RawRepository, in_days
from tests.support.tuf_clients import Plain, refresh_policy
from tests.support.tuf_world import signer, twin
from trust.edge.tuf_client import PolicyClient
from trust.errors import Reason


@dataclass(frozen=True)
class Expect:
    """What a refresh must come to now: None is success; `plain` gives versions that plain TUF then holds."""

    refused: Reason | None = None
    plain: dict[str, int] | None = None
    plain_accepts: bool = False  # where only our client refuses


Story = Iterator[Expect]
STORIES: dict[str, Callable[[RawRepository], Story]] = {}


def story(function: Callable[[RawRepository], Story]) -> Callable[[RawRepository], Story]:
    STORIES[function.__name__] = function
    return function


@story
def timestamp_content_changes(repository: RawRepository) -> Story:
    """The same version with other content: the one already held stays."""
    yield Expect(plain={"timestamp": 1})
    repository.bundle = b"bundle 2"
    repository.commit(bump=("targets", "snapshot"))
    yield Expect(plain={"timestamp": 1, "snapshot": 1, "targets": 1})


@story
def timestamp_rollback(repository: RawRepository) -> Story:
    """A lower version than the one held."""
    repository.commit_timestamp()
    yield Expect(plain={"timestamp": 2})
    repository.timestamp.version = 0
    repository.commit_timestamp()
    yield Expect(Reason.POLICY_ROLLBACK, plain={"timestamp": 2})


@story
def snapshot_rollback(repository: RawRepository) -> Story:
    """A newer timestamp that points to an older snapshot."""
    repository.commit()
    yield Expect(plain={"timestamp": 2, "snapshot": 2})
    repository.snapshot.version = 0
    repository.commit()
    yield Expect(Reason.POLICY_ROLLBACK, plain={"timestamp": 2, "snapshot": 2})


@story
def targets_rollback(repository: RawRepository) -> Story:
    """A newer snapshot that points to older targets."""
    repository.commit()
    yield Expect(plain={"targets": 2})
    repository.targets.version = 0
    repository.commit()
    yield Expect(Reason.POLICY_ROLLBACK, plain={"targets": 2})


@story
def role_dropped_from_snapshot(repository: RawRepository) -> Story:
    """A newer snapshot that no longer lists a role that it listed."""
    repository.delegate("targets", "payments", ["payments/*"], {"payments/bundle.tar.gz": b"p"})
    repository.commit()
    yield Expect(plain={"snapshot": 2})
    repository.delegated.clear()
    del repository.snapshot.meta["payments.json"]
    repository.commit()
    yield Expect(Reason.METADATA_INVALID, plain={"snapshot": 2})


@story
def timestamp_fast_forward_recovery(repository: RawRepository) -> Story:
    """A stolen timestamp key ran ahead; its replacement lets versions begin again."""
    repository.timestamp.version = 10_000
    repository.commit_timestamp()
    yield Expect(plain={"timestamp": 10_001})
    repository.rotate("timestamp")
    repository.timestamp.version = 0
    repository.commit_timestamp()
    yield Expect(plain={"timestamp": 1})


@story
def snapshot_fast_forward_recovery(repository: RawRepository) -> Story:
    """The same for the snapshot: both online keys are replaced."""
    repository.snapshot.version = 10_000
    repository.commit()
    yield Expect(plain={"snapshot": 10_001})
    repository.rotate("snapshot")
    repository.rotate("timestamp")
    repository.snapshot.version = 0
    repository.commit()
    yield Expect(plain={"snapshot": 1})


@story
def targets_fast_forward_recovery(repository: RawRepository) -> Story:
    """Plain TUF lets targets go back once the snapshot key is replaced; a policy version never goes back."""
    repository.targets.version = 99
    repository.commit()
    yield Expect(plain={"targets": 100})
    repository.rotate("snapshot")
    repository.targets.version = 1
    repository.commit()
    yield Expect(Reason.POLICY_ROLLBACK, plain={"targets": 2}, plain_accepts=True)


@story
def snapshot_version_mismatch(repository: RawRepository) -> Story:
    """The file pinned as version 1 says that it is version 2."""
    yield Expect()
    repository.commit()
    repository.files["metadata/2.snapshot.json"] = repository.files["metadata/1.snapshot.json"]
    yield Expect(Reason.DIGEST_MISMATCH, plain={"snapshot": 1})


@story
def targets_version_mismatch(repository: RawRepository) -> Story:
    """Targets other than the pinned ones, properly signed."""
    yield Expect()
    repository.commit()
    repository.files["metadata/2.targets.json"] = repository.files["metadata/1.targets.json"]
    yield Expect(Reason.DIGEST_MISMATCH, plain={"targets": 1})


@story
def root_expired(repository: RawRepository) -> Story:
    """An expired root is the newest root all the same, and nothing below it counts."""
    yield Expect()
    repository.root.expires = in_days(-1)
    repository.commit_root()
    repository.commit()
    yield Expect(Reason.POLICY_EXPIRED, plain={"root": 2, "timestamp": 1, "snapshot": 1})


@story
def expired_root_is_a_step(repository: RawRepository) -> Story:
    """Only the newest root must be in date; those on the way to it need not."""
    repository.root.expires = in_days(-1)
    repository.commit_root()
    repository.root.expires = in_days(30)
    repository.commit_root()
    yield Expect(plain={"root": 3})


@story
def timestamp_expired(repository: RawRepository) -> Story:
    """A lease that is over."""
    yield Expect()
    repository.timestamp.expires = in_days(-1)
    repository.commit_timestamp()
    yield Expect(Reason.POLICY_EXPIRED, plain={"snapshot": 1})


@story
def snapshot_expired(repository: RawRepository) -> Story:
    """A fresh lease on an expired snapshot."""
    yield Expect()
    repository.snapshot.expires = in_days(-1)
    repository.commit()
    yield Expect(Reason.POLICY_EXPIRED, plain={"targets": 1})


@story
def targets_expired(repository: RawRepository) -> Story:
    """A fresh lease on expired targets."""
    yield Expect()
    repository.targets.expires = in_days(-1)
    repository.commit()
    yield Expect(Reason.POLICY_EXPIRED, plain={"targets": 1})


@story
def custom_fields(repository: RawRepository) -> Story:
    """Unknown members are covered by signatures and otherwise ignored."""
    yield Expect()
    repository.root.unrecognized_fields["custom-field"] = "value"
    key_id = repository.root.roles["root"].keyids[0]
    repository.root.keys[key_id].unrecognized_fields["extra-field"] = {"a": 1, "b": [2]}
    repository.root.keys[key_id].unrecognized_fields["keyid_hash_algorithms"] = ["md5"]
    repository.root.roles["root"].unrecognized_fields["another-field"] = "value"
    repository.commit_root()
    repository.targets.targets["base.tar.gz"].unrecognized_fields["custom"] = {"x": None}
    repository.commit()
    yield Expect(plain={"root": 2, "targets": 2})


@story
def duplicate_keys_root(repository: RawRepository) -> Story:
    """One key under many ids and a single signature of it do not reach a threshold of three."""
    yield Expect()
    one = signer("one")
    for number in range(3):
        repository.root.add_key(twin(one, f"{number:064x}").public_key, "snapshot")
    repository.root.roles["snapshot"].threshold = 3
    repository.commit_root()
    repository.commit()
    yield Expect(Reason.QUORUM_NOT_MET, plain={"snapshot": 1})


@story
def one_key_signs_under_many_ids(repository: RawRepository) -> Story:
    """The same with a signature under each id: plain TUF counts ids, we count keys."""
    yield Expect()
    one = signer("one")
    twins = [twin(one, f"{number:064x}") for number in range(3)]
    repository.set_role("snapshot", twins, 3)
    repository.commit_root()
    repository.signers["snapshot"] = twins
    repository.commit()
    yield Expect(Reason.METADATA_UNSAFE, plain={"snapshot": 2}, plain_accepts=True)


@story
def keys_only_in_root_do_not_sign(repository: RawRepository) -> Story:
    """A raised threshold is not met by keys that exist but did not sign."""
    yield Expect()
    repository.set_role("snapshot", [*repository.signers["snapshot"], signer("a"), signer("b")], 2)
    repository.commit_root()
    repository.commit()
    yield Expect(Reason.QUORUM_NOT_MET, plain={"root": 2, "snapshot": 1})


@story
def nested_delegation(repository: RawRepository) -> Story:
    """Plain TUF walks delegations of delegations; a namespace may not delegate."""
    bundle = {"payments/bundle.tar.gz": b"p"}
    repository.delegate("targets", "payments", ["payments/*"], bundle)
    repository.delegate("payments", "deep", ["payments/*"], {})
    repository.commit()
    yield Expect(Reason.METADATA_UNSAFE, plain_accepts=True)


@story
def wide_delegation(repository: RawRepository) -> Story:
    """Plain TUF lets a role have every path; a namespace has its own folder."""
    repository.delegate("targets", "payments", ["*"], {"payments/bundle.tar.gz": b"p"})
    repository.commit()
    yield Expect(Reason.METADATA_UNSAFE, plain_accepts=True)


@pytest.mark.parametrize("role", ["?", "#", "/delegated", "../delegated"])
def test_unusual_role_name(role: str, tmp_path: Path) -> None:
    """Plain TUF quotes such names; for us they are no names, and no file of that name is asked for."""
    repository = RawRepository()
    root = repository.files["metadata/1.root.json"]
    repository.delegate("targets", role, ["*"], {})
    repository.commit()
    with repository.served() as url:
        plain = Plain(tmp_path, url, root)
        assert plain.download("missing") is None
        assert f"metadata/1.{role}.json" in repository.asked
        assert len([file for file in plain.metadata.iterdir() if file.suffix == ".json"]) == 5
        repository.asked.clear()
        assert refresh_policy(tmp_path, url, root) is Reason.METADATA_UNSAFE
        assert not [path for path in repository.asked if role in path]


@story
def second_file(repository: RawRepository) -> Story:
    """Plain TUF lists any files; targets lists the base bundle alone."""
    repository._list(repository.targets, "other.txt", b"x")
    repository.commit()
    yield Expect(Reason.METADATA_UNSAFE, plain_accepts=True)


@story
def no_consistent_snapshot(repository: RawRepository) -> Story:
    """Plain TUF allows unversioned files; we do not."""
    repository.root.consistent_snapshot = False
    repository.commit_root()
    for name in ("snapshot", "targets"):
        repository.files[f"metadata/{name}.json"] = repository.files[f"metadata/1.{name}.json"]
    yield Expect(Reason.METADATA_UNSAFE, plain_accepts=True)


@story
def unpinned_metadata(repository: RawRepository) -> Story:
    """Plain TUF lets length and hashes of metadata be left out; we do not."""
    repository.timestamp.snapshot_meta.length = None
    repository.timestamp.snapshot_meta.hashes = None
    repository.commit_timestamp()
    yield Expect(Reason.METADATA_UNSAFE, plain_accepts=True)


@pytest.mark.parametrize("name", STORIES)
def test_story(name: str, tmp_path: Path) -> None:
    """What each refresh comes to, for plain TUF and for us; after a refusal the policy before it is in force."""
    repository = RawRepository()
    root = repository.files["metadata/1.root.json"]
    kept: dict[str, int] | None = None
    with repository.served() as url:
        plain = Plain(tmp_path, url, root)
        for expected in STORIES[name](repository):
            assert plain.refresh() is (expected.refused is None or expected.plain_accepts)
            for role, version in (expected.plain or {}).items():
                assert plain.version(role) == version
            outcome = refresh_policy(tmp_path, url, root)
            if expected.refused is None:
                assert isinstance(outcome, dict), outcome
                kept = outcome
                assert {role: outcome[role] for role in expected.plain or {}} == (expected.plain or {})
            else:
                assert outcome is expected.refused
            if kept is not None:
                assert PolicyClient(tmp_path / "policy", root).load().versions == kept


def test_first_refresh_asks_for_the_expected_files(tmp_path: Path) -> None:
    """Root probe, timestamp, snapshot, targets, and for us the bundle; nothing else."""
    repository = RawRepository()
    root = repository.files["metadata/1.root.json"]
    files = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    metadata = [f"metadata/{file}" for file in files]
    with repository.served() as url:
        assert Plain(tmp_path, url, root).refresh()
        assert repository.asked == metadata
        repository.asked.clear()
        assert refresh_policy(tmp_path, url, root) == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
        assert repository.asked[:4] == metadata
        assert [path.partition("/")[0] for path in repository.asked[4:]] == ["targets"]


def _without_version(root: bytes) -> bytes:
    value: dict[str, Any] = json.loads(root)
    del value["signed"]["version"]
    return json.dumps(value).encode()


def _wrongly_signed(root: bytes) -> bytes:
    metadata = Metadata[Root].from_bytes(root)
    for signature in metadata.signatures.values():
        signature.signature = "00" * 64
    return metadata.to_bytes()


@pytest.mark.parametrize("spoil", [_without_version, _wrongly_signed])
def test_unusable_anchor_asks_for_nothing(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """A root that is malformed or not signed is refused before the source is contacted."""
    repository = RawRepository()
    root = spoil(repository.files["metadata/1.root.json"])
    with repository.served() as url:
        assert not Plain(tmp_path, url, root).refresh()
        outcome = refresh_policy(tmp_path, url, root)
        assert outcome in {Reason.METADATA_INVALID, Reason.QUORUM_NOT_MET}
        assert repository.asked == []


def test_downloads_are_the_listed_files_only(tmp_path: Path) -> None:
    """A file is followed through its versions; a substituted or unlisted one is refused."""
    repository = RawRepository()
    root = repository.files["metadata/1.root.json"]
    with repository.served() as url:
        plain = Plain(tmp_path, url, root)
        assert plain.download("missing") is None
        assert plain.version("targets") == 1
        for number in range(2, 5):
            repository.bundle = f"bundle {number}".encode()
            repository.commit()
            assert plain.download("base.tar.gz") == repository.bundle
            before = len(repository.asked)
            assert plain.download("base.tar.gz") == repository.bundle
            assert not [path for path in repository.asked[before:] if path.startswith("targets/")]
            assert isinstance(refresh_policy(tmp_path, url, root), dict)
        kept = repository.bundle
        repository.bundle = b"bundle 5"
        repository.commit()
        for path in [path for path in repository.files if path.startswith("targets/")]:
            repository.files[path] = b"bundle X"
        assert plain.download("base.tar.gz") is None
        assert kept in [file.read_bytes() for file in plain.downloads.iterdir()]
        assert refresh_policy(tmp_path, url, root) is Reason.DIGEST_MISMATCH
        assert PolicyClient(tmp_path / "policy", root).load().base.data == kept
