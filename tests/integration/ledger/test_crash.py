"""Killed, torn, flipped, restored: what was acknowledged is there, and what does not fit is refused by name."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ledgers import LOG, FakeClock, fill, open_ledger, record
from trust.edge.ledger import Reader, archive, verify
from trust.edge.ledger.layout import segment_path
from trust.edge.ledger.segments import frame_header
from trust.errors import EvidenceError, StateError

ROOT = Path(__file__).parents[3]
ROUNDS = int(os.environ.get("EGM_CRASH_ROUNDS", "15"))


def test_killed_at_random_every_acknowledged_record_is_there(tmp_path: Path) -> None:
    """kill -9 again and again, under load: reopen, and every promise was kept. Prints its seed."""
    seed = int(os.environ.get("EGM_CRASH_SEED", str(random.randrange(2**32))))
    sys.stdout.write(f"EGM_CRASH_SEED={seed}\n")
    dice = random.Random(seed)
    directory = tmp_path / "ledger"
    acknowledged: dict[int, str] = {}
    for _ in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.ledger.crash_child", str(directory)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(dice.randrange(1, 900))]
        child.kill()
        lines += child.stdout.readlines()
        child.stdout.close()
        child.wait()
        for line in lines:
            if line.endswith(b"\n"):
                index, digest = line.decode().split()
                assert acknowledged.setdefault(int(index), digest) == digest
        ledger = open_ledger(directory, clock=FakeClock(), head_file=tmp_path / "head")
        found = {frame.index: frame.digest.hex() for frame in ledger.scan()}
        ledger._intake.fail(OSError("this process is gone"))  # nothing is written or signed when it is let go
        ledger._join()
        assert acknowledged.items() <= found.items()
        assert sorted(found) == list(range(len(found)))
        checked = verify(directory, key=LOG)
        assert checked.ok, checked.findings
    assert len(acknowledged) > ROUNDS


async def live_copy(tmp_path: Path, signed: int, unsigned: int) -> Path:
    """A directory with `signed` records under the checkpoint and more after it, as a crash leaves it."""
    live = tmp_path / "live"
    await fill(live, signed)
    ledger = open_ledger(live, clock=FakeClock())
    for index in range(signed, signed + unsigned):
        await ledger.write(record(index))  # a batch each
    shutil.copytree(live, tmp_path / "crashed")
    await ledger.close()
    return tmp_path / "crashed"


async def reopened(directory: Path) -> int:
    """Open, close, verify: the size."""
    ledger = open_ledger(directory)
    size = ledger.size
    await ledger.close()
    checked = verify(directory, key=LOG)
    assert checked.ok, checked.findings
    assert [r.record for r in Reader(directory).scan()] == [record(i) for i in range(size)]
    return size


async def test_a_tail_torn_at_any_byte_is_cut_to_whole_records(tmp_path: Path) -> None:
    """Whatever part of the unsigned tail reached the disk, its whole records stay and the ledger goes on."""
    crashed = await live_copy(tmp_path, 3, 3)
    whole = segment_path(crashed, 0).read_bytes()
    sizes = []
    for length in range(len(whole), 40, -1):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(crashed, copy)
        segment_path(copy, 0).write_bytes(whole[:length])
        try:
            sizes.append(await reopened(copy))
        except StateError as error:
            assert error.reason == "LEDGER_CONTRADICTED"
            assert sizes[-1] == 3, "only what was signed may not be missing"
            return
    pytest.fail("a missing signed record was not noticed")


async def test_a_changed_byte_in_what_was_acknowledged_is_refused(tmp_path: Path) -> None:
    """Later batches show that an earlier one was durable; only the last batch could have been torn."""
    crashed = await live_copy(tmp_path, 2, 3)
    path = segment_path(crashed, 0)
    whole = path.read_bytes()
    last = whole.rindex(b"\xff\xff\xff\xff")
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        if at < last:
            with pytest.raises(StateError, match="LEDGER_CONTRADICTED"):
                open_ledger(crashed)
        elif at >= last + 20:
            assert await reopened(shutil.copytree(crashed, tmp_path / f"copy{at}")) == 4


def flips(directory: Path, every: int) -> list[tuple[Path, int]]:
    """Places to flip a bit at: `every`-th byte of every file."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return [(path, at) for path in files for at in range(path.stat().st_size) if at % every == 0]


@pytest.mark.parametrize(("count", "every"), [(3, 2), (600, 2003)])
async def test_verify_notices_and_names_every_flipped_bit(tmp_path: Path, count: int, every: int) -> None:
    """In records, tiles, entry bundles, checkpoint and key."""
    directory = tmp_path / "ledger"
    await fill(directory, count)
    assert verify(directory).ok
    for path, at in flips(directory, every):
        data = path.read_bytes()
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        found = verify(directory)
        name = path.relative_to(directory).as_posix()
        assert any(name in finding.where for finding in found.findings), (name, at, found.findings)
        path.write_bytes(data)
    assert verify(directory).ok


def drop(name: str) -> Callable[[Path], None]:
    """Remove a file."""
    return lambda directory: (directory / name).unlink()


