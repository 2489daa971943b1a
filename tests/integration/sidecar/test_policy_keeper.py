"""From signed metadata to force: activation, its self-test, and bundles that must not come into force."""

import asyncio
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.core.bundle_state import BundleState, Lease, Record
from sidecar.core.call import RefusedError
from sidecar.core.pipeline import Pipeline
from sidecar.core.readiness import Alarms
from sidecar.edge import activation
from sidecar.edge.policy_keeper import PolicyKeeper
from sidecar.edge.record_file import load_record, save_record
from tests.support.bundles import BASE_FILES
from tests.support.bundles import archive_of as archive_of_files
from tests.support.control_plane import source as policy_folder
from tests.support.sidecar_core import attempt
from tests.support.tuf_world import World
from trust import limits
from trust.edge.clock import SystemClock
from trust.edge.tuf_client import PolicyClient
from trust.errors import EvidenceError, InputError, MeshError, Reason, StateError
from trust.policy.source import archive_of, build, load

UNCONDITIONAL = b'@id("everything")\npermit(principal, action, resource);\n'


def bundle(version: int = 1, *, trust_domain: str = "mesh.local", ttl_s: int = 60) -> bytes:
    """Return a base bundle in which alice may pay."""
    return build(policy_folder(version, trust_domain=trust_domain, ttl_s=ttl_s))


def permits_everything() -> bytes:
    """Return a bundle that fails the self-test."""
    return unlinted({**policy_folder(trust_domain="mesh.local"), "policies/all.cedar": UNCONDITIONAL})


def unlinted(folder: dict[str, bytes]) -> bytes:
    """Return a bundle that `build` would refuse, as somebody's own tool might make it."""
    parsed, _ = load(folder)
    assert parsed is not None
    return archive_of(parsed)


def with_policy(text: str) -> bytes:
    """Return a bundle with a policy that nobody has checked."""
    return archive_of_files({**BASE_FILES, "policies/main.cedar": text.encode()})


class Node:
    """The policy half of a sidecar, on a real disk, fed by a dictionary of files."""

    def __init__(self, world: World, home: Path, *, local_level: int | None = None) -> None:
        self.world, self.clock, self.alarms = world, SystemClock(), Alarms()
        self.record_path = home / "policy-state.json"
        mono = self.clock.monotonic_ms()
        self.state = BundleState(load_record(self.record_path), monotonic_ms=mono)
        self.pipeline = Pipeline(
            node="n", trust_domain="mesh.local", boot_id="b", state=self.state, clock=self.clock
        )
        self.source = world.source()
        self.changes = 0
        self.keeper = PolicyKeeper(
            client=PolicyClient(home / "tuf", world.root, clock=self.clock),
            source=self.source,
            state=self.state,
            pipeline=self.pipeline,
            clock=self.clock,
            record_path=self.record_path,
            alarms=self.alarms,
            trust_domain="mesh.local",
            local_level=local_level,
            changed=self._changed,
            doubtful=asyncio.Event(),
        )

    def _changed(self) -> None:
        self.changes += 1

    async def refresh(self) -> None:
        """Look at what the world has published by now."""
        self.source.files = dict(self.world.files)
        await self.keeper.refresh(None)

    @property
    def version(self) -> int:
        """The version in force, 0 for none."""
        return 0 if self.state.in_force is None else self.state.in_force.version

    def reason(self) -> Reason:
        """Return the reason of a decision on alice's call."""
        call = attempt(method="shop.Payments/Pay")
        try:
            return self.pipeline.authorize(call, None, now_ms=self.clock.now_ms()).decision.reason
        except RefusedError as refused:
            return refused.decision.reason


@pytest.fixture
def world() -> World:
    """A fresh trust domain."""
    return World()


async def test_published_policy_comes_into_force_and_is_remembered(world: World, tmp_path: Path) -> None:
    """Record first, then force, then the word that something changed."""
    node = Node(world, tmp_path)
    assert node.reason() is Reason.POLICY_MISSING
    world.release(bundle())
    await node.refresh()
    assert (node.version, node.reason(), node.changes) == (1, Reason.ALLOWED, 1)
    assert load_record(node.record_path).versions["targets"] == 1
    assert node.keeper.held_version() == 1


