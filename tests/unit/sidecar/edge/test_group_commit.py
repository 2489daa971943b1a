"""One sync for many calls, and none that is left waiting or told what is not true."""

import asyncio

import pytest

from sidecar.edge.group_commit import GroupCommit
from trust import limits
from trust.edge.ledger import Pending
from trust.edge.ledger.batch import Batch
from trust.errors import MeshError, Reason, StateError


class Disk:
    """Syncs when told to."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.synced: list[int] = []
        self.asked, self.ready = asyncio.Event(), asyncio.Event()
        self.failure = failure

    async def durable(self, pending: Pending) -> None:
        self.asked.set()
        await self.ready.wait()
        if self.failure is not None:
            raise self.failure
        self.synced.append(pending.index)


def pending(index: int) -> Pending:
    return Pending(index, Batch(0))


def busy() -> int:
    return limits.LEDGER_GATHER_CALLS


async def test_calls_that_wait_together_share_one_sync_of_the_last_record() -> None:
    """A record is durable only when all before it are, so the last stands for all."""
    disk = Disk()
    commit = GroupCommit(disk.durable, busy)
    calls = [asyncio.create_task(commit.durable(pending(index))) for index in (3, 5, 4)]
    await asyncio.sleep(0)
    assert disk.synced == []
    assert not any(call.done() for call in calls)
    disk.ready.set()
    await asyncio.gather(*calls)
    assert disk.synced == [5]


async def test_no_call_goes_on_before_its_record_is_durable() -> None:
    """Gathering delays the sync; it does not stand in for it."""
    disk = Disk()
    commit = GroupCommit(disk.durable, busy)
    first = asyncio.create_task(commit.durable(pending(1)))
    await disk.asked.wait()
    second = asyncio.create_task(commit.durable(pending(2)))
    disk.ready.set()
    await first
    assert not second.done()
    assert disk.synced == [1]
    await second
    assert disk.synced == [1, 2]


async def test_a_call_that_is_alone_does_not_wait_for_company() -> None:
    """Its record is synced at once."""
    disk = Disk()
    disk.ready.set()
    await GroupCommit(disk.durable, lambda: 1).durable(pending(1))
    assert disk.synced == [1]


async def test_a_failed_sync_fails_every_call_that_shared_it() -> None:
    """Nobody is told that a record is on disk that may not be."""
    disk = Disk(StateError(Reason.LEDGER_UNAVAILABLE, "the disk is full"))
    disk.ready.set()
    commit = GroupCommit(disk.durable, busy)
    found = await asyncio.gather(
        *(commit.durable(pending(index)) for index in range(3)), return_exceptions=True
    )
    assert [error.reason for error in found if isinstance(error, MeshError)] == [
        Reason.LEDGER_UNAVAILABLE
    ] * 3


async def test_a_cancelled_call_leaves_the_others_waiting() -> None:
    """One caller who gives up takes nobody with him."""
    disk = Disk()
    commit = GroupCommit(disk.durable, busy)
    one, other = (asyncio.create_task(commit.durable(pending(index))) for index in (1, 2))
    await asyncio.sleep(0)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    disk.ready.set()
    await other
    assert disk.synced == [2]


@pytest.mark.parametrize("in_flight", [1, limits.LEDGER_GATHER_CALLS], ids=["alone", "together"])
async def test_a_disk_that_hangs_refuses_those_who_wait(in_flight: int) -> None:
    """A call without a deadline would wait for it for ever, and all that come after it."""
    commit = GroupCommit(Disk().durable, lambda: in_flight, timeout_s=0.01)
    calls = [asyncio.create_task(commit.durable(pending(index))) for index in (1, 2)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(answer, "reason", None) for answer in answers] == [Reason.LEDGER_UNAVAILABLE] * 2
    assert "has not answered" in str(answers[0])
