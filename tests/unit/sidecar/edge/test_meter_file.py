"""Budgets on disk: what was spent is there after a crash, and what cannot be kept is not forgotten quietly."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.core.call import Attempt, Decision, Direction
from sidecar.core.meters import Charge, Meters, Spent
from sidecar.edge import meter_file
from sidecar.edge.case import Case
from sidecar.edge.meter_file import MeterDuty, MeterFile, append, parse
from tests.support.eventually import eventually
from trust import limits
from trust.edge.files import write_atomic
from trust.errors import Reason, StateError
from trust.policy.controls import DAY_MS, Control, control_of
from trust.policy.types import Authn

ALICE = "spiffe://x/workload/alice"
NOW_MS = 20_000 * DAY_MS
ATTEMPT = Attempt(Direction.INBOUND, "payments", "shop.v1.Payments/Pay", ALICE, Authn.MTLS)


def control(name: str, text: str) -> Control:
    found = control_of(name, text, "p")
    assert found is not None
    return found


CALLS = control("budget", "10 per day")


def spend(meters: Meters, times: int = 1, caller: str = ALICE, now_ms: int = NOW_MS) -> int:
    """Return how many of so many calls fit."""
    fit = 0
    for _ in range(times):
        charges = [Charge(CALLS, 1)]
        if meters.short("inbound", caller, charges, now_ms=now_ms, monotonic_ms=0) is None:
            meters.take("inbound", caller, charges, now_ms=now_ms, monotonic_ms=0)
            fit += 1
    return fit


def opened(path: Path, now_ms: int = NOW_MS) -> tuple[Meters, MeterFile]:
    """Start as a node does."""
    meters = Meters()
    file = MeterFile(path, meters, lambda: now_ms, timeout_s=5)
    file.load()
    return meters, file


async def test_what_was_spent_is_spent_after_a_crash(tmp_path: Path) -> None:
    """No close, no last write: only what `durable` said counts."""
    path = tmp_path / "budgets"
    meters, file = opened(path)
    spend(meters, 4)
    await file.durable()
    spend(meters, 2)
    await file.durable()
    again, _ = opened(path)
    assert spend(again, 10) == 4
    tomorrow, _ = opened(path, NOW_MS + DAY_MS)
    assert spend(tomorrow, 20, now_ms=NOW_MS + DAY_MS) == 10
    assert path.stat().st_mode & 0o077 == 0
    await file.close()


async def test_many_calls_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk is asked as often as it answers, not as often as there are calls."""
    meters, file = opened(tmp_path / "budgets")
    await file.durable()
    syncs: list[int] = []

    def counted(descriptor: int, data: bytes) -> None:
        syncs.append(len(data))
        append(descriptor, data)

    monkeypatch.setattr("sidecar.edge.meter_file.append", counted)

    async def call(caller: str) -> None:
        spend(meters, 1, caller)
        await file.durable()

    await asyncio.gather(*(call(f"spiffe://x/workload/w{n}") for n in range(50)))
    assert 1 <= len(syncs) <= 3
    again, _ = opened(tmp_path / "budgets")
    assert len(again) == 50
    await file.close()


async def test_what_a_crash_left_unfinished_is_dropped_and_damage_before_it_is_told(tmp_path: Path) -> None:
    """A torn end was never acknowledged; a changed line may hide what was spent."""
    path = tmp_path / "budgets"
    meters, file = opened(path)
    spend(meters, 6)
    await file.durable()
    spend(meters, 1, "spiffe://x/workload/bob")
    await file.durable()
    whole = path.read_bytes()
    for torn in (whole[:-5], whole + b"\0" * 40, whole + b"deadbeef half a li"):
        path.write_bytes(torn)
        again, after = opened(path)
        assert spend(again, 10) == 4 and not after.notes()
    path.write_bytes(b"x" + whole)
    again, after = opened(path)
    assert "line 1 is damaged" in after.notes()[0] and "move the file away" in after.notes()[0]
    spend(again)
    with pytest.raises(StateError) as caught:
        await after.durable()
    assert caught.value.reason is Reason.OBLIGATION_UNMET
    assert path.read_bytes() == b"x" + whole  # evidence is not overwritten
    await file.close()


async def test_a_disk_that_fails_refuses_and_takes_everything_up_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what a failed write left, so the next one writes the file anew."""
    path = tmp_path / "budgets"
    meters, file = opened(path)
    spend(meters)
    await file.durable()

    def full(descriptor: int, data: bytes) -> None:
        append(descriptor, data[:7])
        raise OSError("No space left on device")

    monkeypatch.setattr("sidecar.edge.meter_file.append", full)
    spend(meters)
    with pytest.raises(StateError):
        await file.durable()
    assert "cannot be written down" in file.notes()[0]
    monkeypatch.setattr("sidecar.edge.meter_file.append", append)
    with pytest.raises(StateError):
        await file.durable()  # at once: a disk that failed a moment ago is not asked for every call
    file._again_at_s = 0.0
    await file.durable()
    assert file.notes() == ()
    again, _ = opened(path)
    assert spend(again, 10) == 8
    await file.close()


async def test_a_disk_that_hangs_counts_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call waits without end."""
    meters, file = opened(tmp_path / "budgets")
    file._timeout_s = 0.05
    answers = threading.Event()

    def hangs(target: Path, data: bytes, *, mode: int) -> None:
        answers.wait(5)
        write_atomic(target, data, mode=mode)

    monkeypatch.setattr("sidecar.edge.meter_file.write_atomic", hangs)
    spend(meters)
    with pytest.raises(StateError, match="status says why"):
        await file.durable()
    answers.set()
    file._timeout_s = 5
    await file.durable()
    await file.close()


