"""Decides which member dialled a link: the kernel knows whose socket is at the other end (Linux, /proc).

So one link in front of a listener serves every member, whatever the address it took from configuration or policy.
"""

import ipaddress
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Address = tuple[str, int]
OPERATOR = "operator"  # whoever dials from the process that runs the lab


class Diallers:
    """Finds the process that owns a connection."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """Ask `pids` for the running members (name to process id) at every connection."""
        self._pids = pids

    def __call__(self, peer: Address, own: Address) -> str | None:
        """Return the member that connected from `peer` to `own`; None for a stranger, or one that is gone."""
        inode = _inode(peer, own)
        if inode is None:
            return None
        wanted = f"socket:[{inode}]"
        candidates = {**self._pids(), OPERATOR: os.getpid()}
        return next((name for name, pid in candidates.items() if _holds(pid, wanted)), None)


def _inode(local: Address, remote: Address) -> str | None:
    """Return the inode of the socket with these two ends, from its owner's point of view."""
    for table, mapped in (("tcp", False), ("tcp6", True)):
        ends = [_hex(local, mapped=mapped), _hex(remote, mapped=mapped)]
        try:
            rows = Path("/proc/net", table).read_text().splitlines()
        except OSError:
            continue
        for row in rows[1:]:
            fields = row.split()
            if fields[1:3] == ends:
                return fields[9]
    return None


def _hex(address: Address, *, mapped: bool) -> str:
    """Write an IPv4 address as /proc/net/tcp does, or mapped into IPv6 as /proc/net/tcp6 does."""
    packed = ipaddress.IPv4Address(address[0]).packed
    if mapped:
        packed = bytes(10) + b"\xff\xff" + packed
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    host = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{host}:{address[1]:04X}"


def _holds(pid: int, wanted: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)  # noqa: PTH208 (names alone, and quickly)
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"{folder}/{descriptor}") == wanted:  # noqa: PTH115 (as above)
                return True
        except OSError:
            continue
    return False
