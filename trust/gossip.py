"""What two members tell each other so that both know what either knew, in at most two exchanges.

Each message has a digest of what its sender holds; only where the digests differ are the ids compared, and only what
is missing is sent. Nothing here is verified: items carry their own signatures, and whoever keeps them checks those.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from trust import limits

_WINDOW: Final = 64
_OVERHEAD_BYTES: Final = 64  # of one item in a message, and some


@dataclass(frozen=True, slots=True)
class Head:
    """A ledger's tree head as its node signed it, and what vouches for the node's key."""

    checkpoint: bytes
    endorsement: bytes


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a member holds now. Keys are ids, 64 hexadecimal digits."""

    timestamp_version: int = 0
    timestamp_json: bytes = b""
    directives: Mapping[str, bytes] = field(default_factory=dict)
    proofs: Mapping[str, bytes] = field(default_factory=dict)
    policy: tuple[int, bytes] = (0, b"")  # base version, SHA-256 of its targets metadata

    def ids(self) -> list[str]:
        """Return every id, sorted."""
        return sorted({*self.directives, *self.proofs})

    def sha256(self) -> bytes:
        """Return the digest over the ids held, 32 bytes."""
        return hashlib.sha256(b"".join(map(bytes.fromhex, self.ids()))).digest()


@dataclass(frozen=True, slots=True)
class Told:
    """The content of one message. `held` is None where ids are not listed."""

    timestamp_version: int = 0
    timestamp_json: bytes = b""
    held_sha256: bytes = b""
    held: tuple[bytes, ...] | None = None
    directives: tuple[bytes, ...] = ()
    proofs: tuple[bytes, ...] = ()
    heads: tuple[Head, ...] = ()
    policy: tuple[int, bytes] = (0, b"")
    credentials: tuple[bytes, ...] = ()
    relay: int | None = None  # how many members after the receiver, by name, it is asked to tell

    def splits_from(self, mine: tuple[int, bytes]) -> bool:
        """Return whether its sender holds another content of the policy version that is held here."""
        return self.policy[0] == mine[0] > 0 and self.policy[1] != mine[1]


def opening(
    mine: Inventory,
    *,
    news: Sequence[str] = (),
    heads: Sequence[Head] = (),
    credentials: Sequence[bytes] = (),
) -> Told:
    """Return what begins an exchange: a summary, and what the other side probably lacks.

    Args:
        mine: what is held here.
        news: ids of items that are new here.
        heads: ledger heads to show; those beyond MAX_GOSSIP_HEADS are left out.
        credentials: trust credentials to show; those beyond MAX_GOSSIP_CREDENTIALS are left out.
    """
    shown = _shown(heads, credentials)
    return replace(_told(mine, set(news), None), heads=shown[0], credentials=shown[1])


def answer(
    theirs: Told, mine: Inventory, *, heads: Sequence[Head] = (), credentials: Sequence[bytes] = ()
) -> Told:
    """Return the answer to a message: what its sender lacks, or the ids held here so that it can tell.

    Call it after what `theirs` brought was taken in.

    Args:
        theirs: the message.
        mine: what is held here.
        heads: ledger heads to show.
        credentials: trust credentials to show.
    """
    shown = _shown(heads, credentials)
    return replace(_lacking(theirs, mine), heads=shown[0], credentials=shown[1])


def _lacking(theirs: Told, mine: Inventory) -> Told:
    newer = mine.timestamp_version > theirs.timestamp_version
    if theirs.held is not None:
        held = set(theirs.held)
        lacking = {name for name in mine.ids() if bytes.fromhex(name) not in held}
        return _told(mine, lacking, None, timestamp=newer)
    if theirs.held_sha256 == mine.sha256():
        return _told(mine, set(), None, timestamp=newer)
    return _told(mine, set(), tuple(map(bytes.fromhex, mine.ids())), timestamp=newer)


def follow_up(theirs: Told, mine: Inventory) -> Told | None:
    """Return the second message of an exchange, None when both sides hold the same.

    Args:
        theirs: the answer to the opening; what it brought was taken in.
        mine: what is held here.
    """
    newer = mine.timestamp_version > theirs.timestamp_version
    if theirs.held is None:
        return _told(mine, set(), None, timestamp=True) if newer else None
    held = set(theirs.held)
    lacking = {name for name in mine.ids() if bytes.fromhex(name) not in held}
    return _told(mine, lacking, tuple(map(bytes.fromhex, mine.ids())), timestamp=newer)


def everything(mine: Inventory) -> Told:
    """Return all that is held, as a stream of news begins with it; what does not fit comes by exchanges."""
    return _told(mine, set(mine.ids()), None, timestamp=True)


def _told(
    mine: Inventory,
    wanted: Iterable[str],
    held: tuple[bytes, ...] | None,
    *,
    timestamp: bool = False,
) -> Told:
    """Put a message together within MAX_GOSSIP_BYTES and MAX_GOSSIP_ITEMS; denials come before proofs."""
    room = limits.MAX_GOSSIP_BYTES // 2  # the rest is for ids, heads and the lease
    chosen: dict[bool, list[bytes]] = {True: [], False: []}
    for name in sorted(wanted, key=lambda one: (one not in mine.directives, one)):
        is_directive = name in mine.directives
        data = mine.directives[name] if is_directive else mine.proofs.get(name)
        if data is None or room < len(data) + _OVERHEAD_BYTES:
            continue
        if len(chosen[True]) + len(chosen[False]) >= limits.MAX_GOSSIP_ITEMS:
            break
        room -= len(data) + _OVERHEAD_BYTES
        chosen[is_directive].append(data)
    return Told(
        mine.timestamp_version,
        mine.timestamp_json if timestamp else b"",
        mine.sha256(),
        held,
        tuple(chosen[True]),
        tuple(chosen[False]),
        policy=mine.policy,
    )


def _shown(heads: Sequence[Head], credentials: Sequence[bytes]) -> tuple[tuple[Head, ...], tuple[bytes, ...]]:
    return tuple(heads)[: limits.MAX_GOSSIP_HEADS], tuple(credentials)[: limits.MAX_GOSSIP_CREDENTIALS]


class Sequences:
    """Which messages were received before: a window per sender and boot. Not thread-safe."""

    def __init__(self, capacity: int = limits.MAX_GOSSIP_SENDERS) -> None:
        """Remember nobody."""
        self._capacity = capacity
        self._seen: dict[
            str, tuple[str, int, int]
        ] = {}  # sender -> boot, highest, bits of the window below it

    def is_new(self, sender: str, boot_id: str, sequence: int) -> bool:
        """Return whether a message is no repetition, and remember it; one far behind the newest counts as repeated."""
        boot, highest, bits = self._seen.pop(sender, ("", 0, 0))
        if boot != boot_id:
            highest, bits = sequence, 0
            fresh = True
        elif sequence > highest:
            shift = sequence - highest
            bits = ((bits << 1 | 1) << (shift - 1)) & (2**_WINDOW - 1) if shift <= _WINDOW else 0
            highest, fresh = sequence, True
        else:
            back = highest - sequence
            fresh = 0 < back <= _WINDOW and not bits >> (back - 1) & 1
            if fresh:
                bits |= 1 << (back - 1)
        if len(self._seen) >= self._capacity:
            del self._seen[next(iter(self._seen))]
        self._seen[sender] = (boot_id, highest, bits)
        return fresh
