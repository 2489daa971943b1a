"""Files with secrets in them are never readable by others, not even for a moment or under another name."""

import os
import stat
from pathlib import Path

import pytest

from trust.edge.files import check_private, owned_by_this_process, write_atomic
from trust.errors import InputError


def test_a_file_or_link_prepared_under_a_temporary_name_never_receives_the_secret(tmp_path: Path) -> None:
    """Whoever may write to the directory could otherwise guess the name and keep the file open."""
    trap = tmp_path / "trap"
    trap.write_bytes(b"")
    (tmp_path / f".key.pem.{os.getpid()}.tmp").symlink_to(trap)
    write_atomic(tmp_path / "key.pem", b"secret", mode=0o600)
    assert trap.read_bytes() == b""
    assert (tmp_path / "key.pem").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """The target of the link keeps its content."""
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    (tmp_path / "key.pem").symlink_to(other)
    write_atomic(tmp_path / "key.pem", b"secret", mode=0o600)
    assert other.read_bytes() == b"theirs"
    assert not (tmp_path / "key.pem").is_symlink()


def test_the_mode_does_not_depend_on_the_umask_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public file is readable by others, a private one never; a full disk leaves no half file."""
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "public", b"x")
        write_atomic(tmp_path / "private", b"x", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644
    check_private(tmp_path / "private")
    with pytest.raises(InputError):
        check_private(tmp_path / "public")

    def full(_descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(tmp_path / "private", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["private", "public"]
    assert (tmp_path / "private").read_bytes() == b"x"


def test_what_a_killed_process_left_half_written_is_removed_by_the_next_owner_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a private key. What is a minute old at most may still get its name; other files are left alone."""
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        for path in (tmp_path / "key.pem", tmp_path / "identity" / "node", tmp_path / "a" / "b" / "x.json"):
            with pytest.raises(OSError):
                write_atomic(path, b"half", mode=0o600)
    left = sorted(tmp_path.rglob("*.tmp"))
    assert len(left) == 3
    others = [
        tmp_path / name for name in (".tmp", ".key.tmp", "key.abcdefgh.tmp", ".x.ABCDEFGH.tmp", "key.pem")
    ]
    for path in others:
        path.write_bytes(b"")
    with owned_by_this_process(tmp_path):
        assert sorted(tmp_path.rglob("*.tmp")) == sorted([*left, *others[:-1]]), "too young"
    for path in (*left, *others):
        os.utime(path, (0, 0))
    with owned_by_this_process(tmp_path):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others)
