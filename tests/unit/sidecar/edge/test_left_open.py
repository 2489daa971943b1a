"""Where a start looks for executions that a crash left open."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from sidecar.edge.provenance import _left_open
from tests.support.records import intent
from trust.edge.ledger.segments import Frame
from trust.record import build_record, record_digest

FIRST = 65_536  # what is before is archived


class Archived:
    """A ledger whose first segment is archived; reading below it fails, as in the real one."""

    first, durable_size = FIRST, FIRST + 3

    def scan(self, start: int) -> Iterator[Frame]:
        """Yield the records from `start` on."""
        assert start >= self.first, "the real ledger says: record 0 is missing"
        for index in range(start, self.durable_size):
            data = build_record(intent(index - FIRST + 1))
            yield Frame(index, record_digest(data), data, 0)


@pytest.mark.parametrize("text", [None, b"", b"0", b"damaged", b"9" * 5_000, b"-1"])
def test_a_lost_or_damaged_note_of_what_is_open_does_not_make_an_archived_ledger_unusable(
    tmp_path: Path, text: bytes | None
) -> None:
    """All that is in the directory is read: what is archived was closed before."""
    path = tmp_path / "ledger-open"
    if text is not None:
        path.write_bytes(text)
    assert list(_left_open(path, cast("Any", Archived()))) == [intent(1), intent(2), intent(3)]


def test_a_start_reads_from_where_the_last_run_said(tmp_path: Path) -> None:
    """And never from beyond what is durable."""
    path = tmp_path / "ledger-open"
    path.write_bytes(b"%d\n" % (FIRST + 2))
    assert list(_left_open(path, cast("Any", Archived()))) == [intent(3)]
    path.write_bytes(b"%d\n" % (FIRST + 99))
    assert list(_left_open(path, cast("Any", Archived()))) == []