async def test_nothing_published_yet_is_not_a_failure(world: World, tmp_path: Path) -> None:
    """A node that waits for the first policy must not back off for long."""
    node = Node(world, tmp_path)
    await node.refresh()
    assert (node.version, node.alarms.texts()) == (0, ())


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (permits_everything(), "BUNDLE_SELF_TEST_FAILED"),
        (b"not an archive", "BUNDLE_MALFORMED"),
        (
            gzip.compress(bytes(limits.MAX_BUNDLE_ENTRY_BYTES + 1024)),
            "BUNDLE_",
        ),  # a bomb: 64 kB that unpack to 64 MB
        (archive_of_files({**BASE_FILES, "policies/../../escape.cedar": b"x"}), "BUNDLE_UNSAFE_PATH"),
        (with_policy('@id("x") permit(principal, action, resource) when { context.nope };'), "does not fit"),
        (with_policy('permit(principal, action in Action::"any", resource);'), "has no name"),
        (bundle(trust_domain="other.mesh"), "other.mesh"),
    ],
)
async def test_bad_bundle_leaves_the_old_one_in_force_and_alarms(
    world: World, tmp_path: Path, bad: bytes, word: str
) -> None:
    """Even a quorum can sign a mistake."""
    node = Node(world, tmp_path)
    world.release(bundle())
    await node.refresh()
    world.release(bad)
    await node.refresh()
    assert (node.version, node.reason()) == (1, Reason.ALLOWED)
    (alarm,) = node.alarms.texts()
    assert word in alarm
    assert "version 1 stays in force" in alarm
    world.release(bundle(3))
    await node.refresh()
    assert (node.version, node.alarms.texts()) == (3, ())


async def test_bad_bundle_does_not_keep_the_old_policy_alive_beyond_its_lease(
    world: World, tmp_path: Path
) -> None:
    """The version that does not activate may withdraw rights: they must end within the signed bound all the same."""
    node = Node(world, tmp_path)
    world.release(bundle())
    await node.refresh()
    now_ms, mono_ms = node.clock.now_ms(), node.clock.monotonic_ms()
    before = node.state.remaining_ms(now_ms, mono_ms)
    world.release(permits_everything())
    for _ in range(3):
        await node.refresh()
        world.renew()
    assert node.state.remaining_ms(now_ms, mono_ms) == before, "a timestamp of the new version is no renewal"
    after_grace_ms = before[1]
    # Both clocks move: the lease ends with the first of them, and they were read a moment apart.
    assert node.state.lease(now_ms + after_grace_ms - 1, mono_ms + after_grace_ms - 1) is Lease.STALE
    assert node.state.lease(now_ms + after_grace_ms, mono_ms + after_grace_ms) is Lease.SEALED
    assert any("until its lease and grace are over" in text for text in node.alarms.texts())


