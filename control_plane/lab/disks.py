"""How a member's disk is copied as it is at one moment: once every thread of the member stands still, or not at all.

A stop signal is on its way when it was sent: a thread inside of a system call finishes that first, and what it renames
or removes meanwhile is in neither the old place nor the new one for who reads the directory then.
"""

import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final

from trust.errors import Reason, StateError

STOP_PATIENCE_S: Final = 10.0
_POLL_S: Final = 0.005
_STOPPED: Final = frozenset("TtZX")  # stopped, traced, ended (proc(5), field 3 of stat)


def copy_disk(source: Path, target: Path, pid: int | None) -> None:
    """Make `target` a copy of the directory `source`, without sockets and what is half written. Blocking.

    Args:
        source: whose copy is made.
        target: what is there is replaced.
        pid: the process that writes to `source`, which was sent SIGSTOP; None when there is none.

    Raises:
        StateError: CONFLICT, if the process goes on for STOP_PATIENCE_S; nothing was copied.
    """
    if pid is not None:
        _wait_until_it_stands_still(pid)

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if _half_written(name) or _is_socket(Path(folder, name))]

    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True, ignore=left_out)


def _wait_until_it_stands_still(pid: int) -> None:
    end = time.monotonic() + STOP_PATIENCE_S
    while not stands_still(pid):
        if time.monotonic() > end:
            text = (
                f"process {pid} does not stop, so its disk cannot be copied as it is at one moment; try again"
            )
            raise StateError(Reason.CONFLICT, text)
        time.sleep(_POLL_S)


def stands_still(pid: int) -> bool:
    """Return whether no thread of a process runs; True as well where the system does not tell (no /proc)."""
    tasks = Path("/proc", str(pid), "task")
    try:
        threads = list(tasks.iterdir())
    except OSError:
        return True
    return all(_state(one) in _STOPPED for one in threads)


def _state(thread: Path) -> str:
    try:
        text = (thread / "stat").read_text()
    except OSError:
        return "X"  # it has ended since
    return text.rpartition(")")[2].split()[0]


def _half_written(name: str) -> bool:
    """Whether `trust.edge.files.write_atomic` was still writing it."""
    return name.startswith(".") and name.endswith(".tmp")


def _is_socket(path: Path) -> bool:
    return stat.S_ISSOCK(os.lstat(path).st_mode)
