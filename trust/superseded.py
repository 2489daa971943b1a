"""Which timestamp a repository keeps of each past snapshot: the last one, under a path of its own.

timestamp.json only ever is the newest. Evidence of what was decided under an earlier policy needs the chain of that
time whole: its lease, too.
"""

from tuf.api.metadata import Timestamp

from trust.authoring import parse_metadata


def superseded_path(snapshot_version: int) -> str:
    """Return the repository path of the last timestamp that pinned a snapshot; there is one of past snapshots only."""
    return f"metadata/superseded/{snapshot_version}.timestamp.json"


def superseded(timestamp: bytes | None) -> dict[str, bytes]:
    """Return the file that keeps `timestamp` when a new snapshot replaces the one that it pins; none for None.

    Raises:
        EvidenceError: METADATA_INVALID.
    """
    if timestamp is None:
        return {}
    pinned = parse_metadata(timestamp, Timestamp).signed.snapshot_meta
    return {superseded_path(pinned.version): timestamp}
