"""Certificates on disk: whole, private, and for the right name."""

from pathlib import Path

import pytest

from tests.support.identity import make_ca, make_svid, member
from trust.edge.svid_store import SvidStore
from trust.errors import InputError
from trust.spiffe import SpiffeId

ALICE, BOB = member("workload", "alice"), member("workload", "bob")


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """SVIDs and anchors; nothing for a name that was never saved."""
    ca, store = make_ca(tmp_path / "ca"), SvidStore(tmp_path / "store")
    svid = make_svid(ca, ALICE)
    assert store.load(ALICE) is None
    assert store.load_anchors() is None
    store.save(svid)
    store.save_anchors(ca.anchors_pem())
    assert store.load(ALICE) == svid
    assert store.load(BOB) is None
    assert store.load_anchors() == ca.anchors_pem()


def test_a_write_that_crashed_before_its_rename_leaves_the_old_pair(tmp_path: Path) -> None:
    """The half-written temporary file is not looked at."""
    ca, store = make_ca(tmp_path / "ca"), SvidStore(tmp_path)
    svid = make_svid(ca, ALICE)
    store.save(svid)
    (tmp_path / ".workload+alice.svid.pem.1.tmp").write_bytes(svid.key_pem[:50])
    assert store.load(ALICE) == svid


@pytest.mark.parametrize("size", [0, 1, 100, 300])
def test_a_truncated_file_is_an_error_that_says_what_to_do(tmp_path: Path, size: int) -> None:
    """A damaged disk must not look like a node that never enrolled."""
    store = SvidStore(tmp_path)
    store.save(make_svid(make_ca(tmp_path / "ca"), ALICE))
    path = tmp_path / "workload+alice.svid.pem"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="enrol again"):
        store.load(ALICE)


def test_a_file_that_others_may_read_or_of_another_name_is_refused(tmp_path: Path) -> None:
    """A copied or exposed key is not used."""
    store = SvidStore(tmp_path)
    store.save(make_svid(make_ca(tmp_path / "ca"), ALICE))
    path = tmp_path / "workload+alice.svid.pem"
    (tmp_path / "workload+bob.svid.pem").write_bytes(path.read_bytes())
    (tmp_path / "workload+bob.svid.pem").chmod(0o600)
    with pytest.raises(InputError, match="is for spiffe://mesh"):
        store.load(BOB)
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        store.load(ALICE)


def test_different_names_never_share_a_file(tmp_path: Path) -> None:
    """`a/b` and anything that might be spelled like it."""
    store = SvidStore(tmp_path)
    paths = {store._path(SpiffeId("mesh.test", path)) for path in ("a/b", "a.b", "a-b", "a_b", "ab", "a/b/c")}
    assert len(paths) == 6


def test_broken_anchors_are_an_error(tmp_path: Path) -> None:
    """Trusting nobody silently would look like a network problem."""
    store = SvidStore(tmp_path)
    store.save_anchors(b"junk")
    with pytest.raises(InputError, match=r"ca\.pem"):
        store.load_anchors()
