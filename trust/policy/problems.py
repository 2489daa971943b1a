"""A mistake in somebody's policy folder: where it is, what it is, and what to do about it."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from trust.errors import InputError, Reason


@enum.unique
class Severity(enum.StrEnum):
    """An ERROR keeps a bundle from being built; a WARNING is for the reviewers."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake. `line` is 1-based; 0 when the whole file (or its absence) is meant."""

    file: str
    line: int
    message: str
    hint: str  # what to do; empty only when the message says it
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")

    def to_dict(self) -> dict[str, object]:
        """Return the problem as JSON values."""
        return {
            "file": self.file,
            "line": self.line,
            "message": self.message,
            "hint": self.hint,
            "severity": self.severity.value,
        }


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems that keep a bundle from being built."""
    return [problem for problem in problems if problem.severity is Severity.ERROR]


def refuse(problems: Iterable[Problem]) -> None:
    """Do nothing when there is no error among `problems`.

    Raises:
        InputError: INPUT_INVALID, its detail one line per error.
    """
    if found := sorted(set(errors_of(problems))):
        raise InputError(Reason.INPUT_INVALID, "\n".join(str(problem) for problem in found))
