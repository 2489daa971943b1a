"""Which other nodes this one knows, and where they answer: from configuration, signed policy and the control plane.

    FILE    {"NODE": "HOST:PORT", ...}    what the control plane named last: known again after a restart without it

Addresses are hints: who answers there must prove its name by certificate.
"""

import json
import logging
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from trust import limits
from trust.address import split_address
from trust.edge.files import write_atomic
from trust.errors import MeshError
from trust.spiffe import check_name

logger = logging.getLogger(__name__)


class PeerBook:
    """The peers of one node."""

    def __init__(self, path: Path, me: str, configured: Mapping[str, str]) -> None:
        """Read what the control plane named before; a file that cannot be read counts as empty.

        Args:
            path: the file.
            me: this node's name, which is nobody's peer.
            configured: NAME: HOST:PORT from the configuration; wins over every other source.
        """
        self._path, self._me, self._configured = path, me, dict(configured)
        self._signed: dict[str, str] = {}
        self._named: dict[str, str] = _usable(_read(path).items())

    def addresses(self) -> dict[str, str]:
        """Return NAME -> HOST:PORT of every other node that is known, at most MAX_PEERS, those that are sure first."""
        known = {**self._named, **self._signed, **self._configured}
        known.pop(self._me, None)
        sure = [name for name in known if name in self._configured or name in self._signed]
        others = [name for name in known if name not in set(sure)]
        return {name: known[name] for name in [*sure, *others][: limits.MAX_PEERS]}

    def shuffled(self) -> list[str]:
        """Return the names in random order, so that nodes do not all talk to the same ones first."""
        names = list(self.addresses())
        random.shuffle(names)
        return names

    def signed(self, addresses: Mapping[str, str]) -> None:
        """Take the addresses in the signed policy (the witness roster)."""
        self._signed = _usable(addresses.items())

    def named(self, peers: Iterable[tuple[str, str]]) -> bool:
        """Take what the control plane says; return whether anything changed. An empty answer changes nothing."""
        usable = _usable(peers)
        if not usable or usable == self._named:
            return False
        self._named = usable
        try:
            write_atomic(self._path, json.dumps(usable, sort_keys=True).encode())
        except OSError as error:
            logger.warning("peers are not remembered: %s: %s", self._path, error.strerror or error)
        return True


def _usable(peers: Iterable[tuple[object, object]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, address in peers:
        if not isinstance(name, str) or not isinstance(address, str) or len(found) >= limits.MAX_PEERS:
            continue
        try:
            _, port = split_address(address)
            if port:
                found[check_name(name)] = address
        except (MeshError, ValueError):
            continue
    return found


def _read(path: Path) -> dict[object, object]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
