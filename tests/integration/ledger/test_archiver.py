"""A running node archives by itself: what may go goes, a place that fails is shown and tried again."""

import asyncio
import threading
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.ledgers import LOG, fill
from trust import limits
from trust.edge.ledger import Archiver, Folder, places_of, read_archived, verify
from trust.edge.ledger.place import below
from trust.errors import InputError, Reason, StateError


class Down(Folder):
    """A place that does not answer until it is mended."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.down = True

    def put(self, name: str, source: Path) -> None:
        """Refuse while down."""
        if self.down:
            raise StateError(Reason.SOURCE_UNAVAILABLE, f"{self.url} cannot be used: no route")
        super().put(name, source)


async def test_a_place_that_is_down_is_an_error_that_heals_and_nothing_is_lost(tmp_path: Path) -> None:
    """The ledger stays whole meanwhile; only what the node allows is moved, once it can be."""
    ledger = tmp_path / "ledger"
    await fill(ledger, 3 * limits.LEDGER_SEGMENT_RECORDS + 10)
    place = Down(tmp_path / "to")
    allowed = 0
    archiver = Archiver(ledger, "", before=lambda: allowed, period_s=0.01, place=place)
    task = asyncio.create_task(archiver.run())
    await asyncio.sleep(0)
    assert (archiver.segments, archiver.last_error) == (0, None)
    allowed = limits.LEDGER_SEGMENT_RECORDS
    await eventually(lambda: archiver.last_error is not None, "the error is shown")
    assert "no route" in str(archiver.last_error)
    assert verify(ledger, key=LOG).ok
    place.down = False
    await eventually(lambda: archiver.segments == 1, "the first segment is moved")
    await eventually(lambda: archiver.last_error is None, "the error has gone")
    assert read_archived(ledger) == {0: str(tmp_path / "to")}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert archiver.segments == 1
    assert verify(ledger, key=LOG, archives=places_of(ledger)).ok


async def test_what_may_go_is_asked_on_the_loop_that_changes_it(tmp_path: Path) -> None:
    """In another thread a look at what is open could meet a change of it, and end the sidecar."""
    await fill(tmp_path / "ledger", 10)
    asked: list[int] = []

    def before() -> int:
        asked.append(threading.get_ident())
        return 0

    await Archiver(tmp_path / "ledger", "", before=before, place=Folder(tmp_path / "to")).once()
    assert asked == [threading.get_ident()]


def test_a_place_that_no_node_can_use_is_refused_at_once(tmp_path: Path) -> None:
    """And the folder of a ledger below it never depends on how the place was written."""
    with pytest.raises(InputError, match="is not an archive"):
        Archiver(tmp_path, "gs://bucket", before=lambda: 0)
    assert below("s3://bucket/p/", "mesh.test/node/a") == below("s3://bucket/p", "mesh.test/node/a")
