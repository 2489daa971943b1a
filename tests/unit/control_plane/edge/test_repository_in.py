"""A repository's directory, read for an export of evidence."""

from pathlib import Path

import pytest

from control_plane.edge.evidence_export import repository_in
from trust import limits
from trust.errors import InputError, Reason


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A directory with one file of metadata."""
    (tmp_path / "repository" / "metadata").mkdir(parents=True)
    (tmp_path / "repository" / "metadata" / "timestamp.json").write_bytes(b"{}")
    return tmp_path / "repository"


def test_files_are_read_and_what_is_not_there_is_nothing(repository: Path) -> None:
    """The past is read as far as it was kept."""
    read = repository_in(repository)
    assert read("metadata/timestamp.json") == b"{}"
    assert read("metadata/1.root.json") is None
    assert read("metadata/timestamp.json/x") is None


def test_names_chosen_by_whoever_wrote_the_metadata_lead_nowhere_else(repository: Path) -> None:
    """A role's name in foreign metadata is part of a path."""
    (repository.parent / "secret.json").write_bytes(b"secret")
    assert repository_in(repository)("metadata/../../secret.json") is None


def test_a_huge_file_is_named_and_not_read(repository: Path) -> None:
    """Somebody else may have made the directory."""
    with (repository / "metadata" / "2.root.json").open("wb") as file:
        file.truncate(limits.MAX_BUNDLE_ARCHIVE_BYTES + 1)
    with pytest.raises(OSError, match="too large"):
        repository_in(repository)("metadata/2.root.json")


def test_a_directory_without_metadata_is_none(tmp_path: Path) -> None:
    """The error says which folder to name."""
    with pytest.raises(InputError, match="no folder 'metadata'") as refused:
        repository_in(tmp_path)
    assert refused.value.reason is Reason.NOT_FOUND
