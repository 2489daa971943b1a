"""Free TCP ports for a development mesh, outside the range from which the kernel hands out its own."""

import os
import secrets
import socket
from collections import deque
from typing import Final

from trust.errors import CapacityError, Reason

FIRST_PORT: Final = 20_000
LAST_PORT: Final = 31_999
_TRIES: Final = 200
_MAX_RESERVED: Final = 128  # those of one mesh are listened on long before so many others were chosen
_reserved: Final[deque[int]] = deque()  # descriptors


def free_port(taken: set[int]) -> int:
    """Return a port that nothing listens on and no other mesh of this machine has chosen, and add it to `taken`.

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
        if not _reserve(port):
            continue
        taken.add(port)
        return port
    raise CapacityError(Reason.LIMIT_EXCEEDED, f"no free port between {FIRST_PORT} and {LAST_PORT}")


def _reserve(port: int) -> bool:
    """Keep others from choosing the port before somebody listens on it; False when it is chosen already.

    Seconds pass between the two: of several meshes that start at once (tests do that) some would meet on one port.
    An abstract Unix socket is a name that one process has at a time, and that goes with the process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        try:
            name.bind(f"\0egm-port-{port}")
        except OSError:
            return False
        _reserved.append(name.detach())
    while len(_reserved) > _MAX_RESERVED:
        os.close(_reserved.popleft())
    return True
