"""Which parts of a ledger were moved away, and where to: the file `archived` in its directory, one line per segment.

    FIRST-RECORD URL

A segment is written down when it was checked at its destination, before anything of it is removed here.
"""

import re
from pathlib import Path
from typing import Final

from trust.edge.files import write_atomic
from trust.edge.ledger import layout
from trust.edge.ledger.place import Place, open_place
from trust.errors import Reason, StateError

_INDEX: Final = re.compile(r"[0-9]{1,19}\Z")  # no number is read that no ledger has


def read_archived(directory: Path) -> dict[int, str]:
    """Return the archived segments: first record, and the URL of the place; ascending.

    Raises:
        StateError: LEDGER_CONTRADICTED, for a file that was not written here.
    """
    path = directory / layout.ARCHIVED
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        lines = [""]
    found: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        first, _, url = line.partition(" ")
        if not _INDEX.match(first) or not url or layout.segment_of(int(first)) != int(first):
            raise StateError(
                Reason.LEDGER_CONTRADICTED,
                f"{path}, line {number}: not the first record of a segment and a URL",
            )
        found[int(first)] = url
    return dict(sorted(found.items()))


def note_archived(directory: Path, first: int, url: str) -> None:
    """Write down durably that the segment of record `first` is at `url`."""
    known = read_archived(directory) | {first: url}
    text = "".join(f"{index} {where}\n" for index, where in sorted(known.items()))
    write_atomic(directory / layout.ARCHIVED, text.encode(), mode=layout.FILE_MODE)


def places_of(directory: Path) -> list[Place]:
    """Return the places that parts of this ledger were moved to.

    Raises:
        StateError: LEDGER_CONTRADICTED, as `read_archived`.
        InputError: CONFIG_INVALID, for a place that cannot be used on this machine.
    """
    return [open_place(url) for url in dict.fromkeys(read_archived(directory).values())]
