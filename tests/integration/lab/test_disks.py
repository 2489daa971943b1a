"""Copies of disks: of a process that stands still, without what was half written."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.lab import disks
from control_plane.lab.disks import copy_disk, stands_still
from trust.errors import MeshError, Reason


def test_a_copy_leaves_out_sockets_and_what_is_half_written(tmp_path: Path) -> None:
    """And replaces what was there; links stay links."""
    disk, copy = tmp_path / "d", tmp_path / "deep" / "c"
    (disk / "ledger").mkdir(parents=True)
    (disk / "ledger" / "tile").write_bytes(b"1")
    (disk / ".state.json.x1y2.tmp").write_bytes(b"half")
    (disk / "link").symlink_to("ledger/tile")
    copy.mkdir(parents=True)
    (copy / "old").write_bytes(b"old")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(disk / "s"))
        copy_disk(disk, copy, None)
    assert sorted(str(one.relative_to(copy)) for one in copy.rglob("*")) == ["ledger", "ledger/tile", "link"]
    assert (copy / "link").is_symlink()


def test_a_process_that_goes_on_is_not_copied_and_one_that_stands_still_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that vanishes under the copy was a failed scenario that nothing was wrong with."""
    disk, copy = tmp_path / "d", tmp_path / "c"
    disk.mkdir()
    monkeypatch.setattr(disks, "STOP_PATIENCE_S", 0.05)
    busy = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(busy) as process:
        try:
            if stands_still(process.pid):
                pytest.skip("this system does not tell whether a process runs")
            with pytest.raises(MeshError) as error:
                copy_disk(disk, copy, process.pid)
            assert error.value.reason is Reason.CONFLICT
            assert not copy.exists()
            monkeypatch.setattr(disks, "STOP_PATIENCE_S", 60.0)
            os.kill(process.pid, signal.SIGSTOP)
            copy_disk(disk, copy, process.pid)
            assert copy.is_dir()
            assert stands_still(process.pid)
        finally:
            process.kill()
