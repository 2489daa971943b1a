"""What a verb prints: JSON for programs, short aligned text for people, exit codes that mean something."""

import enum
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trust.errors import MeshError


def visible(text: str) -> str:
    """Return `text` with everything but printable characters, tabs and line feeds written out as an escape.

    What people read here may come from an attacker (a policy, a title, a server's error): a terminal must not obey
    it, and no invisible or reordering character may make it look like something else.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Plain(Console):
    """Prints text as it is: nothing in it is markup or an emoji, and nothing in it can steer the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as `rich.console.Console.print` does."""
        shown = (visible(item) if isinstance(item, str) else item for item in objects)
        super().print(*shown, **{"markup": False, "emoji": False, **options})


# A pipe or a file has no width: what is wrapped or shortened there is lost to `grep` and to whoever reads it later.
_PIPE_WIDTH: Final = 10_000


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() else _PIPE_WIDTH


console = _Plain(highlight=False, markup=False, emoji=False, width=_width(sys.stdout))
errors = _Plain(stderr=True, highlight=False, markup=False, emoji=False, width=_width(sys.stderr))


class Exit(enum.IntEnum):
    """The exit codes of every verb."""

    YES = 0
    NO = 1
    USAGE = 2
    UNKNOWN = 3  # could not tell: the answer needs something that did not respond


JsonOption = typer.Option("--json", help="Print one JSON object instead of text.")


def emit(data: Mapping[str, object], *, as_json: bool, text: Callable[[], None] | str) -> None:
    """Print `data` as one JSON object, or `text` for a person."""
    if as_json:
        sys.stdout.write(json.dumps(data, sort_keys=True) + "\n")
    elif isinstance(text, str):
        console.print(text, markup=False)
    else:
        text()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under aligned headings, without borders."""
    grid = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(visible(str(cell)).replace("\n", "\\n")) for cell in row))
    console.print(grid)


def fail(error: MeshError, *, as_json: bool) -> None:
    """Print an error with its stable reason: JSON on stdout, or a line on stderr."""
    if as_json:
        sys.stdout.write(json.dumps({"error": error.reason.value, "detail": error.detail}) + "\n")
    else:
        errors.print(f"error: {error.reason}: {error.detail}", markup=False, soft_wrap=True)
