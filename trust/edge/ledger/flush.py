"""Makes many small files durable at once: one syncfs instead of an fsync for each.

Measured on ext4: 514 tiles of a segment took 180 ms and 60 ms CPU with an fsync for each, 16 ms and 1 ms with syncfs,
and the records' own fdatasync waited for each of those journal commits.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trust.edge.files import sync_directory

_REPORTS_ERRORS: Final = (5, 8)  # the Linux from which on syncfs tells that a write failed


class Flush:
    """Flushes files below one directory. Its descriptor is open before they are written, so no error is missed."""

    def __init__(self, directory: Path) -> None:
        """Open the directory.

        Raises:
            OSError: it cannot be opened.
        """
        self._directory = directory
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._syncfs = _syncfs()

    def files(self, paths: Sequence[Path]) -> None:
        """Return when the files, and the directories that name them, are on disk.

        Raises:
            OSError: a disk fails, or a file is not there.
        """
        for path in paths if self._syncfs is None else ():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if self._syncfs is None:
            folders = {p for path in paths for p in path.parents if p.is_relative_to(self._directory)}
            for folder in sorted(folders, reverse=True):
                sync_directory(folder)
        elif paths and self._syncfs(self._descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Close the directory."""
        os.close(self._descriptor)


def _syncfs() -> "ctypes._NamedFuncPointer | None":
    """The system call, where it exists and can be believed."""
    numbers = os.uname().release.split(".")[:2]
    if not all(number.isdecimal() for number in numbers) or tuple(map(int, numbers)) < _REPORTS_ERRORS:
        return None
    found = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
    return found
