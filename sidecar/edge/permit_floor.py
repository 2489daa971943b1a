"""From which date on permits count after a restart: one small file, written before one from ahead is used."""

from pathlib import Path
from typing import Final

from trust import limits
from trust.edge.files import write_atomic
from trust.ports import Clock

FLOOR_FILE: Final = "permit-floor"
_MAX_FILE_BYTES: Final = 32


class PermitFloor:
    """Where `sidecar.core.replay.ReplayCache` stores its time."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Read what the process before this one stored.

        A file that cannot be read counts as the latest time that can have been in it: permits of the next seconds
        are refused, which heals by itself.
        """
        self._path = path
        now_ms = clock.now_ms()
        self.boot_ms = max(now_ms, self._read(now_ms))  # for `ReplayCache(boot_ms=...)`

    def remember(self, ms: int) -> None:
        """Store a time (Unix ms) durably.

        Raises:
            OSError: the old one is still there.
        """
        write_atomic(self._path, b"%d\n" % ms, mode=0o600)

    def _read(self, now_ms: int) -> int:
        latest_ms = now_ms + 2 * limits.MAX_CLOCK_SKEW_MS  # the cache stores no time further ahead
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            return 0
        except OSError:
            return latest_ms
        text = data.removesuffix(b"\n")
        # A stored time far ahead is damage, or the clock was ahead then: believed, it could shut the node for years.
        return min(int(text), latest_ms) if text.isdigit() else latest_ms
