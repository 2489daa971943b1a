"""What vouched for a node's key is found again by the time of an execution."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.permits import NOW_S, NodeCa
from trust import limits
from trust.edge.endorsements import EndorsementFiles, PeerEndorsements, find_endorsement, read_endorsements
from trust.node_key import endorsement_digest, endorsement_times, make_endorsement

NOW_MS = NOW_S * 1000  # an endorsement knows whole seconds
CA = NodeCa()
SVID = CA.svid()
KEY = Ed25519PrivateKey.generate().public_key()
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def issued(at_ms: int) -> bytes:
    """An endorsement of that time."""
    return make_endorsement(SVID, KEY, at_ms)


def test_the_endorsement_in_force_at_a_time_is_found_else_the_first_after_it(tmp_path: Path) -> None:
    """An execution is shown with what vouched for its key then, not with what does now."""
    kept = EndorsementFiles(tmp_path / "made")
    first, second = issued(NOW_MS), issued(NOW_MS + 60_000)
    kept.keep(first, b"one")
    kept.keep(second, b"two")
    for at_ms, expected in (
        (NOW_MS - 1_000, (first, b"one")),
        (NOW_MS, (first, b"one")),
        (NOW_MS + 59_999, (first, b"one")),
        (NOW_MS + 60_000, (second, b"two")),
        (NOW_MS + DAY_MS, (second, b"two")),
    ):
        assert read_endorsements(tmp_path / "made", at_ms) == expected


def test_without_a_folder_there_is_no_endorsement(tmp_path: Path) -> None:
    """A node that kept none can still be exported; verification says what is missing."""
    assert read_endorsements(tmp_path / "none", NOW_MS) == (None, None)


def test_no_file_of_a_foreign_folder_is_read_without_a_bound(tmp_path: Path) -> None:
    """Folders of other nodes are handed over for an export: a huge file there is named, not read."""
    endorsement, anchors = issued(NOW_MS), tmp_path / f"{NOW_S:012d}.pem"
    key_id = endorsement_digest(endorsement)
    EndorsementFiles(tmp_path).keep(endorsement, b"one")
    for path, most in (
        (anchors, limits.MAX_CERTIFICATE_CHAIN_BYTES),
        (anchors.with_suffix(".jws"), limits.MAX_ENDORSEMENT_BYTES),
    ):
        path.write_bytes(b"x" * (most + 1))
        with pytest.raises(OSError, match="too large"):
            read_endorsements(tmp_path, NOW_MS)
        with pytest.raises(OSError, match="too large"):
            find_endorsement(tmp_path, key_id, NOW_MS)


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a node's disk does not grow for ever."""
    monkeypatch.setattr(limits, "MAX_KEPT_ENDORSEMENTS", 2)
    kept = EndorsementFiles(tmp_path)
    for number in range(4):
        kept.keep(issued(NOW_MS + number * 1_000), b"anchors")
    names = sorted(path.stem for path in tmp_path.glob("*.jws"))
    assert names == [f"{NOW_MS // 1000 + number:012d}" for number in (2, 3)]
    assert sorted(path.stem for path in tmp_path.glob("*.pem")) == names


def test_its_times_are_read_without_believing_it() -> None:
    """From its issue to its end, in milliseconds."""
    start_ms, end_ms = endorsement_times(issued(NOW_MS))
    assert start_ms == NOW_MS // 1000 * 1000
    assert start_ms < end_ms <= start_ms + limits.MAX_ENDORSEMENT_LIFETIME_S * 1000


def test_two_endorsements_of_one_second_are_both_kept_and_found_by_key_id(tmp_path: Path) -> None:
    """A node that is started twice in a second signs permits under both."""
    kept = EndorsementFiles(tmp_path)
    first, second = issued(NOW_MS), issued(NOW_MS)
    for one in (first, second, first):
        kept.keep(one, b"anchors")
    assert len(list(tmp_path.glob("*.jws"))) == 2
    for one in (first, second):
        assert find_endorsement(tmp_path, endorsement_digest(one), NOW_MS) == (one, b"anchors")
    assert find_endorsement(tmp_path, endorsement_digest(b"other"), NOW_MS) == (None, None)


def test_endorsements_of_peers_are_noted_at_once_and_written_later(tmp_path: Path) -> None:
    """The event loop notes, a thread writes; each is found by what permits name."""
    peers = PeerEndorsements(tmp_path)
    noted = [issued(NOW_MS + number * 1_000) for number in range(3)]
    for one in (*noted, *noted):
        peers.note(one, b"anchors")
    assert not (tmp_path / "peers").exists()
    peers.write(peers.take())
    peers.write(peers.take())
    assert len(list((tmp_path / "peers").glob("*.jws"))) == 3
    for one in noted:
        assert find_endorsement(tmp_path / "peers", endorsement_digest(one), NOW_MS) == (one, b"anchors")


def test_what_is_kept_of_peers_is_bounded_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes renew for ever, and there may be many; the newest stay."""
    monkeypatch.setattr(limits, "MAX_NODE_KEYS", 3)
    monkeypatch.setattr(limits, "MAX_KEPT_ENDORSEMENTS", 2)
    peers = PeerEndorsements(tmp_path)
    noted = [issued(NOW_MS + number * 1_000) for number in range(4)]
    for one in noted:
        peers.note(one, b"anchors")
    taken = peers.take()
    assert [endorsement for endorsement, _ in taken.values()] == noted[1:]
    peers.write(taken)
    names = sorted(path.stem[:12] for path in (tmp_path / "peers").glob("*.jws"))
    assert names == [f"{NOW_S + number:012d}" for number in (2, 3)]
