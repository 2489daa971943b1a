"""The copy of the repository on disk: what is served, and what a crash leaves behind."""

import hashlib
from pathlib import Path

import pytest

from control_plane.edge import repository_files
from control_plane.edge.repository_files import RepositoryFiles
from trust.edge.files import write_atomic
from trust.errors import EvidenceError

FILES = {
    "metadata/timestamp.json": b"timestamp",
    "metadata/1.snapshot.json": b"snapshot",
    "metadata/1.targets.json": b"targets",
    "metadata/1.root.json": b"root",
    "targets/aa.base.tar.gz": b"archive",
    "targets/payments/bb.bundle.tar.gz": b"namespace",
}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return path to SHA-256."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def test_what_others_point_to_is_written_first(tmp_path: Path) -> None:
    """A reader who sees the new timestamp finds everything behind it."""
    order = RepositoryFiles(tmp_path).missing(digests(FILES))
    assert [path.partition("/")[0] for path in order] == ["targets"] * 2 + ["metadata"] * 4
    assert order[-1] == "metadata/timestamp.json"


@pytest.mark.parametrize("survived", range(len(FILES)))
def test_a_crash_after_any_write_leaves_the_old_timestamp_and_is_completed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Whatever was written before the crash, readers still see the old state, whole."""
    old = RepositoryFiles(tmp_path)
    old.missing({})
    old.write({"metadata/timestamp.json": b"old"})
    written = 0

    def dying(path: Path, data: bytes) -> None:
        nonlocal written
        if written == survived:
            raise OSError("power cut")
        written += 1
        write_atomic(path, data)

    monkeypatch.setattr(repository_files, "write_atomic", dying)
    with pytest.raises(OSError, match="power cut"):
        old.write(FILES)
    assert (tmp_path / "metadata/timestamp.json").read_bytes() == b"old"
    monkeypatch.undo()
    restarted = RepositoryFiles(tmp_path)
    missing = restarted.missing(digests(FILES))
    assert len(missing) == len(FILES) - survived
    restarted.write({path: FILES[path] for path in missing})
    assert set(restarted.paths()) == set(FILES)
    assert restarted.missing(digests(FILES)) == []


def test_only_known_paths_are_opened(tmp_path: Path) -> None:
    """A file that lies in the directory but was not published is not served."""
    files = RepositoryFiles(tmp_path)
    files.missing({})
    (tmp_path / "metadata" / "9.root.json").write_bytes(b"planted")
    assert files.open("metadata/9.root.json") is None
    files.write({"metadata/1.root.json": b"root"})
    opened = files.open("metadata/1.root.json")
    assert opened is not None
    with opened[0] as file:
        assert (file.read(), opened[1]) == (b"root", 4)
    assert files.open("metadata/../metadata/1.root.json") is None


@pytest.mark.parametrize(
    "path", ["../x", "metadata/../../x", "/etc/x", "metadata//x", "x", "other/x", "metadata"]
)
def test_no_path_leaves_the_directory(tmp_path: Path, path: str) -> None:
    """Even the store, which is trusted, cannot make us write elsewhere."""
    with pytest.raises(EvidenceError):
        RepositoryFiles(tmp_path).write({path: b"x"})
