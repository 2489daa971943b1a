"""A process that appends under load until it is killed; prints the index and digest of what was acknowledged."""

import asyncio
import hashlib
import os
import sys
from pathlib import Path

from tests.support.ledgers import open_ledger


async def caller(ledger: object, name: int, out: int) -> None:
    """Write records of changing lengths, one after the other."""
    for count in range(1_000_000):
        record = os.urandom(1 + (name * 37 + count * 11) % 700)
        index = await ledger.write(record)  # type: ignore[attr-defined]
        os.write(out, f"{index} {hashlib.sha256(record).hexdigest()}\n".encode())


async def main(directory: Path) -> None:
    """Run 24 callers."""
    ledger = open_ledger(directory, checkpoint_period_s=0.02, head_file=directory.with_name("head"))
    await asyncio.gather(*(caller(ledger, name, 1) for name in range(24)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
