"""Whether bytes are a text of so many lines that begins as its format says: what all signed texts of ours share."""

from collections.abc import Callable

from trust.errors import EvidenceError


def lines_of(body: bytes, count: int, first: str, invalid: Callable[[str], EvidenceError]) -> list[str]:
    """Return the lines of a text that has exactly `count` of them, each ended by a line feed.

    Args:
        body: as received.
        count: of lines.
        first: the first line: the format's name and version.
        invalid: makes the error that says what is wrong.

    Raises:
        EvidenceError: what `invalid` returns.
    """
    try:
        lines = body.decode().split("\n")
    except UnicodeDecodeError:
        raise invalid("it is not UTF-8") from None
    if len(lines) != count + 1 or lines[-1] or lines[0] != first:
        raise invalid(f"{count} lines are expected, the first one {first}")
    return lines[:-1]
