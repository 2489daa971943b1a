"""Files that are either wholly the old content or wholly the new, also after a crash."""

import os
import stat
import tempfile
from pathlib import Path

from trust.errors import InputError, Reason


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` with `data` durably: temporary file, fsync, rename, fsync of the directory.

    Raises:
        OSError: nothing was changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A new file (O_EXCL, mode 0600) under a name that nobody can guess: in a directory that others may write to,
    # a file or link prepared under a known name would receive a private key.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and creations in the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_private(path: Path) -> None:
    """Refuse a private file that group or others can read.

    Raises:
        InputError: KEY_UNREADABLE, saying which command mends it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        raise InputError(Reason.KEY_UNREADABLE, f"{path} does not exist") from None
    if mode & 0o077:
        raise InputError(Reason.KEY_UNREADABLE, f"{path} has mode {mode:04o}; run: chmod 600 {path}")
