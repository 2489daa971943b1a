"""Keeps what vouched for a node's signing key over time, so that evidence of an earlier execution can show it.

DIR/SECONDS.jws   an endorsement, by the Unix time of its issue (12 digits; SECONDS-1 for another of that second)
DIR/SECONDS.pem   the CA certificates that the node trusted then
DIR/peers/        the same of other nodes, whose permits were accepted here; SECONDS-KEY, by the start of the key id
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trust import limits
from trust.edge.files import read_at_most, write_atomic
from trust.node_key import endorsement_digest, endorsement_times

PEERS: Final = "peers"


class EndorsementFiles:
    """The folder of one node."""

    def __init__(self, directory: Path) -> None:
        """Use `directory`; it is made when it is first needed."""
        self._directory = directory
        self._last = b""

    def keep(self, endorsement: bytes, anchors_pem: bytes) -> None:
        """Write the endorsement if it is a new one; the oldest beyond MAX_KEPT_ENDORSEMENTS go.

        Raises:
            OSError: nothing was lost.
        """
        if endorsement == self._last:
            return
        name = self._name(f"{endorsement_times(endorsement)[0] // 1000:012d}", endorsement)
        write_atomic(self._directory / f"{name}.pem", anchors_pem)
        write_atomic(self._directory / f"{name}.jws", endorsement)
        self._last = endorsement
        for old in sorted(self._directory.glob("*.jws"))[: -limits.MAX_KEPT_ENDORSEMENTS]:
            old.with_suffix(".pem").unlink(missing_ok=True)
            old.unlink(missing_ok=True)

    def _name(self, second: str, endorsement: bytes) -> str:
        """Return a name that no other endorsement has: a node that starts twice in one second makes two."""
        number, name = 0, second
        while (kept := self._directory / f"{name}.jws").exists() and kept.read_bytes() != endorsement:
            number += 1
            name = f"{second}-{number}"
        return name


class PeerEndorsements:
    """What vouched for the keys of other nodes: the callee of a call can then prove its permit by itself."""

    def __init__(self, directory: Path) -> None:
        """Use the folder of one node; `peers` in it is made when it is first needed."""
        self._directory = directory / PEERS
        self._seen: dict[str, tuple[bytes, bytes]] = {}

    def note(self, endorsement: bytes, anchors_pem: bytes) -> None:
        """Remember one that was verified, until `take`; beyond MAX_NODE_KEYS the oldest leaves. Touches no disk."""
        if len(self._seen) >= limits.MAX_NODE_KEYS:
            del self._seen[next(iter(self._seen))]
        self._seen[endorsement_digest(endorsement)] = endorsement, anchors_pem

    def take(self) -> dict[str, tuple[bytes, bytes]]:
        """Return what was noted since, for `write`: key id to endorsement and CA certificates."""
        taken, self._seen = self._seen, {}
        return taken

    def write(self, noted: Mapping[str, tuple[bytes, bytes]]) -> None:
        """Write those that are new; the oldest beyond MAX_KEPT_ENDORSEMENTS go. May run in a thread.

        Raises:
            OSError: some were written, each whole.
        """
        for key_id, (endorsement, anchors_pem) in noted.items():
            name = f"{endorsement_times(endorsement)[0] // 1000:012d}-{key_id[:16]}"
            if not (self._directory / f"{name}.jws").exists():
                write_atomic(self._directory / f"{name}.pem", anchors_pem)
                write_atomic(self._directory / f"{name}.jws", endorsement)
        if noted:
            for old in sorted(self._directory.glob("*.jws"))[: -limits.MAX_KEPT_ENDORSEMENTS]:
                old.with_suffix(".pem").unlink(missing_ok=True)
                old.unlink(missing_ok=True)


def read_endorsements(directory: Path, at_ms: int) -> tuple[bytes | None, bytes | None]:
    """Return the endorsement in force at `at_ms` and its CA certificates, else the first after it; unverified."""
    names = sorted(path.stem for path in directory.glob("*.jws"))
    # an endorsement's time is whole seconds: one of the same second may be a little after the record
    before = [name for name in names if name <= f"{at_ms // 1000:012d}"]
    if not names:
        return None, None
    name = before[-1] if before else names[0]
    return _endorsement(directory / f"{name}.jws"), _anchors(directory / f"{name}.pem")


def find_endorsement(directory: Path, key_id: str, at_ms: int) -> tuple[bytes | None, bytes | None]:
    """Return the endorsement that permits of `key_id` name, and its CA certificates; unverified.

    Args:
        directory: as for `read_endorsements`.
        key_id: digest of the endorsement (`trust.node_key.endorsement_digest`).
        at_ms: when it was used, Unix ms: those around it are tried first.
    """
    near = f"{at_ms // 1000:012d}"
    files = sorted(directory.glob("*.jws"), key=lambda path: (path.stem > near, path.stem))
    before = [path for path in files if path.stem <= near]
    for path in (*reversed(before), *files[len(before) :]):
        data = _endorsement(path)
        if endorsement_digest(data) == key_id:
            return data, _anchors(path.with_suffix(".pem"))
    return None, None


def _endorsement(path: Path) -> bytes:
    return read_at_most(path, limits.MAX_ENDORSEMENT_BYTES)


def _anchors(path: Path) -> bytes | None:
    return read_at_most(path, limits.MAX_CERTIFICATE_CHAIN_BYTES) if path.exists() else None
