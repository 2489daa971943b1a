"""What a hand-over costs: making and checking one, and a service's CPU per call with the interceptor and without.

    python -m tests.benchmarks.handovers

"admit" is what the interceptor does with a call's metadata: read the token, verify it, and use it up. The calls go to
a service in a process of its own, which answers at once; the same metadata come with and without the interceptor, in
turns. "stream" opens a call for one message there and back; its hand-over binds that message.
"""

import asyncio
import gc
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidecar.edge.node_signer import write_public_key
from sidecar.interceptors import AioServerInterceptor, ServerInterceptor
from sidecar.interceptors.verification import Guard
from tests.benchmarks.permits import row_of
from tests.support.permits import ALICE, EXECUTION, NOW_MS, NOW_S, PAY, PAYMENTS
from tests.support.sidecar_core import ManualClock
from trust.ed25519 import Signer, is_signature
from trust.errors import StateError
from trust.handover import HANDOVER_KEY, Handover, authenticate_handover, mint_handover

ROUNDS = 5_000
SECONDS = 2.0
TURNS = 3
CONCURRENCY = 8
REQUEST = b"a request of some fifty bytes, as most requests are"
PATHS = {"unary": f"/{PAY}", "stream": f"/{PAY}Stream"}
STYLES = ("aio", "sync")


def _claims(number: int, now_s: int, path: str = PATHS["unary"]) -> Handover:
    return Handover(
        audience=PAYMENTS,
        issued_s=now_s,
        expires_s=now_s + 30,
        token_id=number.to_bytes(16),
        execution_id=EXECUTION,
        method=path[1:],
        caller=ALICE,
        request_sha256=hashlib.sha256(REQUEST).digest(),
    )


