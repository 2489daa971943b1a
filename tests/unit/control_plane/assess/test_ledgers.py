"""A ledger that was written anew, cut short, or lies in memory: read as it is, held against what a quorum cosigned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from control_plane.assess.edge import ledgers
from tests.support.ledgers import ORIGIN, fill
from trust.edge.ledger import Reader


def cosigned(directory: Path, origin: str = ORIGIN) -> Any:
    """Return a credential that vouches for the head of a ledger as it is now."""
    reader = Reader(directory)
    head = SimpleNamespace(origin=origin, size=reader.size, root=reader.root())
    return cast("Any", SimpleNamespace(checkpoint=SimpleNamespace(checkpoint=head)))


async def test_a_ledger_that_goes_on_from_what_was_cosigned_departs_from_nothing(tmp_path: Path) -> None:
    """Records come after the quorum has looked."""
    await fill(tmp_path, 5)
    credential = cosigned(tmp_path)
    await fill(tmp_path, 3)
    assert ledgers.departs(tmp_path, credential) == ""


async def test_a_ledger_that_was_written_anew_departs_from_what_was_cosigned(tmp_path: Path) -> None:
    """Whoever has the node's key can sign any history; a quorum has seen another one."""
    await fill(tmp_path / "old", 5)
    credential = cosigned(tmp_path / "old")
    await fill(tmp_path / "new", 2, origin=ORIGIN)
    assert "some are gone" in ledgers.departs(tmp_path / "new", credential)
    credential.checkpoint.checkpoint.size = 2
    assert "others than those" in ledgers.departs(tmp_path / "new", credential)


async def test_a_ledger_of_another_node_or_without_a_checkpoint_departs(tmp_path: Path) -> None:
    """It cannot be the one that was cosigned."""
    await fill(tmp_path, 1)
    assert "a quorum cosigned example.org/node/b" in ledgers.departs(
        tmp_path, cosigned(tmp_path, "example.org/node/b")
    )
    assert ledgers.departs(tmp_path / "none", cosigned(tmp_path)).startswith("it cannot be read")


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ({"/": "ext4"}, ""),
        ({"/": "ext4", "HERE": "tmpfs"}, "tmpfs"),
        ({"/": "tmpfs", "HERE": "ext4"}, ""),
        ({"/": "ramfs"}, "ramfs"),
    ],
    ids=["disk", "memory", "disk-in-memory", "root-in-memory"],
)
def test_a_ledger_in_memory_is_told_by_the_nearest_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: dict[str, str], kind: str
) -> None:
    """A ledger in memory ends with the machine, whatever is said of its immutability."""
    found = [
        SimpleNamespace(mountpoint=str(tmp_path) if place == "HERE" else place, fstype=fstype)
        for place, fstype in mounts.items()
    ]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_all: found)
    (tmp_path / "ledger").mkdir()
    assert ledgers.in_memory(tmp_path / "ledger") == kind
