"""How fast the ledger is: appends in memory, durable records with waiting callers, growth, proofs.

    python -m tests.benchmarks.ledger

"memory" is the tree and its tiles alone, as `append` does them; "durable" waits for fdatasync on the disk of the
temporary directory. The worst append is of one million, with the collector off. What growth takes falls on the same
append in every run, what else the machine did does not: so of each append the best of all runs counts, then the worst.
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
from array import array
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
    """Append a million entries without a disk, `RUNS` times; return the row and the tiles."""
    best, rates = array("q"), []
    for _ in range(RUNS):
        times, tiles, rate = _appends()
        best = array("q", map(min, best, times)) if best else times
        rates.append(rate)
        worst_of_run = max(times)
    row = {
        "appends_per_s": round(max(rates)),
        "worst_append_ms": round(max(best) / 1e6, 3),
        "worst_of_one_run_ms": round(worst_of_run / 1e6, 3),
    }
    return row, tiles


def _appends() -> tuple["array[int]", dict[Tile, bytes], float]:
    """One run: the wall time of each append in ns, the tiles, and appends/s."""
    builder, tiles, times = TileBuilder.empty(), dict[Tile, bytes](), array("q", bytes(8 * APPENDS))
    records = [os.urandom(RECORD_BYTES) for _ in range(1024)]
    now = time.perf_counter_ns
    gc.collect()
    gc.disable()
    started = before = now()
    for i in range(APPENDS):
        full = builder.append(hashlib.sha256(records[i & 1023]).digest())
        after = now()
        times[i] = after - before
        if full:
            tiles.update(full)
            after = now()
        before = after
    elapsed = (before - started) / 1e9
    gc.enable()
    tiles.update(builder.partial())
    return times, tiles, APPENDS / elapsed


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
