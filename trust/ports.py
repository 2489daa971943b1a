"""What the core asks of the world. Each port has a real implementation in an `edge/` and a fake in tests."""

from collections.abc import Iterator
from typing import Protocol


class Clock(Protocol):
    """Time, as data. Wall time for what others signed, monotonic time for what lasts."""

    def now_ms(self) -> int:
        """Return Unix time, in milliseconds."""
        ...

    def monotonic_ms(self) -> int:
        """Return a time that never goes back, in milliseconds; only differences mean anything."""
        ...


class FileSource(Protocol):
    """Where repository files come from. Untrusted: it can delay or lie, the reader verifies.

    Called from a worker thread (python-tuf is synchronous).
    """

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield the file at `path` ("metadata/2.root.json", "targets/<hash>.x"), in chunks.

        Raises:
            FileNotFoundError: the source has no such file (a normal answer in TUF).
            StateError: SOURCE_UNAVAILABLE or DOWNLOAD_TOO_SLOW.
        """
        ...
