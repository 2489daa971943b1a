"""Decides what happens to bytes between two members: partitions, delays, losses, resets. The rules of all links."""

import asyncio
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from trust.errors import InputError, Reason

Pair = tuple[str, str]  # (source, target): the direction in which the bytes go

RETRANSMIT_S: Final = 0.2  # what a lost segment costs the first time; doubled for each further loss
_MAX_LOSSES: Final = 6


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to bytes from one member to another. The default is a good network.

    Args:
        drop: nothing arrives, while connections stay open and new ones are not answered, as behind a cut cable;
            what was sent meanwhile arrives after the heal, as TCP would send it again.
        reset: connections are reset and new ones refused, as by a firewall that rejects.
        delay_ms, jitter_ms: how much later bytes arrive: the delay and up to the jitter.
        loss: part of the segments, 0 to 1, that must be sent again. TCP hides a loss from programs: it is a stall.
        bytes_per_s: no more arrive in a second; None: no limit.
    """

    drop: bool = False
    reset: bool = False
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    bytes_per_s: int | None = None

    def __post_init__(self) -> None:
        if min(self.delay_ms, self.jitter_ms) < 0:
            raise InputError(Reason.INPUT_INVALID, "delay_ms and jitter_ms must not be negative")
        if not 0 <= self.loss <= 1:
            raise InputError(Reason.INPUT_INVALID, f"loss {self.loss} must be between 0 and 1")
        if self.bytes_per_s is not None and self.bytes_per_s <= 0:
            raise InputError(
                Reason.INPUT_INVALID, "bytes_per_s must be positive; use drop to let nothing pass"
            )


NONE: Final = Fault()


class Network:
    """The faults in force, by direction. Links ask before they pass anything on."""

    def __init__(self, seed: int) -> None:
        """Start without faults; `seed` decides jitter and losses."""
        self._random = random.Random(seed)  # noqa: S311 (faults to be repeated, not secrets)
        self._faults: dict[Pair, Fault] = {}
        self._changed = asyncio.Event()
        self._on_reset: list[Callable[[Pair], None]] = []
        # told first; what it refuses is not done
        self.carrier: Callable[[dict[Pair, Fault]], None] | None = None

    def fault(self, source: str, target: str) -> Fault:
        """Return what happens to bytes from `source` to `target` now."""
        return self._faults.get((source, target), NONE)

    def faults(self) -> dict[Pair, Fault]:
        """Return every fault in force."""
        return dict(self._faults)

    def dropped(self, source: str, target: str) -> bool:
        """Return whether nothing gets from `source` to `target`."""
        return self.fault(source, target).drop

    def apply(self, pairs: Iterable[Pair], fault: Fault) -> None:
        """Put `fault` on every direction of `pairs`, instead of what was there."""
        changed = list(pairs)
        faults = {**self._faults, **dict.fromkeys(changed, fault)}
        self._replace({pair: found for pair, found in faults.items() if found != NONE})
        for pair in changed:
            if fault.reset:
                for reset in self._on_reset:
                    reset(pair)
        self._wake()

    def heal(self) -> None:
        """Take every fault away."""
        self._replace({})
        self._wake()

    def _replace(self, faults: dict[Pair, Fault]) -> None:
        if self.carrier is not None:
            self.carrier(faults)
        self._faults = faults

    def on_reset(self, reset: Callable[[Pair], None]) -> None:
        """Call `reset` with every direction whose connections are to be reset."""
        self._on_reset.append(reset)

    async def change(self) -> None:
        """Wait until a fault is set or taken away."""
        await self._changed.wait()

    def stall_s(self, fault: Fault) -> float:
        """Draw how much later a segment arrives under `fault`, in seconds."""
        late = (fault.delay_ms + fault.jitter_ms * self._random.random()) / 1000
        retransmit = RETRANSMIT_S
        for _ in range(_MAX_LOSSES):
            if self._random.random() >= fault.loss:
                break
            late += retransmit
            retransmit *= 2
        return late

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def between(groups: Collection[Collection[str]], *, one_way: bool) -> set[Pair]:
    """Return every direction from a member of one group to a member of another.

    Args:
        groups: members that still reach each other; members in none of them keep all their links.
        one_way: only from an earlier group to a later one; answers still come back.

    Raises:
        InputError: INPUT_INVALID, when fewer than two groups are named or one member is in two.
    """
    if len(groups) < 2:
        raise InputError(Reason.INPUT_INVALID, 'a partition has two groups or more, as in {"a"}, {"b", "c"}')
    placed: dict[str, int] = {}
    for number, group in enumerate(groups):
        for name in group:
            if placed.setdefault(name, number) != number:
                raise InputError(Reason.INPUT_INVALID, f"{name!r} is on two sides of one partition")
    return {
        (source, target)
        for source, here in placed.items()
        for target, there in placed.items()
        if (here < there if one_way else here != there)
    }