async def test_a_file_that_has_grown_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in proportion to the budgets in use."""
    monkeypatch.setattr(limits, "METER_FILE_GROWTH_BYTES", 300)
    path = tmp_path / "budgets"
    meters, file = opened(path)
    for _ in range(9):
        spend(meters)
        await file.durable()
    assert path.read_bytes().count(b"\n") < 6
    again, _ = opened(path)
    assert spend(again, 10) == 1
    await file.close()


async def test_what_is_taken_while_the_disk_is_busy_is_written_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody waits for it, as at level 3."""
    meters, file = opened(tmp_path / "budgets")
    await file.durable()
    answers = threading.Event()

    def busy(descriptor: int, data: bytes) -> None:
        answers.wait(5)
        append(descriptor, data)

    monkeypatch.setattr("sidecar.edge.meter_file.append", busy)
    spend(meters)
    file.later()
    await asyncio.sleep(0)
    spend(meters)
    file.later()
    answers.set()
    await eventually(lambda: (tmp_path / "budgets").read_bytes().count(b"\n") == 2, "both are written")
    again, _ = opened(tmp_path / "budgets")
    assert spend(again, 10) == 8
    await file.close()


def decided(level: int, *controls: Control, would_deny: Reason | None = None) -> Decision:
    asked = tuple(one.obligation for one in controls)
    return Decision(
        "d", True, Reason.ALLOWED, level, 1, would_deny=would_deny, obligations=asked, controls=controls
    )


@pytest.mark.parametrize(("level", "noted"), [(3, "taken-unkept"), (4, None), (5, None)])
async def test_without_a_disk_level_three_goes_on_and_says_so_and_higher_levels_refuse(
    tmp_path: Path, level: int, noted: str | None
) -> None:
    """Availability wins below level 4, visibly."""
    path = tmp_path / "budgets"
    path.write_bytes(b"damage\n" + b"00000000 x\n")
    meters, file = opened(tmp_path / "no" / "budgets")
    (tmp_path / "no").write_text("a file where a directory should be")
    spend(meters)
    with pytest.raises(StateError):
        await file.durable()
    duty, case = MeterDuty(file), Case(ATTEMPT, level)
    rate = control("rate", "1/s")
    if noted is None:
        with pytest.raises(StateError) as caught:
            await duty.meet(case, decided(level, rate, CALLS), now_ms=NOW_MS)
        assert caught.value.reason is Reason.OBLIGATION_UNMET
    else:
        await duty.meet(case, decided(level, rate, CALLS), now_ms=NOW_MS)
        assert case.obligations == (("rate", "1/s=taken"), ("budget", f"10 per day={noted}"))
    await duty.meet(case, decided(level, rate), now_ms=NOW_MS)  # rates need no disk
    await file.close()


async def test_what_would_have_been_refused_is_noted_as_not_taken(tmp_path: Path) -> None:
    """At levels 1 and 2 the call passes, and the record says that the budget was used up."""
    _, file = opened(tmp_path / "budgets")
    case = Case(ATTEMPT, 1)
    exceeded = replace(decided(1, CALLS, would_deny=Reason.BUDGET_EXCEEDED), controls=())
    await MeterDuty(file).meet(case, exceeded, now_ms=NOW_MS)
    assert case.obligations == (("budget", "10 per day=exceeded"),)
    await MeterDuty(file).meet(case, decided(1), now_ms=NOW_MS)
    await file.close()


async def test_a_restriction_is_kept_on_disk_though_a_limit_of_policy_would_have_refused(
    tmp_path: Path,
) -> None:
    """At level 2 the one binds and the other does not: each is noted as what became of it, and kept."""
    meters, file = opened(tmp_path / "budgets")
    restricting = control_of("budget", "10 per day")
    assert restricting is not None
    charges = [Charge(restricting, 1)]
    meters.take("inbound", ALICE, charges, now_ms=NOW_MS, monotonic_ms=0)
    decision = replace(
        decided(2, control("rate", "1/m"), restricting, would_deny=Reason.RATE_EXCEEDED),
        controls=(restricting,),
    )
    case = Case(ATTEMPT, 2)
    await MeterDuty(file).meet(case, decision, now_ms=NOW_MS)
    assert case.obligations == (("rate", "1/m=exceeded"), ("budget", "10 per day=taken"))
    await eventually((tmp_path / "budgets").exists, "it is written down")
    await file.close()


def test_lines_are_read_strictly() -> None:
    """One spelling, checked; anything else is damage, or the torn end."""
    good = meter_file._line(Spent("0a" * 32, DAY_MS, 7, 12))
    assert [tuple(one) for one in parse(good)] == [("0a" * 32, DAY_MS, 7, 12)]
    for bad in (good.replace(b"0a", b"0A"), b" " + good, good.replace(b" 12", b" 13"), b"\n\n"):
        with pytest.raises(ValueError, match="line 1"):
            parse(bad + good)
        assert parse(good + bad) == parse(good)


async def test_a_file_that_a_hanging_disk_still_writes_is_not_closed_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number would be given to another file, and the next line written there."""
    meters, file = opened(tmp_path / "budgets")
    spend(meters)
    await file.durable()
    answers, synced = threading.Event(), threading.Event()

    def hang(descriptor: int, data: bytes) -> None:
        answers.wait(10)
        append(descriptor, data)
        synced.set()

    monkeypatch.setattr(meter_file, "append", hang)
    file._timeout_s = 0.01
    spend(meters)
    await file.close()
    answers.set()
    await eventually(lambda: file._flushing is None, "the disk has answered")
    assert synced.is_set()
    assert not file.problem
    await file.close()
    assert file._descriptor is None
