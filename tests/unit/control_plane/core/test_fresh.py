"""Events between their arrival and detection's look at them."""

from control_plane.core.findings import Ended, Evidence
from control_plane.core.fresh import FreshEvents, Part
from trust.record import Side


def event(index: int) -> Ended:
    """Return the event of one record."""
    return Ended(Evidence("a", "l", index), 1, Side.INBOUND, "c", "s", "m", "OK", 1, 1, 1)


def held(most: int = 100) -> FreshEvents:
    """Return a store that somebody takes from."""
    fresh = FreshEvents(most)
    fresh.wanted = True
    return fresh


def indexes(part: Part | None) -> list[int]:
    """Return which records' events there are."""
    assert part is not None
    return [one.evidence.index for one in part.events]


def test_events_come_back_once_in_order_and_in_parts() -> None:
    """A step looks at a share of what waits; nothing is looked at twice."""
    fresh = held()
    fresh.put(1, 0, 4, [event(0), event(1), event(3)])  # record 2 is no event
    fresh.put(1, 4, 6, [event(4), event(5)])
    first = fresh.take(1, 0, most=2, end=6)
    assert (indexes(first), first and first.end) == ([0, 1], 2)
    second = fresh.take(1, 2, most=9, end=6)
    assert (indexes(second), second and second.end) == ([3], 4)
    assert indexes(fresh.take(1, 4, most=9, end=6)) == [4, 5]
    assert fresh.take(1, 6, most=9, end=6) is None


def test_what_is_not_here_is_left_to_the_store() -> None:
    """Another control plane took it, this one has just begun to detect, or there was too much."""
    fresh = held()
    fresh.put(1, 5, 6, [event(5)])
    assert fresh.take(1, 3, most=9, end=6) is None
    assert fresh.take(2, 0, most=9, end=6) is None
    assert indexes(fresh.take(1, 5, most=9, end=6)) == [5]
    fresh.put(1, 6, 7, [event(6)])
    fresh.put(1, 9, 10, [event(9)])  # a gap: what was before it may have been taken elsewhere
    assert fresh.take(1, 6, most=9, end=10) is None
    assert indexes(fresh.take(1, 9, most=9, end=10)) == [9]


def test_nothing_beyond_what_the_store_is_known_to_have_is_given() -> None:
    """The position must follow from the same look at the store as everything else."""
    fresh = held()
    fresh.put(1, 0, 4, [event(n) for n in range(4)])
    part = fresh.take(1, 0, most=9, end=3)
    assert (indexes(part), part and part.end) == ([0, 1, 2], 3)


def test_memory_is_bounded_and_the_longest_silent_ledger_goes_first() -> None:
    """A burst of one node must not push out what a busy other one brings at the same time, nor grow without end."""
    fresh = held(4)
    fresh.put(1, 0, 2, [event(0), event(1)])
    fresh.put(2, 0, 2, [event(0), event(1)])
    fresh.put(2, 2, 3, [event(2)])
    assert fresh.take(1, 0, most=9, end=2) is None
    assert indexes(fresh.take(2, 0, most=9, end=3)) == [0, 1]


def test_nothing_is_kept_where_nobody_detects() -> None:
    """Of several control planes one detects at a time."""
    fresh = held()
    fresh.put(1, 0, 1, [event(0)])
    fresh.wanted = False
    fresh.put(1, 1, 2, [event(1)])
    fresh.wanted = True
    assert fresh.take(1, 0, most=9, end=2) is None
