"""The ledger on a real disk: durability, back-pressure, failure, proofs, privacy of its files."""

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.ledgers import KEY, LOG, ORIGIN, FakeClock, fill, open_ledger, record, threads
from trust import limits
from trust.checkpoint import open_checkpoint
from trust.edge.ledger import Reader, segments, verify
from trust.errors import CapacityError, EvidenceError, InputError, Reason, StateError
from trust.merkle import check_consistency, leaf_hash, root_from_inclusion


async def test_records_come_back_in_order_with_proofs_to_the_signed_root(tmp_path: Path) -> None:
    """What a stranger needs: record, inclusion proof, checkpoint, and the log's public key."""
    first = open_checkpoint(await fill(tmp_path / "l", 300), LOG).checkpoint
    signed = open_checkpoint(await fill(tmp_path / "l", 700), LOG).checkpoint
    reader = Reader(tmp_path / "l")
    assert (reader.size, reader.checkpoint) == (1000, signed)
    for index in (0, 1, 255, 256, 299, 700, 999):
        assert reader.record(index) == record(index)
        leaf = leaf_hash(reader.digest(index))
        assert root_from_inclusion(leaf, index, 1000, reader.inclusion_proof(index)) == signed.root
    check_consistency(300, first.root, 1000, signed.root, reader.consistency_proof(300))
    for start in (0, 1, 255, 256, 257, 300, 767, 768, 999, 1000):
        assert [f.record for f in reader.scan(start)] == [record(i) for i in range(start, 1000)]
        assert [f.index for f in Reader(tmp_path / "l").scan(start, upto=900)] == list(range(start, 900))
    with pytest.raises(InputError, match="NOT_FOUND"):
        reader.record(1000)
    with pytest.raises(EvidenceError, match="PROOF_INVALID"):
        reader.inclusion_proof(1000)


