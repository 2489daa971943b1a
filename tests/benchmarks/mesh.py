"""What a level costs: CPU of both sidecars per unary call, on a real mesh, level by level.

    python -m tests.benchmarks.mesh

One mesh of real processes, one service, one caller; the level changes by signed policy, as it does for a user. Level 0
passes every call through and decides nothing: it is the two bare hops that the other levels are compared with.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil

from control_plane.edge.source_folder import read_folder
from control_plane.lab import sample
from control_plane.lab.bootstrap import bring_up, prepare, publish
from control_plane.lab.demo import POLICY_FOLDER
from control_plane.lab.mesh import DevelopmentMesh, Plan
from egm.sample.v1 import shop_pb2, shop_pb2_grpc
from trust.policy.source import build

LEVELS = (0, 1, 3, 4, 5)
CONCURRENCY = 16
ROUNDS = 3
SECONDS = 2.0
CALLER, CALLEE, CONTROL_PLANE = "caller", "callee", "control plane"
CALLS, WALL = "calls", "wall"


def _archive(level: int) -> bytes:
    files = {**read_folder(POLICY_FOLDER), "descriptors.binpb": sample.descriptors()}
    settings = files["bundle.yaml"].decode().replace("{ttl_s: 4, grace_s: 4}", "{ttl_s: 60, grace_s: 120}")
    return build({**files, "bundle.yaml": settings.encode()}, level_override=level)


async def _load(channel: grpc.aio.Channel, until: float) -> int:
    stub = shop_pb2_grpc.PaymentsStub(channel)
    request = shop_pb2.TransferRequest(to_account="42", amount=100)
    calls = 0
    while time.perf_counter() < until:
        await stub.Transfer(request)
        calls += 1
    return calls


def _processes(mesh: DevelopmentMesh) -> dict[str, psutil.Process]:
    """Return the sidecars by what they are to the call, and the control plane."""
    nodes = {name: psutil.Process(entry.pid) for name, entry in mesh.mesh.nodes.items()}
    callee = nodes.pop("payments")
    (caller,) = nodes.values()
    return {CALLER: caller, CALLEE: callee, CONTROL_PLANE: psutil.Process(mesh.control_plane.pid)}


def _cpu_s(processes: dict[str, psutil.Process]) -> Counter[str]:
    """Return the CPU that each has used so far, in seconds."""
    times = {name: process.cpu_times() for name, process in processes.items()}
    return Counter({name: used.user + used.system for name, used in times.items()})


async def _round(processes: dict[str, psutil.Process], channel: grpc.aio.Channel) -> Counter[str]:
    """Return calls, seconds, and the CPU seconds of each process."""
    before, started = _cpu_s(processes), time.perf_counter()
    counts = await asyncio.gather(*(_load(channel, started + SECONDS) for _ in range(CONCURRENCY)))
    used = Counter({CALLS: sum(counts), WALL: time.perf_counter() - started})
    after = _cpu_s(processes)
    return used + Counter({name: after[name] - before[name] for name in processes})


async def _measure(directory: Path) -> list[dict[str, Any]]:
    server, address = await sample.serve()
    prepare(directory, "mesh.local")
    mesh = await bring_up(
        directory, Plan("mesh.local", {"payments": address}, ("alice",)), say=lambda _: None
    )
    totals: dict[int, Counter[str]] = {level: Counter() for level in LEVELS}
    processes = _processes(mesh)
    try:
        async with grpc.aio.insecure_channel(mesh.mesh.workloads["alice"].outbound["payments"]) as channel:
            for _ in range(ROUNDS):
                for level in LEVELS:
                    version = await publish(mesh, _archive(level), title=f"level {level}")
                    await mesh.settled(version=version)
                    await _load(channel, time.perf_counter() + 0.5)  # warm
                    totals[level] += await _round(processes, channel)
    finally:
        await mesh.stop()
        await server.stop(None)
    return [_row(level, used, totals[0]) for level, used in totals.items()]


def _row(level: int, used: Counter[str], bare: Counter[str]) -> dict[str, Any]:
    def us(name: str, of: Counter[str] = used) -> float:
        return of[name] / of[CALLS] * 1e6

    both = us(CALLER) + us(CALLEE)
    return {
        "level": level,
        "calls_per_s": round(used[CALLS] / used[WALL]),
        "cpu_us_both_sidecars": round(both),
        "ratio_to_level_0": round(both / (us(CALLER, bare) + us(CALLEE, bare)), 2),
        "of_the_caller": round(us(CALLER)),
        "of_the_callee": round(us(CALLEE)),
        "cpu_us_control_plane": round(us(CONTROL_PLANE)),
    }


def run() -> list[dict[str, Any]]:
    """Measure in a process of its own and return one row per level.

    It starts processes, which must not be forked from one whose gRPC threads already run.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.mesh"],
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Print one row per level."""
    with tempfile.TemporaryDirectory(prefix="egm-bench-") as scratch:
        for row in asyncio.run(_measure(Path(scratch))):
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
