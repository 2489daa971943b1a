"""The real clock."""

import time


class SystemClock:
    """Wall and monotonic time of this machine (`trust.ports.Clock`)."""

    def now_ms(self) -> int:
        """Return Unix time, in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return monotonic time, in milliseconds."""
        return time.monotonic_ns() // 1_000_000
