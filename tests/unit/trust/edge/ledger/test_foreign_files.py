"""A ledger, or an archive of one, that somebody else has made: nothing in it is read without a bound."""

from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from trust import limits
from trust.edge.ledger.archived import read_archived
from trust.edge.ledger.object_store import Bucket
from trust.edge.ledger.place import Folder
from trust.edge.ledger.reader import Reader
from trust.errors import EvidenceError, Reason, StateError
from trust.tiles import MAX_TILE_BYTES, TILE_WIDTH, encode_entries

NAME = "tile/0/000"


def folder(directory: Path, data: bytes) -> Folder:
    """Return a folder that holds one file."""
    place = Folder(directory)
    (directory / NAME).parent.mkdir(parents=True)
    (directory / NAME).write_bytes(data)
    return place


def bucket(_directory: Path, data: bytes) -> Any:
    """Return a bucket that holds one object."""
    place: Any = Bucket("bucket", "")
    place._store = MemoryStore()
    place._store.put(NAME, data)
    return place


@pytest.mark.parametrize("make", [folder, bucket], ids=["folder", "bucket"])
def test_what_is_larger_than_any_tile_is_refused(tmp_path: Path, make: Any) -> None:
    """An archive could else fill the memory of whoever verifies it."""
    with pytest.raises(EvidenceError, match="no tile") as caught:
        make(tmp_path / "large", bytes(MAX_TILE_BYTES + 1)).read(NAME)
    assert caught.value.reason is Reason.PROOF_INVALID
    assert len(make(tmp_path / "full", bytes(MAX_TILE_BYTES)).read(NAME)) == MAX_TILE_BYTES


def test_a_full_entry_bundle_is_the_largest_tile() -> None:
    """So the bound refuses nothing that a ledger has."""
    assert len(encode_entries([bytes(32)] * TILE_WIDTH)) == MAX_TILE_BYTES


def test_a_checkpoint_of_any_size_is_refused_as_no_note(tmp_path: Path) -> None:
    """Without reading more of it than a note may have."""
    (tmp_path / "checkpoint").write_bytes(b"a" * (limits.MAX_NOTE_BYTES + 100))
    with pytest.raises(EvidenceError, match=f"{limits.MAX_NOTE_BYTES + 1} bytes; a note has at most"):
        Reader(tmp_path)


def test_a_record_number_of_thousands_of_digits_is_refused_by_its_line(tmp_path: Path) -> None:
    """Python refuses to read it, with an error of its own."""
    (tmp_path / "archived").write_text("0 /to\n" + "9" * 5000 + " /to\n")
    with pytest.raises(StateError, match="line 2"):
        read_archived(tmp_path)
