"""What whoever holds the control plane's online keys can sign."""

import datetime
from collections.abc import Mapping

from tuf.api.metadata import MetaFile, Snapshot, Targets, Timestamp

from tests.support.tuf_world import sign_raw
from trust.repository import OnlineSigners, RepositoryState, parse_metadata


def resign(
    state: RepositoryState,
    targets: bytes,
    expires_ms: int,
    online: OnlineSigners,
    ahead: int = 0,
    roles: Mapping[str, bytes | None] | None = None,
) -> tuple[bytes, bytes]:
    """Return timestamp and snapshot that vouch for any targets metadata; their versions may run `ahead`.

    Of the namespaces in `roles` they list that version instead of the newest, or None: nothing.
    """
    assert state.timestamp is not None and state.snapshot is not None
    version = parse_metadata(targets, Targets).signed.version
    snapshot = parse_metadata(state.snapshot, Snapshot)
    snapshot.signed.version += 1 + ahead
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, targets, ["sha256"])
    for role, other in (roles or {}).items():
        if other is None:
            snapshot.signed.meta.pop(f"{role}.json", None)
        else:
            known = parse_metadata(other, Targets).signed.version
            snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(known, other, ["sha256"])
    snapshot.signatures.clear()
    data = sign_raw(snapshot, [online.snapshot])  # type: ignore[list-item]
    timestamp = parse_metadata(state.timestamp, Timestamp)
    timestamp.signed.version += 1 + ahead
    timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
    timestamp.signed.expires = datetime.datetime.fromtimestamp(expires_ms // 1000, datetime.UTC)
    timestamp.signatures.clear()
    return sign_raw(timestamp, [online.timestamp]), data  # type: ignore[list-item]
