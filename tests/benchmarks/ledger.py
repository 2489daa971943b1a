"""How fast the ledger is: appends in memory, durable records with waiting callers, growth, proofs.

    python -m tests.benchmarks.ledger

"memory" is the tree and its tiles alone, as `append` does them; "durable" waits for fdatasync on the disk of the
temporary directory. The worst append is of one million, with the collector off; its CPU time is what growth takes, its
wall time has what else the machine did.
"""

import asyncio
import gc
import hashlib
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.edge.clock import SystemClock
from trust.edge.ledger import Ledger, Reader
from trust.merkle import inclusion_proof
from trust.tiles import Tile, TileBuilder, TileTree

RECORD_BYTES = 600
APPENDS = 1_000_000
CALLERS = (1, 16, 256)
SECONDS = 4.0
RUNS = 3  # the best of so many: the disk is shared


def memory() -> tuple[dict[str, Any], dict[Tile, bytes]]:
    """Append a million entries without a disk; return the row and the tiles."""
    builder, tiles, worst, worst_cpu = TileBuilder.empty(), dict[Tile, bytes](), 0, 0
    records = [os.urandom(RECORD_BYTES) for _ in range(1024)]
    now, cpu = time.perf_counter_ns, time.thread_time_ns
    gc.collect()
    gc.disable()
    started = now()
    for i in range(APPENDS):
        before, before_cpu = now(), cpu()
        full = builder.append(hashlib.sha256(records[i & 1023]).digest())
        worst_cpu, worst = max(worst_cpu, cpu() - before_cpu), max(worst, now() - before)
        if full:
            tiles.update(full)
    elapsed = (now() - started) / 1e9
    gc.enable()
    tiles.update(builder.partial())
    row = {
        "appends_per_s": round(APPENDS / elapsed),
        "worst_append_ms": round(worst / 1e6, 3),
        "worst_append_cpu_ms": round(worst_cpu / 1e6, 3),
    }
    return row, tiles


def proof_us(tiles: dict[Tile, bytes], *, cold: bool) -> float:
    """The median time of one inclusion proof at a million records, microseconds."""

    def fetch(level: int, index: int, width: int) -> bytes:
        return tiles[Tile(level, index, width)]

    tree, times = TileTree(APPENDS, fetch), []
    for i in range(1000):
        if cold:
            tree = TileTree(APPENDS, fetch)
        index = i * 7919 % APPENDS
        started = time.perf_counter_ns()
        inclusion_proof(index, APPENDS, tree.read)
        times.append((time.perf_counter_ns() - started) / 1e3)
    return round(statistics.median(times), 1)


async def durable(directory: Path, callers: int) -> dict[str, Any]:
    """Let `callers` write one record after the other, each waiting until its own is durable."""
    key = Ed25519PrivateKey.generate()
    ledger = Ledger.open(
        directory,
        origin="example.org/bench",
        signer=key.sign,
        public_key=key.public_key().public_bytes_raw(),
        clock=SystemClock(),
    )
    record, counted, waits = os.urandom(RECORD_BYTES), 0, list[float]()
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS

    async def caller() -> None:
        nonlocal counted
        while loop.time() < end:
            started = time.perf_counter()
            await ledger.write(record)
            waits.append(time.perf_counter() - started)
            counted += 1

    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    elapsed, spent = time.perf_counter() - started, time.process_time() - cpu
    await ledger.close()
    Reader(directory)
    waits.sort()
    return {
        "callers": callers,
        "records_per_s": round(counted / elapsed),
        "wait_p50_ms": round(waits[len(waits) // 2] * 1e3, 2),
        "wait_p99_ms": round(waits[len(waits) * 99 // 100] * 1e3, 2),
        "cpu_us_per_record": round(spent / counted * 1e6, 1),
    }


def fsync_us(directory: Path) -> float:
    """The median time of appending one record to a file with fdatasync: what the disk itself takes."""
    times, record = [], os.urandom(RECORD_BYTES)
    descriptor = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(200):
        started = time.perf_counter()
        os.write(descriptor, record)
        os.fdatasync(descriptor)
        times.append(time.perf_counter() - started)
    os.close(descriptor)
    return round(statistics.median(times) * 1e6)


def run(callers: Sequence[int] = CALLERS) -> dict[str, list[dict[str, Any]]]:
    """Return the rows: `tree` (one), and `durable` (one per number of callers)."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for count in callers:
            tries = [uvloop.run(durable(Path(folder, f"{count}-{i}"), count)) for i in range(RUNS)]
            rows.append(max(tries, key=lambda row: float(row["records_per_s"])))
        disk = fsync_us(Path(folder))
    tree, tiles = memory()
    tree["proof_us_tiles_cached"] = proof_us(tiles, cold=False)
    tree["proof_us_first"] = proof_us(tiles, cold=True)
    tree["one_fdatasync_us"] = disk
    tree["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"tree": [tree], "durable": rows}


if __name__ == "__main__":
    for title, found in run().items():
        for line in found:
            sys.stdout.write(f"{title}: {line}\n")
