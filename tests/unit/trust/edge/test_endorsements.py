"""What vouched for a node's key is found again by the time of an execution."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.permits import NOW_S, NodeCa
from trust import limits
from trust.edge.endorsements import EndorsementFiles, read_endorsements
from trust.node_key import endorsement_times, make_endorsement

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
