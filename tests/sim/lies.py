"""What whoever holds the control plane's online keys can sign."""

import datetime

from tuf.api.metadata import MetaFile, Snapshot, Targets, Timestamp

from tests.sim.realm import online
from tests.support.tuf_world import sign_raw
from trust.repository import RepositoryState, parse_metadata


def resign(state: RepositoryState, targets: bytes, expires_ms: int) -> tuple[bytes, bytes]:
    """Return timestamp and snapshot that vouch for any targets metadata."""
    assert state.timestamp is not None and state.snapshot is not None
    version = parse_metadata(targets, Targets).signed.version
    snapshot = parse_metadata(state.snapshot, Snapshot)
    snapshot.signed.version += 1
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, targets, ["sha256"])
    snapshot.signatures.clear()
    data = sign_raw(snapshot, [online().snapshot])  # type: ignore[list-item]
    timestamp = parse_metadata(state.timestamp, Timestamp)
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    timestamp.signed.expires = datetime.datetime.fromtimestamp(expires_ms // 1000, datetime.UTC)
    timestamp.signatures.clear()
    return sign_raw(timestamp, [online().timestamp]), data  # type: ignore[list-item]
