"""Files that somebody else may have made are read up to a bound, and a person is told which file it is."""

from pathlib import Path

import pytest

from control_plane.edge.given_file import read_given
from trust.edge.files import read_at_most
from trust.errors import InputError, Reason


def test_a_file_without_an_end_is_not_read_to_its_end() -> None:
    """A device, or a file that fills the memory."""
    with pytest.raises(OSError, match="too large, more than 1000 bytes: '/dev/zero'"):
        read_at_most(Path("/dev/zero"), 1000)


def test_a_file_of_exactly_the_bound_is_read(tmp_path: Path) -> None:
    """The bound is the most that is read, not the least that is refused."""
    (tmp_path / "file").write_bytes(bytes(1000))
    assert len(read_at_most(tmp_path / "file", 1000)) == 1000


def test_a_person_is_told_which_file_cannot_be_read(tmp_path: Path) -> None:
    """And why."""
    with pytest.raises(InputError, match="does not exist") as caught:
        read_given(tmp_path / "none", 10)
    assert caught.value.reason is Reason.NOT_FOUND
    with pytest.raises(InputError, match="Is a directory"):
        read_given(tmp_path, 10)
