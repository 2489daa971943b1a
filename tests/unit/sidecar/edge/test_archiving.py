"""What a node lets its archiver take, and which places it may be given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from sidecar.config import Archive
from sidecar.edge.provenance import _archiver
from trust import limits


def before(tmp_path: Path, *, durable: int, oldest_open: int, shipped: int, keep: int) -> int:
    """Ask what may go."""
    made = _archiver(
        cast("Any", SimpleNamespace(archive=Archive(to=str(tmp_path), keep_records=keep))),
        cast(
            "Any",
            SimpleNamespace(
                directory=tmp_path, origin="mesh.test/node/a", durable_size=durable, size=durable
            ),
        ),
        cast("Any", SimpleNamespace(oldest_index=lambda size: min(oldest_open, size))),
        cast("Any", SimpleNamespace(acknowledged=shipped)),
    )
    assert made is not None
    return made._before()


@pytest.mark.parametrize(
    ("durable", "oldest_open", "shipped", "keep", "expected"),
    [
        (900, 900, 900, 100, 800),
        (900, 300, 900, 100, 300),
        (900, 900, 200, 100, 200),
        (900, 900, 0, 0, 0),
        (50, 50, 50, 100, 0),
    ],
)
def test_nothing_goes_that_is_new_or_open_or_not_shipped(
    tmp_path: Path, durable: int, oldest_open: int, shipped: int, keep: int, expected: int
) -> None:
    """The index is filled, and open executions are closed after a crash, from what is on the node's disk."""
    assert before(tmp_path, durable=durable, oldest_open=oldest_open, shipped=shipped, keep=keep) == expected


def test_without_configuration_nothing_is_archived() -> None:
    """The default."""
    nothing = cast("Any", None)
    assert _archiver(cast("Any", SimpleNamespace(archive=None)), nothing, nothing, nothing) is None


@pytest.mark.parametrize("to", ["/var/archive", "file:///var/archive", "s3://bucket/prefix", "s3://bucket"])
def test_a_folder_or_a_url_names_the_place(to: str) -> None:
    """One key, whatever the place."""
    assert (Archive(to=to).to, Archive(to=to).keep_records) == (to, limits.ARCHIVE_KEPT_RECORDS)


@pytest.mark.parametrize("to", ["relative/folder", "s3://key:secret@bucket/x", "gs://bucket", "http://x/y"])
def test_other_places_and_credentials_are_refused(to: str) -> None:
    """Before the node starts, not at the first attempt."""
    with pytest.raises(ValidationError, match=r"absolute path|without credentials"):
        Archive(to=to)
