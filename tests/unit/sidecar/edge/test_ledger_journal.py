"""What the ledger's queue takes when the disk is behind."""

from typing import Any, cast

import pytest

from sidecar.edge.ledger_feed import RecentRecords
from sidecar.edge.provenance import LedgerJournal
from tests.support.records import intent, outcome
from trust import limits
from trust.edge.ledger import Pending
from trust.edge.ledger.batch import Batch
from trust.errors import CapacityError
from trust.execution import OpenExecutions


class Behind:
    """A ledger whose disk syncs nothing."""

    durable_size = 7

    def __init__(self) -> None:
        self.size = self.durable_size

    def append(self, record: bytes) -> Pending:
        """Queue it, as the real one does."""
        if self.size - self.durable_size >= limits.MAX_LEDGER_QUEUE_RECORDS:
            raise CapacityError(cast("Any", None), "full")
        self.size += 1
        return Pending(self.size - 1, Batch(0))

    async def durable(self, pending: Pending) -> int:
        """Never asked."""
        raise AssertionError


def test_when_the_disk_is_behind_no_new_execution_takes_the_room_of_the_outcomes_of_open_ones() -> None:
    """An outcome that finds no room is lost: its execution would look interrupted for ever."""
    ledger, opened = Behind(), OpenExecutions()
    journal = LedgerJournal(cast("Any", ledger), opened, RecentRecords())
    begun = limits.MAX_LEDGER_QUEUE_RECORDS - limits.LEDGER_OUTCOME_ROOM_RECORDS
    for number in range(begun):
        journal.append(intent(number))
    with pytest.raises(CapacityError, match="disk is behind"):
        journal.append(intent(begun))
    assert len(opened) == begun
    for number in range(limits.LEDGER_OUTCOME_ROOM_RECORDS):
        journal.append(outcome(intent(number)))
    assert len(opened) == begun - limits.LEDGER_OUTCOME_ROOM_RECORDS
