"""Lets one process at a time work on a data directory."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trust.edge.files import remove_half_written
from trust.errors import Reason, StateError


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Refuse a second process on one data directory."""
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateError(
                Reason.CONFLICT, f"another control plane runs with data_dir {data_dir}; stop it first"
            ) from None
        remove_half_written(data_dir, now_s=time.time())
        yield
    finally:
        os.close(descriptor)
