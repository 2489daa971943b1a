"""Ledgers with a fixed key, for tests."""

import threading
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.edge.clock import SystemClock
from trust.edge.ledger import Ledger
from trust.note import Verifier

ORIGIN = "example.org/node/a"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
LOG = Verifier(ORIGIN, PUBLIC)


class FakeClock:
    """Time that stands still, so that no checkpoint is signed for its age."""

    def __init__(self) -> None:
        self.now = 1_795_392_000_000

    def now_ms(self) -> int:
        """Unix time."""
        return self.now

    def monotonic_ms(self) -> int:
        """Monotonic time."""
        return self.now


def open_ledger(directory: Path, **options: Any) -> Ledger:
    """Open the test log in `directory`."""
    settings: dict[str, Any] = {
        "origin": ORIGIN,
        "signer": KEY.sign,
        "public_key": PUBLIC,
        "clock": SystemClock(),
    }
    return Ledger.open(directory, **(settings | options))


def record(index: int) -> bytes:
    """A record that tells its index; the lengths vary."""
    return f"record {index} ".encode() + b"x" * (index % 97)


async def fill(directory: Path, count: int, **options: Any) -> bytes:
    """Add `count` records durably, close, and return the last checkpoint."""
    ledger = open_ledger(directory, **options)
    start = ledger.size
    pending = None
    for index in range(start, start + count):
        pending = await ledger.enqueue(record(index))
    if pending is not None:
        await ledger.durable(pending)
    await ledger.close()
    return ledger.last_checkpoint


def threads() -> set[str]:
    """The ledger threads that are running."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("egm-ledger")}
