"""An mTLS server whose certificate rotates all the time, in a process of its own: it may crash without harm."""

import asyncio
import sys
import tempfile
from pathlib import Path

import grpc.aio

from control_plane.edge.ca import issue_to_directory
from tests.support.identity import ShiftedClock, make_ca, member
from trust.edge.identity_directory import DirectoryIdentity
from trust.edge.serving import new_server
from trust.edge.tls import ServerCredentials, server_options

ROTATION_S = 0.2
BOB = member("workload", "bob")


async def serve(home: Path) -> None:
    """Say the port; rotate until standard input ends; say how often."""
    ca = make_ca(home / "ca")
    issue_to_directory(ca, BOB, home / "identity")
    clock = ShiftedClock()
    server: grpc.aio.Server = new_server(options=server_options())
    credentials = ServerCredentials(DirectoryIdentity(home / "identity", clock), BOB)
    print(server.add_secure_port("127.0.0.1:0", credentials()), flush=True)  # noqa: T201
    await server.start()
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    rotations = 0
    while not ended.done():
        await asyncio.wait([ended], timeout=ROTATION_S)
        issue_to_directory(ca, BOB, home / "identity")
        rotations += 1
    await server.stop(0)
    print(rotations, flush=True)  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(serve(Path(directory)))
