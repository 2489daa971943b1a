"""Where denials are written, and when: what a person hands in before they hear of it, what a peer brought beside."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.emergency import FIRST
from tests.support.eventually import eventually
from trust import limits
from trust.edge.denial_keeper import DenialKeeper
from trust.edge.files import write_atomic
from trust.mesh import MeshSettings
from trust.misbehaviour import Anchors
from trust.revocation import Kind

DOMAIN = "mesh.test"
NOW_MS = 1_800_000_000_000


def mesh() -> MeshSettings:
    """Return settings that name an emergency key."""
    return MeshSettings.model_validate(
        {
            "format": 1,
            "trust_domain": DOMAIN,
            "level": 4,
            "lease": {"ttl_s": 60, "grace_s": 10},
            "emergency_keys": {FIRST.name: FIRST.public.hex()},
        }
    )


def directive(number: int) -> bytes:
    """Return a signed revocation."""
    return FIRST.revoke(Kind.WORKLOAD, f"w{number}", now_ms=NOW_MS, trust_domain=DOMAIN, sequence=number + 1)


class Kept:
    """A keeper, and the alarms that it raised."""

    def __init__(self, path: Path, *, beside: bool = True) -> None:
        self.alarms: dict[str, str] = {}
        self.path = path
        self.keeper = DenialKeeper(
            path,
            DOMAIN,
            now_ms=lambda: NOW_MS,
            monotonic_ms=lambda: 0,
            anchors=lambda: Anchors(DOMAIN),
            alarm=self.alarms.__setitem__,
            clear=self.clear,
            beside=beside,
        )
        self.keeper.govern(mesh())

    def clear(self, kind: str) -> None:
        """Take an alarm back."""
        self.alarms.pop(kind, None)

    def written(self) -> int:
        """Return how many directives are in the file."""
        return len(json.loads(self.path.read_bytes())["directives"]) if self.path.exists() else 0


async def drained() -> None:
    """Let every thread that writes end, and the loop hear of it."""
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)


async def test_what_a_person_hands_in_is_durable_on_return(tmp_path: Path) -> None:
    """They are told that it is."""
    kept = Kept(tmp_path / "denials.json")
    kept.keeper.revoke(directive(0))
    assert kept.written() == 1


async def test_what_peers_brought_is_in_effect_at_once_and_written_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are told before the disk answers; of many contents only the newest is written."""
    go, writes, told = threading.Event(), list[bytes](), list[Any]()

    def slow(path: Path, data: bytes, *, mode: int) -> None:
        go.wait(20)
        writes.append(data)
        write_atomic(path, data, mode=mode)

    monkeypatch.setattr("trust.edge.denial_keeper.write_atomic", slow)
    kept = Kept(tmp_path / "denials.json")
    kept.keeper.subscribe(told.append)
    for number in range(5):
        assert kept.keeper.take([directive(number)], [])
    assert (len(kept.keeper.denials.active), len(told), kept.written()) == (5, 5, 0)
    go.set()
    await drained()
    assert kept.written() == 5
    assert len(writes) <= 2


async def test_an_older_content_never_replaces_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that comes late finds nothing left to write."""
    jobs: list[Any] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "run_in_executor", lambda _pool, work: jobs.append(work))
    kept = Kept(tmp_path / "denials.json")
    kept.keeper.take([directive(0)], [])
    kept.keeper.revoke(directive(1))
    assert kept.written() == 2
    for work in jobs:
        work()
    assert kept.written() == 2
    kept.keeper.take([directive(2)], [])
    jobs[-1]()
    assert kept.written() == 3


async def test_what_comes_while_the_thread_takes_up_the_last_is_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may take what waits just as the loop finds that something waits: then nobody else would write."""
    jobs: list[Any] = []
    monkeypatch.setattr(
        asyncio.get_running_loop(),
        "run_in_executor",
        lambda _pool, work: jobs.append(threading.Thread(target=work)),
    )

    class Interleaved(DenialKeeper):
        """Lets the thread run between the loop's look at what waits and what it does then."""

        _held: bytes | None = None

        @property
        def _later(self) -> bytes | None:
            found = self._held
            if found is not None and threading.current_thread() is threading.main_thread():
                jobs[0].start()
                jobs[0].join(0.2)  # a thread that must wait for the loop is waited for in vain
            return found

        @_later.setter
        def _later(self, data: bytes | None) -> None:
            self._held = data

    monkeypatch.setitem(globals(), "DenialKeeper", Interleaved)
    kept = Kept(tmp_path / "denials.json")
    kept.keeper.take([directive(0)], [])
    kept.keeper.take([directive(1)], [])
    for job in jobs:
        job.join()
    assert (len(jobs), kept.written()) == (1, 2)


