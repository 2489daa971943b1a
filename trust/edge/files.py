"""Files that are either wholly the old content or wholly the new, also after a crash."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trust.errors import InputError, Reason, StateError

_HALF_WRITTEN: Final = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp", re.DOTALL)  # as `write_atomic` names them
_ABANDONED_S: Final = 60.0


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


def read_at_most(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file that somebody else may have made: one that is larger is not read to its end.

    Raises:
        OSError: it cannot be read; EFBIG, if it has more than `max_bytes` bytes.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"too large, more than {max_bytes} bytes", str(path))
    return data


def remove_half_written(directory: Path, *, now_s: float) -> None:
    """Remove what `write_atomic` left in `directory`, and two levels below, when its process was killed.

    Nothing else ever would: each kill in the wrong moment would leave one more file, perhaps of a private key. One
    that is younger than a minute may be another process's, which is about to give it its name.

    Args:
        directory: of this process alone.
        now_s: Unix time, s.
    """
    for pattern in (".*.tmp", "*/.*.tmp", "*/*/.*.tmp"):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):  # it is somebody else's, or gone: then it does no harm here
                if _HALF_WRITTEN.fullmatch(path.name) and now_s - path.lstat().st_mtime >= _ABANDONED_S:
                    path.unlink()


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


@contextlib.contextmanager
def owned_by_this_process(directory: Path) -> Iterator[None]:
    """Hold `directory` against other processes: two would put each other's older state back. A kill lets go of it.

    Raises:
        StateError: CONFLICT, if another process holds it.
        InputError: CONFIG_INVALID, if it cannot be made or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(
            Reason.CONFIG_INVALID, f"{directory} cannot be used: {error.strerror}; it must be writable"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                Reason.CONFLICT, f"another process is using {directory}; give each its own data_dir"
            ) from None
        remove_half_written(directory, now_s=time.time())
        yield
    finally:
        os.close(descriptor)
