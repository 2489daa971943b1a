"""Which records of the ledger are still in memory, bounded and never mixed up."""

from sidecar.edge.ledger_feed import RecentRecords


def recent(*records: bytes, first: int = 0, max_records: int = 4, max_bytes: int = 100) -> RecentRecords:
    """Return a memory that was told of `records`."""
    held = RecentRecords(max_records=max_records, max_bytes=max_bytes)
    for index, record in enumerate(records, first):
        held.note(index, record)
    return held


def test_what_was_noted_is_taken_by_index() -> None:
    """From anywhere, up to what is durable, and nothing from beyond the end."""
    held = recent(b"a", b"b", b"c", first=7)
    assert held.take(7, 10) == [b"a", b"b", b"c"]
    assert held.take(8, 9) == [b"b"]
    assert held.take(8, 8) == held.take(10, 12) == held.take(99, 100) == []


def test_records_that_left_memory_are_not_taken_nor_skipped() -> None:
    """A reader that is behind must go to the disk: a later record in place of an earlier one would be a gap."""
    held = recent(*(bytes([n]) for n in range(10)))
    assert held.take(5, 10) == held.take(0, 10) == []
    assert held.take(6, 10) == [bytes([n]) for n in (6, 7, 8, 9)]


def test_memory_is_bounded_in_bytes_too() -> None:
    """Records with sealed payloads are large."""
    held = recent(b"x" * 60, b"y" * 60)
    assert held.take(0, 2) == []
    assert held.take(1, 2) == [b"y" * 60]
    assert recent(b"z" * 101).take(0, 1) == []


def test_a_record_that_does_not_follow_starts_anew() -> None:
    """An index names one record."""
    held = recent(b"a", b"b")
    held.note(5, b"f")
    assert held.take(0, 6) == []
    assert held.take(5, 6) == [b"f"]
