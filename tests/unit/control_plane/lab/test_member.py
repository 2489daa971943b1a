"""The clock that a lab moves, and that the product has no such switch."""

from pathlib import Path

import pytest

from control_plane.lab.member import SkewFile, move_clock
from sidecar.config import SidecarConfig
from trust.edge.clock import SystemClock


def test_a_moved_clock_is_off_by_what_the_file_says_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a restart, and monotonic time stays."""
    file = SkewFile(tmp_path / "clocks" / "a")
    file.create()
    monkeypatch.setattr(SystemClock, "now_ms", lambda _self: 1_000_000)
    move_clock(file.reader())
    clock = SystemClock()
    assert clock.now_ms() == 1_000_000
    file.set(-90_000)
    assert (clock.now_ms(), file.get()) == (910_000, -90_000)
    before = clock.monotonic_ms()
    file.set(90_000)
    assert clock.monotonic_ms() - before < 90_000
    file.create()
    assert file.get() == 90_000  # a member that starts again keeps its wrong clock


def test_no_setting_of_a_sidecar_names_its_clock() -> None:
    """A clock that configuration or environment could move would be a way past every lease."""
    assert not [name for name in SidecarConfig.model_fields if "clock" in name or "skew" in name]