async def test_bundle_that_breaks_activation_itself_is_an_alarm_and_no_crash_loop(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a quorum signed must not end the process now, nor at every start from disk."""

    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("secret detail")

    world.release(bundle())
    node = Node(world, tmp_path)
    await node.refresh()
    world.release(bundle(2))
    monkeypatch.setattr(activation, "compile_policy", broken)
    await node.refresh()
    assert (node.version, node.reason()) == (1, Reason.ALLOWED)
    (alarm,) = node.alarms.texts()
    assert "INTERNAL" in alarm and "secret" not in alarm
    again = Node(world, tmp_path)
    await again.keeper.resume()
    assert again.reason() is Reason.POLICY_MISSING


async def test_bad_bundle_is_not_compiled_again_at_every_look(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heavy bundle that does not activate must not burn a core for ever."""
    compiled = 0
    original = activation.compile_policy

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal compiled
        compiled += 1
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(activation, "compile_policy", counting)
    node = Node(world, tmp_path)
    world.release(permits_everything())
    for _ in range(3):
        await node.refresh()
        world.renew()
    assert compiled == 1
    assert node.reason() is Reason.POLICY_MISSING


async def test_restart_resumes_verified_policy_without_any_source(world: World, tmp_path: Path) -> None:
    """The control plane may be away."""
    first = Node(world, tmp_path)
    world.release(bundle())
    await first.refresh()
    second = Node(world, tmp_path)
    second.source.files.clear()
    await second.keeper.resume()
    assert (second.version, second.reason()) == (1, Reason.ALLOWED)
    assert second.source.asked == []


async def test_restart_continues_the_old_lease(world: World, tmp_path: Path) -> None:
    """A restart is no renewal: what an earlier run used up of the lease stays used up."""
    first = Node(world, tmp_path)
    world.release(bundle())
    await first.refresh()
    record = load_record(first.record_path)
    save_record(first.record_path, replace(record, fresh_until_ms=first.clock.now_ms() - 1_000_000))
    second = Node(world, tmp_path)
    await second.keeper.resume()
    assert second.reason() is Reason.POLICY_STALE
    assert any("grace are over" in text for text in second.alarms.texts())


async def test_wiped_cache_and_an_old_source_do_not_bring_an_old_policy_back(
    world: World, tmp_path: Path
) -> None:
    """Two floors stand outside the cache: the client's and the lease record's."""
    world.release(bundle())
    old = dict(world.files)
    world.release(bundle(2))
    node = Node(world, tmp_path)
    await node.refresh()
    for file in sorted((tmp_path / "tuf").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    again = Node(world, tmp_path)
    await again.keeper.resume()
    again.source.files = old
    with pytest.raises(MeshError, match="POLICY_ROLLBACK"):
        await again.keeper.refresh(None)
    assert again.version == 0
    (tmp_path / "tuf.floor.json").unlink()
    await again.keeper.refresh(None)
    assert again.version == 0
    assert any("POLICY_ROLLBACK" in text for text in again.alarms.texts())


async def test_renewed_lease_needs_no_activation(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timestamp changes every few seconds; the policies do not."""
    node = Node(world, tmp_path)
    world.release(bundle())
    await node.refresh()

    def never(*_: object, **__: object) -> object:
        raise AssertionError("compiled again")

    monkeypatch.setattr(activation, "compile_policy", never)
    world.renew()
    await node.refresh()
    assert node.keeper.held_version() == 2
    assert node.state.lease(node.clock.now_ms(), node.clock.monotonic_ms()) is Lease.FRESH


async def test_local_level_below_the_signed_one_is_refused_at_start(world: World, tmp_path: Path) -> None:
    """Known at start when there is a policy on disk."""
    first = Node(world, tmp_path)
    world.release(bundle())
    await first.refresh()
    with pytest.raises(InputError, match="lower than 4"):
        await Node(world, tmp_path, local_level=1).keeper.resume()


async def test_record_that_cannot_be_written_alarms_and_the_newer_policy_is_enforced(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not keep a node on the older policy."""
    node = Node(world, tmp_path)
    world.release(bundle())
    node.record_path.mkdir()
    await node.refresh()
    assert node.version == 1
    assert any("cannot be written" in text for text in node.alarms.texts())


def test_damaged_record_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Without the record a rollback cannot be excluded."""
    path = tmp_path / "policy-state.json"
    assert load_record(path) == Record()
    for text in ("", "{}", "[]", '{"format": 1, "floor_ms": "x"}', "\0"):
        path.write_text(text)
        with pytest.raises(StateError, match="restore it, or delete it"):
            load_record(path)


async def test_self_test_refuses_a_process_that_accepts_tampered_archives(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If digests were not checked, activation itself must notice."""
    world.release(bundle())
    node = Node(world, tmp_path)
    policy = PolicyClient(tmp_path / "other", world.root).refresh(world.source())

    def lenient(target: object) -> object:
        return object()

    activation.check_tampered_refused(policy.base)
    monkeypatch.setattr(activation, "read_target", lenient)
    with pytest.raises(EvidenceError, match="BUNDLE_SELF_TEST_FAILED"):
        activation.check_tampered_refused(policy.base)
    assert node.version == 0


async def test_target_with_other_bytes_than_signed_is_refused(world: World, tmp_path: Path) -> None:
    """Activation does not trust that the client checked."""
    world.release(bundle())
    policy = PolicyClient(tmp_path / "tuf", world.root).refresh(world.source())
    forged = replace(policy, base=replace(policy.base, data=bundle(9)))
    with pytest.raises(EvidenceError, match="DIGEST_MISMATCH"):
        await activation.activate(forged, trust_domain="mesh.local")
