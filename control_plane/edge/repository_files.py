"""The published repository on disk: a copy of what the store holds, written so that a reader never sees a gap."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from trust.edge.files import write_atomic
from trust.errors import EvidenceError, Reason

TIMESTAMP: Final = "metadata/timestamp.json"
_FOLDERS: Final = ("targets", "metadata")


def order(path: str) -> tuple[int, str]:
    """Return the place of `path` among files written together: what others point to comes first.

    Targets, then metadata, then timestamp.json, which makes everything before it visible at once.
    """
    if path == TIMESTAMP:
        return (2, path)
    return (0 if path.startswith("targets/") else 1, path)


class RepositoryFiles:
    """The files below `directory`. Only paths that the store named are ever opened.

    The copy may lag behind the store and be completed after a crash; it is never inconsistent, because
    every file but timestamp.json is immutable and timestamp.json is written last.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, str] = {}  # path -> SHA-256

    def missing(self, wanted: Mapping[str, str]) -> list[str]:
        """Return those of `wanted` (path -> SHA-256) whose content on disk is not that, in the order to write.

        What is right becomes known, and is served.
        """
        for folder in _FOLDERS:
            (self._directory / folder).mkdir(parents=True, exist_ok=True)
        missing = []
        for path, sha256 in wanted.items():
            if self._known.get(path) == sha256:
                continue
            location = self._location(path)
            if location.is_file() and _sha256(location) == sha256:
                self._known[path] = sha256
            else:
                missing.append(path)
        return sorted(missing, key=order)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files durably, each whole or not at all, in the order that keeps readers consistent.

        Raises:
            OSError: some may have been written; none is broken, and timestamp.json still points to the old.
        """
        for path in sorted(files, key=order):
            write_atomic(self._location(path), files[path])
            self._known[path] = hashlib.sha256(files[path]).hexdigest()

    def open(self, path: str) -> tuple[BinaryIO, int] | None:
        """Open a published file; return it and its size, or None when there is no such file.

        timestamp.json is replaced, never changed, so an open file stays what it was.
        """
        if path not in self._known:
            return None
        file = self._location(path).open("rb")
        return file, os.fstat(file.fileno()).st_size

    def paths(self) -> Iterable[str]:
        """Return every path that is served."""
        return self._known.keys()

    def _location(self, path: str) -> Path:
        """Return where `path` is kept; a path out of the directory is refused, whoever names it."""
        parts = PurePosixPath(path).parts
        if len(parts) < 2 or parts[0] not in _FOLDERS or ".." in parts or str(PurePosixPath(*parts)) != path:
            raise EvidenceError(Reason.METADATA_INVALID, f"{path[:120]!r} is not a repository path")
        return self._directory.joinpath(*parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