def steps(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure the parts by themselves and return one row per step, in microseconds of the thread's CPU."""
    private = Ed25519PrivateKey.generate()
    public, signer = private.public_key(), Signer(private)
    tokens = [mint_handover(_claims(number, NOW_S), private.sign) for number in range(rounds)]
    signed = [token.rpartition(".")[0].encode() for token in tokens]
    signatures = [private.sign(one) for one in signed]
    sent = [(("user-agent", "x"), (HANDOVER_KEY, token)) for token in tokens]

    def replay(number: int) -> None:
        try:
            guard.admit(PATHS["unary"], sent[number])
        except StateError:
            return
        raise AssertionError("a hand-over was accepted twice")

    def mint(number: int) -> object:
        return mint_handover(_claims(number, NOW_S), signer.sign)

    def check(number: int) -> object:
        return authenticate_handover(tokens[number], public, audience=PAYMENTS, now_ms=NOW_MS)

    def sign_one(number: int) -> object:
        return signer.sign(signed[number])

    def verify_one(number: int) -> object:
        return is_signature(signatures[number], signed[number], public)

    with tempfile.TemporaryDirectory(prefix="egm-bench-") as scratch:
        file = Path(scratch) / "node-key.pub"
        write_public_key(file, public)
        clock = ManualClock(NOW_MS - 60_000)
        guard = Guard(file, PAYMENTS, (), clock)
        clock.wall = NOW_MS
        gc.collect()
        gc.disable()
        try:
            return [
                row_of("mint", rounds, mint, sign_one),
                row_of("verify", rounds, check, verify_one),
                row_of("admit", rounds, lambda n: guard.admit(PATHS["unary"], sent[n]), verify_one),
                row_of("replay", rounds, replay, verify_one),
            ]
        finally:
            gc.enable()


async def _unary(request: bytes, context: Any) -> bytes:
    return request


async def _stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


def _unary_sync(request: bytes, context: Any) -> bytes:
    return request


def _stream_sync(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    yield from requests


def _service(style: str) -> Any:
    unary, stream = (_unary, _stream) if style == "aio" else (_unary_sync, _stream_sync)
    name, _, method = PAY.partition("/")
    handlers: Any = {
        method: grpc.unary_unary_rpc_method_handler(unary),
        f"{method}Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    return grpc.method_handlers_generic_handler(name, handlers)


async def _serve(style: str, key_file: Path | None) -> None:
    """Serve until stdin closes; print the address first."""
    guards: Any = []
    if key_file is not None:
        interceptor = AioServerInterceptor if style == "aio" else ServerInterceptor
        guards = [interceptor(key_file, PAYMENTS)]
    server: Any
    if style == "aio":
        server = grpc.aio.server(interceptors=guards)
    else:
        server = grpc.server(ThreadPoolExecutor(CONCURRENCY), interceptors=guards)
    server.add_generic_rpc_handlers((_service(style),))
    port = server.add_insecure_port("127.0.0.1:0")
    started = server.start()
    if started is not None:
        await started
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    stopped = server.stop(0)
    if style == "aio":
        await stopped
    else:
        stopped.wait()


class _Load:
    """Calls with a fresh hand-over each, as the sidecar would make them."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private, self._numbers = private, itertools.count(1)

    def metadata(self, path: str) -> Any:
        """Return a hand-over of `path`."""
        claims = _claims(next(self._numbers), time.time_ns() // 1_000_000_000, path)
        return ((HANDOVER_KEY, mint_handover(claims, self._private.sign)),)

    async def run(self, channel: grpc.aio.Channel, kind: str, seconds: float) -> int:
        """Call for so long, one call after the other; return how many."""
        path, calls, until = PATHS[kind], 0, time.perf_counter() + seconds
        unary: Any = channel.unary_unary(path, None, None)
        stream: Any = channel.stream_stream(path, None, None)
        while time.perf_counter() < until:
            metadata = self.metadata(path)
            if kind == "unary":
                answer = await unary(REQUEST, metadata=metadata)
            else:
                call = stream(iter((REQUEST,)), metadata=metadata)
                (answer,) = [one async for one in call]
            assert answer == REQUEST
            calls += 1
        return calls


async def _measure(load: _Load, processes: dict[tuple[str, bool], Any]) -> list[dict[str, Any]]:
    totals: dict[tuple[str, str, bool], list[float]] = {}
    for _ in range(TURNS):
        for (style, guarded), (address, pid) in processes.items():
            process = psutil.Process(pid)
            async with grpc.aio.insecure_channel(address) as channel:
                for kind in PATHS:
                    await load.run(channel, kind, 0.3)  # warm
                    before = process.cpu_times()
                    counts = await asyncio.gather(
                        *(load.run(channel, kind, SECONDS) for _ in range(CONCURRENCY))
                    )
                    after = process.cpu_times()
                    spent = after.user + after.system - before.user - before.system
                    total = totals.setdefault((style, kind, guarded), [0.0, 0.0])
                    total[0] += sum(counts)
                    total[1] += spent
    cpu_us = {key: spent / calls * 1e6 for key, (calls, spent) in totals.items()}
    return [
        {
            "service": style,
            "kind": kind,
            "without_us": round(cpu_us[style, kind, False]),
            "with_us": round(cpu_us[style, kind, True]),
            "interceptor_us": round(cpu_us[style, kind, True] - cpu_us[style, kind, False]),
        }
        for style in STYLES
        for kind in PATHS
    ]


def calls() -> list[dict[str, Any]]:
    """Measure services with and without the interceptor and return one row per style and kind of call."""
    private = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory(prefix="egm-bench-") as scratch:
        file = Path(scratch) / "node-key.pub"
        write_public_key(file, private.public_key())
        started: dict[tuple[str, bool], subprocess.Popen[str]] = {}
        try:
            for style, guarded in itertools.product(STYLES, (False, True)):
                started[style, guarded] = subprocess.Popen(
                    [sys.executable, "-m", "tests.benchmarks.handovers", style, str(file) if guarded else ""],
                    env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            ready = {key: (_line(process), process.pid) for key, process in started.items()}
            time.sleep(1.1)  # tokens of the second in which a service started are refused
            return asyncio.run(_measure(_Load(private), ready))
        finally:
            for process in started.values():
                process.communicate()


def _line(process: "subprocess.Popen[str]") -> str:
    if process.stdout is None:
        raise RuntimeError("started without a pipe")
    return process.stdout.readline().strip()


def run() -> dict[str, list[dict[str, Any]]]:
    """Measure everything: "steps" and "calls"."""
    return {"steps": steps(), "calls": calls()}


def main() -> int:
    """Print the tables; or be the service, when asked to."""
    if len(sys.argv) > 1:
        asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]) if sys.argv[2] else None))
        return 0
    for rows in run().values():
        names = list(rows[0])
        lines = ["  ".join(name.rjust(14) for name in names)]
        lines += ["  ".join(str(row[name]).rjust(14) for name in names) for row in rows]
        sys.stdout.write("\n".join(lines) + "\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
