"""What counts as an announcement."""

import json
from typing import Any

import pytest

from trust import announce, limits
from trust.errors import EvidenceError, InputError, Reason


def payload(**signed: Any) -> bytes:
    return json.dumps({"signatures": [], "signed": {"_type": "timestamp", "version": 3, **signed}}).encode()


def test_the_version_is_read_and_the_bytes_are_kept_verbatim() -> None:
    """The hint is verified later, over the received bytes."""
    raw = payload(expires="2030-01-01T00:00:00Z")
    assert announce.parse_announcement(raw) == announce.Announced(3, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"timestamp"',
        b"{}",
        b'{"signed": []}',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"signed": {"_type": "timestamp", "version": ' + b"9" * 20_000 + b"}}",
        payload(_type="snapshot"),
        payload(version=0),
        payload(version=-1),
        payload(version=True),
        payload(version=3.0),
        payload(version="3"),
        payload(version=None),
        payload(version=2**53),
        payload(x="a" * limits.MAX_ANNOUNCEMENT_BYTES),
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_anything_else_is_garbage(raw: bytes) -> None:
    """A broker may send what it likes."""
    with pytest.raises(EvidenceError) as caught:
        announce.parse_announcement(raw)
    assert caught.value.reason is Reason.METADATA_INVALID


def test_the_topic_names_the_trust_domain() -> None:
    """Many meshes may share a broker."""
    assert announce.topic("mesh.local") == "egm/v1/mesh.local/policy"
    assert announce.is_topic(announce.topic("mesh.local"))


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "mesh.local/#", "MESH", "a\0b"])
def test_a_trust_domain_cannot_reach_other_topics(name: str) -> None:
    """A wildcard or a level in the name would subscribe to somebody else's announcements."""
    with pytest.raises(EvidenceError):
        announce.topic(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#",
        "egm/#",
        "egm/v1/+/policy",
        "egm/v1//policy",
        "egm/v1/a/b/policy",
        "egm/v1/a/policy\n",
        "$SYS/#",
    ],
)
def test_only_a_literal_announcement_topic_is_one(text: str) -> None:
    """The embedded broker serves nothing else."""
    assert not announce.is_topic(text)


@pytest.mark.parametrize("size", [0, limits.MAX_ANNOUNCEMENT_BYTES + 1])
def test_an_empty_or_too_large_payload_may_not_be_announced(size: int) -> None:
    """An empty retained message erases the announcement; a larger one every listener drops."""
    with pytest.raises(InputError, match=str(limits.MAX_ANNOUNCEMENT_BYTES)):
        announce.check_payload(b"x" * size)