def rewrite(directory: Path) -> None:
    """A forger who knows the format: one record changed, with its checksum, and no tiles to tell."""
    path = segment_path(directory, 0)
    old, new = record(7), record(7).upper()
    frame = frame_header(len(new), hashlib.sha256(new).digest()) + new
    at = path.read_bytes().index(old) - 12
    path.write_bytes(path.read_bytes()[:at] + frame + path.read_bytes()[at + len(frame) :])
    shutil.rmtree(directory / "tile")


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (drop("checkpoint"), "lost its checkpoint"),
        (drop(f"records/{0:020d}.seg"), "300 records were signed"),
        (rewrite, "not those that its checkpoint signed"),
        (lambda d: (d / "tile/0/000").write_bytes(b"\x01" * 8192), "tile/0/000"),
        (lambda d: (d / "tile/0/001.p/44").write_bytes(b"\x01" * 44 * 32), "tile/0/001.p/44"),
        (lambda d: (d / "records/x.seg").write_bytes(b""), "records"),
        (lambda d: (d / "checkpoint").write_bytes((d / "checkpoint").read_bytes()[:-9]), "checkpoint"),
    ],
)
async def test_a_ledger_that_contradicts_its_checkpoint_is_not_extended(
    tmp_path: Path, harm: Callable[[Path], None], names: str
) -> None:
    """Whatever was lost or changed under the checkpoint: refused, with its place."""
    directory = tmp_path / "ledger"
    await fill(directory, 300)
    harm(directory)
    with pytest.raises(StateError, match="LEDGER_CONTRADICTED") as refused:
        open_ledger(directory)
    assert names in refused.value.detail


async def test_a_restored_older_disk_is_refused(tmp_path: Path) -> None:
    """With a head kept elsewhere, an older copy is noticed, and so is an emptied directory."""
    directory, head = tmp_path / "ledger", tmp_path / "elsewhere" / "head"
    await fill(directory, 10, head_file=head)
    shutil.copytree(directory, tmp_path / "backup")
    newest = await fill(directory, 10, head_file=head)
    for restore in (True, False):
        shutil.rmtree(directory)
        if restore:
            shutil.copytree(tmp_path / "backup", directory)
        with pytest.raises(StateError, match="LEDGER_CONTRADICTED"):
            open_ledger(directory, head_file=head)
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "backup", directory)
    (directory / "checkpoint").write_bytes(newest)
    with pytest.raises(StateError, match="an older copy was restored"):
        open_ledger(directory)


async def test_tiles_that_a_crash_took_are_made_again(tmp_path: Path) -> None:
    """Tiles follow from records; after a power failure they may be missing, short or zero."""
    directory = tmp_path / "ledger"
    await fill(directory, 1000)
    (directory / "tile/0/000").unlink()
    (directory / "tile/0/001").write_bytes(b"\x00" * 8192)
    (directory / "tile/entries/002").write_bytes(b"short")
    shutil.rmtree(directory / "tile/1")
    assert not verify(directory).ok
    await fill(directory, 1)
    checked = verify(directory, key=LOG)
    assert (checked.ok, checked.size) == (True, 1001)


def archived_segments_still_give_proofs(directory: Path, to: Path) -> None:
    """What was moved away is found in its folder, and only there; a damaged segment is not moved."""
    before = Reader(directory)
    expected = [before.inclusion_proof(i) for i in (0, 65_535, 65_536)]
    bundle = directory / "tile/entries/100"
    data = bundle.read_bytes()
    bundle.write_bytes(data[:-1] + b"?")
    with pytest.raises(StateError, match="tile/entries/100"):
        archive(directory, to)
    bundle.write_bytes(data)
    assert archive(directory, to, before=65_535) == []
    assert archive(directory, to) == [0]
    assert not segment_path(directory, 0).exists()
    assert not bundle.exists()
    with pytest.raises(EvidenceError, match="is missing"):
        Reader(directory).inclusion_proof(0)
    reader = Reader(directory, archives=[to])
    assert [reader.inclusion_proof(i) for i in (0, 65_535, 65_536)] == expected
    assert reader.record(0) == record(0)
    assert not verify(directory, key=LOG).ok
    assert verify(directory, key=LOG, archives=[to]).ok
    assert archive(directory, to) == []


async def test_two_segments_and_more_are_recovered(tmp_path: Path) -> None:
    """Over three segments: only the last two are read again, and the whole still verifies."""
    directory = tmp_path / "ledger"
    await fill(directory, 131_072)
    size = int((await fill(directory, 70)).split(b"\n")[1])
    assert size == 131_142
    found = verify(directory, key=LOG)
    assert found.ok, found.findings
    reader = Reader(directory)
    for index in (0, 65_535, 65_536, 131_071, 131_072, size - 1):
        assert hashlib.sha256(reader.record(index)).digest() == reader.digest(index)
    archived_segments_still_give_proofs(directory, tmp_path / "archive")
    (directory / "tile/1/000").unlink()
    shutil.rmtree(directory / "tile/2")
    with pytest.raises(StateError, match="tile/1/000 is missing"):
        open_ledger(directory)
