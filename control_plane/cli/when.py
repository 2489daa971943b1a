"""Points in time as people write them: how long ago, or a date."""

import re
from datetime import UTC, datetime
from typing import Final

from trust.errors import InputError, Reason
from trust.x509 import to_datetime

_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LONG: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])\Z")
_AGO = re.compile(r"([0-9]{1,9})([smhdw])\Z")


def parse_when(text: str, *, now_ms: int) -> int:
    """Return the time that `text` names, in Unix milliseconds; 0 when it is empty.

    Args:
        text: "90s", "10m", "2h", "7d", "3w" before now, or ISO 8601; without an offset it is UTC.
        now_ms: now.

    Raises:
        InputError: INPUT_INVALID.
    """
    if not text:
        return 0
    if ago := _AGO.match(text):
        return max(1, now_ms - int(ago[1]) * _UNIT_MS[ago[2]])
    try:
        found = datetime.fromisoformat(text)
        ms = int(found.replace(tzinfo=found.tzinfo or UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        ms = 0
    if ms <= 0:
        raise InputError(
            Reason.INPUT_INVALID,
            f"{text[:40]!r} is not a time: write 10m, 2h or 7d for that long ago, or 2026-01-31T12:00:00Z",
        )
    return ms


def seconds(text: str, option: str) -> int:
    """Return how long `text` is, in seconds.

    Args:
        text: "90s", "30m", "1h" or "7d".
        option: that it was given for, as the error names it.

    Raises:
        InputError: INPUT_INVALID.
    """
    found = _LONG.match(text)
    if found is None:
        raise InputError(Reason.INPUT_INVALID, f"{option} {text[:20]!r}: write 90s, 30m, 1h or 7d")
    return int(found[1]) * _UNIT_MS[found[2]] // 1000


def left(until_ms: int, now_ms: int) -> str:
    """Return how long it is until `until_ms` (Unix ms; 0: for ever), as a person reads it."""
    if not until_ms:
        return "no end"
    left_s = max(0, (until_ms - now_ms) // 1000)
    if left_s >= 3600:
        return f"{left_s // 3600} h {left_s % 3600 // 60} min"
    return f"{left_s // 60} min {left_s % 60} s"


def utc(ms: int) -> str:
    """Return a time (Unix ms) as a table shows it, in UTC: "2026-01-31 12:00:00"."""
    return _moment(ms, "%Y-%m-%d %H:%M:%S")


def iso(ms: int) -> str:
    """Return a time (Unix ms) in ISO 8601: "2026-01-31T12:00:00Z", which `parse_when` reads."""
    return _moment(ms, "%Y-%m-%dT%H:%M:%SZ")


def _moment(ms: int, form: str) -> str:
    try:
        return format(to_datetime(ms), form)
    except OverflowError:  # after the year 9999: a node may record any number as its time
        return f"{ms} ms"
