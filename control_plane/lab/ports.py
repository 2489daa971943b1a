"""Free TCP ports for a development mesh, outside the range from which the kernel hands out its own."""

import secrets
import socket
from typing import Final

from trust.errors import CapacityError, Reason

FIRST_PORT: Final = 20_000
LAST_PORT: Final = 31_999
_TRIES: Final = 200


def free_port(taken: set[int]) -> int:
    """Return a port that nothing listens on, and add it to `taken`.

    Raises:
        CapacityError: LIMIT_EXCEEDED, when none was found.
    """
    for _ in range(_TRIES):
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT + 1)
        if port in taken:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.add(port)
        return port
    raise CapacityError(Reason.LIMIT_EXCEEDED, f"no free port between {FIRST_PORT} and {LAST_PORT}")
