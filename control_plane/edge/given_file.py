"""Reads a file that a person names on the command line; somebody else may have made it."""

from pathlib import Path

from trust.edge.files import read_at_most
from trust.errors import InputError, Reason


def read_given(path: Path, max_bytes: int) -> bytes:
    """Return the content of the file at `path`, at most `max_bytes` bytes.

    Raises:
        InputError: NOT_FOUND; INPUT_INVALID, when it cannot be read or is larger.
    """
    try:
        return read_at_most(path, max_bytes)
    except FileNotFoundError:
        raise InputError(Reason.NOT_FOUND, f"{path} does not exist") from None
    except OSError as error:
        raise InputError(Reason.INPUT_INVALID, f"{path} cannot be read: {error.strerror or error}") from None
