"""Whoever can reach the port can connect, before any TLS: no number of connections may end the process."""

import asyncio
import os
import sys
from pathlib import Path

from tests.support.eventually import eventually

ROOT = Path(__file__).resolve().parents[3]
CONNECTIONS, AT_ONCE = 20_000, 40


async def test_connections_without_end_during_rotations_do_not_crash_the_server() -> None:
    """gRPC frees the certificate that it replaces, in use or not (its issue 36693): a remote crash, no key needed."""
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.support.storm_server"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = int(await server.stdout.readline())
        made = 0

        async def connect() -> None:
            nonlocal made
            while made < CONNECTIONS and server.returncode is None:
                made += 1
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:  # its queue is full, for now
                    await asyncio.sleep(0.001)
                    continue
                writer.write(b"\x16\x03\x01")
                writer.close()

        await asyncio.gather(*(connect() for _ in range(AT_ONCE)))
        assert server.returncode is None, "the server crashed"
        server.stdin.close()
        assert int(await server.stdout.readline()) > 0, "no rotation during the storm"
        await eventually(lambda: server.returncode is not None, "the server ends")
        assert server.returncode == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
