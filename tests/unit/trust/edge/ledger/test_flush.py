"""Tiles become durable together where the system can be believed about it, and one by one elsewhere."""

import errno
import os
from pathlib import Path

import pytest

from trust.edge.ledger.flush import Flush


@pytest.mark.parametrize(
    ("release", "together"), [("6.1.0-18-amd64", True), ("5.7.19", False), ("odd", False)]
)
def test_an_old_kernel_is_asked_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, together: bool
) -> None:
    """Before Linux 5.8 syncfs did not say that a write had failed."""
    synced: list[int] = []
    real = os.fsync

    def counted(descriptor: int) -> None:
        synced.append(descriptor)
        real(descriptor)

    info = os.uname()
    monkeypatch.setattr(
        os,
        "uname",
        lambda: os.uname_result((info.sysname, info.nodename, release, info.version, info.machine)),
    )
    monkeypatch.setattr(os, "fsync", counted)
    names = [tmp_path / "a" / "1", tmp_path / "a" / "2"]
    names[0].parent.mkdir()
    for name in names:
        name.write_bytes(b"x")
    opened = Flush(tmp_path)
    opened.files(names)
    opened.files([])
    opened.close()
    assert len(synced) == (0 if together else 4)  # two files, their folder, and the one above it


def test_a_failing_disk_is_not_taken_for_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger stops then, as it does for its records."""
    opened = Flush(tmp_path)
    monkeypatch.setattr(opened, "_syncfs", lambda descriptor: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        opened.files([tmp_path / "x"])
    opened.close()