async def test_many_callers_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group commit: every record is synced before it is acknowledged, but not one by one."""
    syncs: list[int] = []
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        syncs.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    ledger = open_ledger(tmp_path / "l", clock=FakeClock())
    indices = await asyncio.gather(*(ledger.write(record(i)) for i in range(1000)))
    assert sorted(indices) == list(range(1000))
    assert ledger.durable_size == 1000
    assert len(syncs) < 500
    await ledger.close()


async def test_a_full_queue_refuses_or_waits_and_drops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """append() says so, enqueue() waits; whoever gave up waiting does not disturb the others."""
    release = threading.Event()
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (release.wait(), real(fd)))
    monkeypatch.setattr(limits, "MAX_LEDGER_QUEUE_RECORDS", 4)
    ledger = open_ledger(tmp_path / "l", clock=FakeClock())
    pending = [ledger.append(record(i)) for i in range(4)]
    with pytest.raises(CapacityError, match="LIMIT_EXCEEDED"):
        ledger.append(record(4))
    waiting = [asyncio.create_task(ledger.write(record(4 + i))) for i in range(20)]
    impatient = asyncio.create_task(ledger.durable(pending[0]))
    await asyncio.sleep(0)
    impatient.cancel()
    release.set()
    assert [await ledger.durable(p) for p in pending] == [0, 1, 2, 3]
    assert sorted(await asyncio.gather(*waiting)) == list(range(4, 24))
    with pytest.raises(asyncio.CancelledError):
        await impatient
    await ledger.close()
    assert verify(tmp_path / "l", key=LOG).records == 24


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_failing_disk_fails_everything_pending_until_reopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Nothing is acknowledged that may not be there, also when the disk seems to recover."""
    ledger = open_ledger(tmp_path / "l", clock=FakeClock())
    await ledger.write(record(0))

    def fail(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        results = await asyncio.gather(
            *(ledger.write(record(1)) for _ in range(5)), ledger.checkpoint(), return_exceptions=True
        )
    assert {getattr(r, "reason", r) for r in results} == {Reason.LEDGER_UNAVAILABLE}
    assert os.strerror(code) in str(ledger.failure)
    with pytest.raises(StateError, match="LEDGER_UNAVAILABLE"):
        ledger.append(record(1))
    with pytest.raises(StateError, match="LEDGER_UNAVAILABLE"):
        await ledger.write(record(1))
    await ledger.close()
    await fill(tmp_path / "l", 3)
    checked = verify(tmp_path / "l", key=LOG)
    assert checked.ok, checked.findings


async def test_a_signer_that_fails_stops_the_ledger(tmp_path: Path) -> None:
    """A log that cannot sign must not go on as if it did."""
    keys = iter([KEY.sign])  # the checkpoint of nothing is signed, the next is not

    def sign(text: bytes) -> bytes:
        return next(keys)(text)

    ledger = open_ledger(tmp_path / "l", clock=FakeClock(), signer=sign)
    await ledger.write(record(0))
    with pytest.raises(StateError, match="LEDGER_UNAVAILABLE"):
        await ledger.checkpoint()
    with pytest.raises(StateError, match="LEDGER_UNAVAILABLE"):
        ledger.append(record(1))
    await ledger.close()


async def test_checkpoints_come_by_count_by_time_and_when_asked(tmp_path: Path) -> None:
    """And the one asked for covers everything that was appended before."""
    clock = FakeClock()
    ledger = open_ledger(tmp_path / "l", clock=clock, checkpoint_records=5, checkpoint_period_s=10)

    def signed() -> int:
        return open_checkpoint(ledger.last_checkpoint, LOG).checkpoint.size

    for index in range(3):
        ledger.append(record(index))
    assert open_checkpoint(await ledger.checkpoint(), LOG).checkpoint.size == 3
    await asyncio.gather(*(ledger.write(record(i)) for i in range(5)))
    await eventually(lambda: signed() == 8, "a checkpoint after five records")
    await ledger.write(record(8))
    assert signed() == 8
    clock.now += 10_000
    await ledger.write(record(9))
    await eventually(lambda: signed() == 10, "a checkpoint after ten seconds")
    ledger.append(record(10))
    await ledger.close()
    assert signed() == 11
    assert [f.record for f in ledger.tail(2)] == [record(9), record(10)]


async def test_one_process_at_a_time_and_everything_is_let_go(tmp_path: Path) -> None:
    """A second opener is refused; after close there is no thread and no lock."""
    ledger = open_ledger(tmp_path / "l")
    with pytest.raises(StateError, match="CONFLICT"):
        open_ledger(tmp_path / "l")
    await ledger.close()
    await ledger.close()
    assert not threads()
    with pytest.raises(StateError, match="it is closed"):
        ledger.append(b"x")
    await fill(tmp_path / "l", 1)


async def test_files_are_private(tmp_path: Path) -> None:
    """Records tell who calls whom."""
    await fill(tmp_path / "l", 300)
    for path in [tmp_path / "l", *(tmp_path / "l").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


async def test_a_changed_key_continues_the_log_and_a_foreign_one_does_not(tmp_path: Path) -> None:
    """The last checkpoint must be by a key that the opener knows."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    await fill(tmp_path / "l", 3)
    new = Ed25519PrivateKey.generate()
    keys = {"signer": new.sign, "public_key": new.public_key().public_bytes_raw()}
    with pytest.raises(StateError, match="LEDGER_CONTRADICTED"):
        open_ledger(tmp_path / "l", **keys)
    await fill(tmp_path / "l", 3, **keys, earlier_keys=[LOG.public_key])
    with pytest.raises(StateError, match="LEDGER_CONTRADICTED"):
        open_ledger(tmp_path / "l", **keys, origin=ORIGIN + "/other")


async def test_a_record_cannot_pass_for_a_marker_or_break_the_frame(tmp_path: Path) -> None:
    """Payloads are whatever callers send; sizes outside the bounds are refused."""
    ledger = open_ledger(tmp_path / "l")
    nasty = [b"\xff" * 500, segments.marker(b"\0" * 16, 2**40), segments.MAGIC, b"\0", b"\xff\xff\xff\xff"]
    for value in nasty:
        await ledger.write(value)
    for bad in (b"", b"x" * (limits.MAX_LEDGER_RECORD_BYTES + 1)):
        with pytest.raises(CapacityError, match="LIMIT_EXCEEDED"):
            ledger.append(bad)
    await ledger.close()
    assert [frame.record for frame in open_and_scan(tmp_path / "l")] == nasty


def open_and_scan(directory: Path) -> list[segments.Frame]:
    """All records, read from disk."""
    return list(Reader(directory).scan())


async def test_closing_twice_at_once_closes_its_lock_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the first is cancelled: a number that is closed again may be somebody else's file by then."""
    ledger = open_ledger(tmp_path / "l")
    lock, closed, real = ledger._file_lock, [], os.close
    second_came = threading.Event()
    joined, keeper_join = [0], ledger._keeper.join

    def join() -> None:
        keeper_join()
        joined[0] += 1
        if joined[0] == 2:
            second_came.set()

    def close(descriptor: int) -> None:
        if descriptor == lock:
            closed.append(descriptor)
            second_came.wait(0.2)  # where the other is kept waiting, as it should be, this ends by itself
        if descriptor != lock or len(closed) == 1:
            real(descriptor)

    monkeypatch.setattr(ledger._keeper, "join", join)
    monkeypatch.setattr(os, "close", close)
    await asyncio.gather(ledger.close(), ledger.close())
    assert closed == [lock]
