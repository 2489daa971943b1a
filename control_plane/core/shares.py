"""Whose entries go when a bounded table is full: the oldest of the node that holds most of them.

Nodes choose what their records say. One that makes up callers without end uses up its own share, and makes nobody
forget what the records of others taught.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Shares(Generic[K]):
    """The keys of one table by the node whose record brought each in."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._keys: dict[str, dict[K, None]] = {}  # node -> keys, the longest unused first
        self._owner: dict[K, str] = {}

    def touch(self, key: K, node: str) -> None:
        """Note that `key` is in use; a new one is `node`'s from now on."""
        keys = self._keys.setdefault(self._owner.setdefault(key, node), {})
        keys.pop(key, None)
        keys[key] = None

    def owner(self, key: K) -> str:
        """Return whose record brought `key` in; empty when nobody knows."""
        return self._owner.get(key, "")

    def drop(self, key: K) -> None:
        """Forget a key."""
        owner = self._owner.pop(key, None)
        if owner is not None:
            del self._keys[owner][key]
            if not self._keys[owner]:
                del self._keys[owner]

    def victim(self) -> K:
        """Return the key that makes room, and forget it; there must be one."""
        largest = max(self._keys.values(), key=len)
        key = next(iter(largest))
        self.drop(key)
        return key