async def test_a_disk_that_fails_beside_is_an_alarm_and_the_denial_counts(tmp_path: Path) -> None:
    """In effect without a record is safer than not in effect."""
    kept = Kept(tmp_path / "folder" / "denials.json")
    (tmp_path / "folder").write_bytes(b"in the way")
    kept.keeper.take([directive(0)], [])
    await drained()
    assert "cannot be written" in kept.alarms["denials"]
    assert len(kept.keeper.denials.active) == 1


def forged(number: int) -> bytes:
    """Return a directive whose text is not the one that was signed."""
    return directive(number + 1).replace(b"stolen laptop", b"stolen ladder")


def test_a_message_full_of_forgeries_costs_little_and_each_of_them_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node could else keep the loop of every peer busy with signatures that do not verify."""
    kept = Kept(tmp_path / "denials.json", beside=False)
    looked: list[bytes] = []
    revoke = kept.keeper.revoke

    def look(data: bytes) -> tuple[str, bool]:
        looked.append(data)
        return revoke(data)

    monkeypatch.setattr(kept.keeper, "revoke", look)
    message = [forged(number) for number in range(2 * limits.MAX_GOSSIP_REFUSED)]
    assert not kept.keeper.take([*message, directive(0)], [])
    assert looked == message[: limits.MAX_GOSSIP_REFUSED]
    looked.clear()
    assert not kept.keeper.take(message, [])
    assert looked == message[limits.MAX_GOSSIP_REFUSED :], "the first ones are known"
    looked.clear()
    assert kept.keeper.take([*message, directive(0)], []), (
        "what is behind them comes through with the next messages"
    )
    assert looked == [directive(0)]
    kept.keeper.govern(mesh())
    looked.clear()
    kept.keeper.take(message[:1], [])
    assert looked == message[:1], "another policy may know the key"
    assert len(kept.keeper.denials.directives) == 1


def test_without_a_loop_everything_is_written_at_once(tmp_path: Path) -> None:
    """As the simulation uses it."""
    kept = Kept(tmp_path / "denials.json", beside=False)
    kept.keeper.take([directive(0)], [])
    assert kept.written() == 1


async def test_a_write_that_is_told_of_late_does_not_hide_that_a_later_one_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a peer brought was written; what a person handed in after it was not, and the alarm says so."""
    kept = Kept(tmp_path / "denials.json")
    written, full = threading.Event(), [False]

    def disk(path: Path, data: bytes, *, mode: int) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        write_atomic(path, data, mode=mode)
        written.set()

    monkeypatch.setattr("trust.edge.denial_keeper.write_atomic", disk)
    kept.keeper.take([directive(0)], [])
    written.wait()  # in this thread: the loop does not hear of it yet
    with kept.keeper._lock:
        full[0] = True
    kept.keeper.revoke(directive(1))
    await asyncio.get_running_loop().run_in_executor(None, threading.Event().is_set)
    await asyncio.sleep(0)
    assert "cannot be written" in kept.alarms["denials"]


async def test_a_thread_that_finds_nothing_to_write_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop was quicker, and failed: that nothing is left to write does not mean that all is written."""
    kept = Kept(tmp_path / "denials.json")

    def disk(path: Path, data: bytes, *, mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trust.edge.denial_keeper.write_atomic", disk)
    loop = asyncio.get_running_loop()
    later: list[Any] = []
    monkeypatch.setattr(loop, "run_in_executor", lambda _pool, work: later.append(work))
    kept.keeper.take([directive(0)], [])
    kept.keeper.revoke(directive(1))
    for work in later:
        work()
    await asyncio.sleep(0)
    assert "cannot be written" in kept.alarms["denials"]


async def test_what_a_full_disk_did_not_take_is_written_when_it_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a restart, perhaps days later, would forget what was revoked meanwhile."""
    kept, now_ms, full = Kept(tmp_path / "denials.json"), [0], [True]
    kept.keeper._monotonic_ms = lambda: now_ms[0]
    tried: list[int] = []

    def disk(path: Path, data: bytes, *, mode: int) -> None:
        tried.append(now_ms[0])
        if full[0]:
            raise OSError(28, "No space left on device")
        write_atomic(path, data, mode=mode)

    monkeypatch.setattr("trust.edge.denial_keeper.write_atomic", disk)
    kept.keeper.take([directive(0)], [])
    await eventually(lambda: "denials" in kept.alarms, "the disk is full")
    kept.keeper.tick()
    assert tried == [0], "not at once"
    now_ms[0] = 60_000
    kept.keeper.tick()
    await eventually(lambda: len(tried) == 2 and kept.keeper._again_ms is not None, "it is full still")
    full[0], now_ms[0] = False, 120_000
    kept.keeper.tick()
    await eventually(lambda: "denials" not in kept.alarms, "it is written")
    assert kept.written() == 1
    now_ms[0] = 180_000
    kept.keeper.tick()
    assert tried == [0, 60_000, 120_000]
