"""Keeps what vouched for a node's signing key over time, so that evidence of an earlier execution can show it.

DIR/SECONDS.jws   an endorsement, by the Unix time of its issue (12 digits)
DIR/SECONDS.pem   the CA certificates that the node trusted then
"""

from pathlib import Path

from trust import limits
from trust.edge.files import write_atomic
from trust.node_key import endorsement_times


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
        name = f"{endorsement_times(endorsement)[0] // 1000:012d}"
        write_atomic(self._directory / f"{name}.pem", anchors_pem)
        write_atomic(self._directory / f"{name}.jws", endorsement)
        self._last = endorsement
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
    anchors = directory / f"{name}.pem"
    return (directory / f"{name}.jws").read_bytes(), anchors.read_bytes() if anchors.exists() else None
