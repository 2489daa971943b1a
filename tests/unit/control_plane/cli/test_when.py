"""Times on the command line."""

import pytest

from control_plane.cli.when import iso, left, parse_when, seconds, utc
from trust.errors import InputError

NOW = 1_790_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("90s", NOW - 90_000),
        ("10m", NOW - 600_000),
        ("2h", NOW - 7_200_000),
        ("999999999w", 1),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000),
        ("2026-01-31T12:00:00", 1_769_860_800_000),
        ("2026-01-31T13:00:00+01:00", 1_769_860_800_000),
        ("2026-01-31", 1_769_817_600_000),
    ],
)
def test_times_are_ago_or_a_date(text: str, expected: int) -> None:
    """Without an offset a date is UTC, like everything that is shown."""
    assert parse_when(text, now_ms=NOW) == expected


@pytest.mark.parametrize("text", ["yesterday", "10", "1960-01-01", "0001-01-01", "9999-99-99", "-5m", "5y"])
def test_other_times_are_refused_with_examples(text: str) -> None:
    """The message says what to write."""
    with pytest.raises(InputError) as caught:
        parse_when(text, now_ms=NOW)
    assert "10m" in caught.value.detail


@pytest.mark.parametrize(
    ("ms", "expected"),
    [(61_000, "1 min 1 s"), (3_661_000, "1 h 1 min"), (-5_000, "0 min 0 s")],
)
def test_what_is_left_is_told_as_people_say_it(ms: int, expected: str) -> None:
    """Never a negative time; what has no end says so."""
    assert left(NOW + ms, NOW) == expected
    assert left(0, NOW) == "no end"


@pytest.mark.parametrize("text", ["0s", "1.5h", "1w", "h", "-1m", "1000000000s"])
def test_other_durations_are_refused_with_the_option_that_they_were_given_for(text: str) -> None:
    """One reader for every verb."""
    assert seconds("90m", "--ttl") == 5_400
    with pytest.raises(InputError, match="--ttl"):
        seconds(text, "--ttl")


def test_a_time_is_shown_in_utc() -> None:
    """One way in tables, one that can be given back as an option."""
    assert utc(1_769_860_800_123) == "2026-01-31 12:00:00"
    assert iso(1_769_860_800_123) == "2026-01-31T12:00:00Z"
    assert parse_when(iso(1_769_860_800_000), now_ms=NOW) == 1_769_860_800_000


@pytest.mark.parametrize("ms", [253_402_300_800_000, 2**63 - 1], ids=["year-10000", "largest"])
def test_a_time_that_a_lying_node_recorded_is_shown_as_it_is(ms: int) -> None:
    """One record must not make lists of executions, incidents and replays unreadable for everybody."""
    assert utc(ms) == iso(ms) == f"{ms} ms"
