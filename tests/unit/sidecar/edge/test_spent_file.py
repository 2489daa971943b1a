"""The file of used approvals: durable, torn lines, damage, and a bounded size."""

import asyncio
import threading
from pathlib import Path

import pytest

from sidecar.edge.spent_file import SpentFile
from tests.support.approvers import NOW_MS, ticket
from tests.support.eventually import eventually
from trust import limits
from trust.edge.files import write_atomic
from trust.errors import MeshError, Reason

KEY = f"inbound:{ticket().id}"
OTHER = f"outbound:{ticket().id}"


async def refused(
    file: SpentFile, key: str = KEY, *, signed_ms: int = NOW_MS, now_ms: int = NOW_MS
) -> Reason | None:
    """Use up a key; return why it was refused."""
    try:
        await file.spend(key, signed_ms=signed_ms, now_ms=now_ms)
    except MeshError as error:
        return error.reason
    return None


async def test_what_was_used_up_is_remembered_by_the_next_run(tmp_path: Path) -> None:
    """On disk before `spend` returns; each side by itself."""
    path = tmp_path / "spent"
    first = SpentFile(path, NOW_MS)
    assert await refused(first) is None
    assert await refused(first, OTHER) is None
    for _ in range(2):
        again = SpentFile(path, NOW_MS + 1)
        assert await refused(again) is Reason.APPROVAL_SPENT
        assert await refused(again, OTHER) is Reason.APPROVAL_SPENT
        assert await refused(again, f"inbound:{'0' * 63}{_}") is None


async def test_a_torn_last_line_was_never_waited_for(tmp_path: Path) -> None:
    """Everything before it counts."""
    path = tmp_path / "spent"
    first = SpentFile(path, NOW_MS)
    await refused(first)
    await refused(first, OTHER)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    again = SpentFile(path, NOW_MS)
    assert await refused(again) is Reason.APPROVAL_SPENT
    assert await refused(again, OTHER) is None
    assert await refused(SpentFile(path, NOW_MS), OTHER) is Reason.APPROVAL_SPENT


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"egm-spent/1\n",
        b"egm-spent/2\nfloor 0 0\n",
        b"egm-spent/1\nfloor 0 0\nnonsense\n",
        b"\xff\xfe\n",
        b"\x00" * 64,
    ],
    ids=["empty", "no floor", "another format", "a line", "bytes", "zeros"],
)  # fmt: skip
async def test_a_damaged_file_makes_earlier_approvals_useless_for_good(tmp_path: Path, damage: bytes) -> None:
    """Nobody knows what was used up; what is signed from now on counts, also after another start."""
    path = tmp_path / "spent"
    path.write_bytes(damage)
    later_ms = NOW_MS + limits.MAX_CLOCK_SKEW_MS + 1_000
    first = SpentFile(path, NOW_MS)
    assert await refused(first, now_ms=later_ms) is Reason.APPROVAL_UNAVAILABLE
    assert await refused(first, OTHER, signed_ms=later_ms, now_ms=later_ms) is None
    again = SpentFile(path, later_ms)
    assert await refused(again, now_ms=later_ms) is Reason.APPROVAL_UNAVAILABLE
    assert await refused(again, OTHER, signed_ms=later_ms, now_ms=later_ms) is Reason.APPROVAL_SPENT


async def test_a_disk_that_does_not_take_it_lets_no_call_go_on(tmp_path: Path) -> None:
    """Neither now nor by trying again in the same run."""
    directory = tmp_path / "gone"
    directory.write_text("a file where a directory should be")
    file = SpentFile(directory / "spent", NOW_MS)
    assert await refused(file) is Reason.APPROVAL_UNAVAILABLE
    assert await refused(file) in {Reason.APPROVAL_SPENT, Reason.APPROVAL_UNAVAILABLE}


async def test_the_file_is_written_anew_when_most_of_it_is_over(tmp_path: Path) -> None:
    """Its size follows what must be remembered, not what ever was."""
    path = tmp_path / "spent"
    file = SpentFile(path, NOW_MS)
    file._appended = 10**9
    for number in range(3):
        later_ms = NOW_MS + number * 3 * limits.MAX_APPROVAL_LIFETIME_S * 1000
        assert await refused(file, f"inbound:{number:064x}", signed_ms=later_ms, now_ms=later_ms) is None
        file._appended = 10**9
    assert len(path.read_bytes().splitlines()) == 3, "format, floor and the one that counts"


async def test_a_caller_that_goes_away_while_the_disk_is_slow_makes_nothing_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two writes at once the older could replace what the newer wrote: a used approval would serve again."""
    path, answers, begun = tmp_path / "spent", threading.Event(), threading.Event()

    def slow(target: Path, data: bytes, *, mode: int) -> None:
        begun.set()
        answers.wait(5)
        write_atomic(target, data, mode=mode)

    monkeypatch.setattr("sidecar.edge.spent_file.write_atomic", slow)
    file = SpentFile(path, NOW_MS)
    gone = asyncio.create_task(file.spend(KEY, signed_ms=NOW_MS, now_ms=NOW_MS))
    await asyncio.to_thread(begun.wait, 5)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    monkeypatch.setattr("sidecar.edge.spent_file.write_atomic", write_atomic)
    second = asyncio.create_task(file.spend(OTHER, signed_ms=NOW_MS, now_ms=NOW_MS))
    for _ in range(50):
        await asyncio.sleep(0.001)
    overtaken = second.done()
    answers.set()
    await second
    await eventually(lambda: len(SpentFile(path, NOW_MS).memory) == 2, "both are on disk")
    assert not overtaken, "one after the other"


async def test_a_disk_that_hangs_refuses_instead_of_holding_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call waits without end; what was to be used up stays used up."""
    answers = threading.Event()

    def hangs(_path: Path, _data: bytes, *, mode: int) -> None:
        answers.wait(5)

    monkeypatch.setattr("sidecar.edge.spent_file.write_atomic", hangs)
    monkeypatch.setattr(limits, "LEDGER_SYNC_TIMEOUT_S", 0.02)
    file = SpentFile(tmp_path / "spent", NOW_MS)
    assert await refused(file) is Reason.APPROVAL_UNAVAILABLE
    assert await refused(file) is Reason.APPROVAL_SPENT
    answers.set()
