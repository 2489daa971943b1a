"""Servers lend gRPC core nothing that a malformed request could make it write to after it was freed."""

import asyncio
import re
from pathlib import Path
from typing import Any, cast

import pytest
from grpc_health.v1 import health, health_pb2_grpc

import control_plane
import sidecar
import trust
from tests.support.eventually import eventually
from trust.edge.serving import SteadyServer, new_server

_LAB = "sample.py"  # stands for a user's own service, in plaintext on loopback


class Recorder:
    """Stands in for gRPC's inner server."""

    def __init__(self) -> None:
        self.generic: list[object] = []
        self.registered: list[object] = []

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Note."""
        self.generic.append(handlers)

    def add_registered_method_handlers(self, handlers: object) -> None:
        """Note."""
        self.registered.append(handlers)

    def is_running(self) -> bool:
        """Never started."""
        return False


async def test_generated_code_registers_no_method() -> None:
    """For each registered method the accept loop lends memory to gRPC core, and frees it when it dies."""
    server = new_server()
    recorder = cast("Any", server)._server = Recorder()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # type: ignore[attr-defined]
    assert len(recorder.generic) == 1
    assert recorder.registered == []


def test_no_server_is_made_in_another_way() -> None:
    """A server made by grpc.aio itself would be open to it again."""
    made = re.compile(r"grpc\.aio\.server\(|aio\.Server\(|grpc\.server\(")
    found = {
        path.name
        for package in (trust, sidecar, control_plane)
        for path in Path(package.__path__[0]).rglob("*.py")
        if made.search(path.read_text())
    }
    assert found == {"serving.py", _LAB}


class Slow:
    """A server that takes its time to start, and notes what becomes of it. It never runs for long."""

    def __init__(self, events: list[str]) -> None:
        self._server = Recorder()  # where grpc.aio keeps the one that can die
        self._events = events
        self.go_on = asyncio.Event()

    async def start(self) -> None:
        """Start when the test says so."""
        self._events.append("starts")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self._events.append("cancelled")
            raise
        self._events.append("started")

    async def stop(self, _grace_s: float | None) -> None:
        """Note."""
        self._events.append("stopped")


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
async def test_a_server_that_is_stopped_while_it_starts_is_stopped_when_it_has(again: bool) -> None:
    """gRPC ends the process with a segmentation fault otherwise, both at the first start and when it listens again."""
    events: list[str] = []
    built: list[Slow] = []

    def build(_address: str) -> Any:
        built.append(Slow(events))
        return built[-1], 1

    server = SteadyServer(build, "127.0.0.1:0")
    if again:
        built[0].go_on.set()
        await server.start()
        await eventually(lambda: events.count("starts") == 2, "it listens again")
        events.clear()
    else:
        starting = asyncio.create_task(server.start())
        await eventually(lambda: events, "it starts")
        starting.cancel()
    stopping = asyncio.create_task(server.stop(0))
    for _ in range(5):
        await asyncio.sleep(0)
    assert "cancelled" not in events
    assert not stopping.done()
    built[-1].go_on.set()
    await stopping
    assert events.index("started") < events.index("stopped")


async def test_a_unix_socket_is_listened_on_again_when_the_one_before_is_gone(tmp_path: Path) -> None:
    """gRPC removes the file of a server that ends a moment later: it would be that of the new one."""
    path = tmp_path / "s"
    events: list[str] = []

    class Removing(Slow):
        async def stop(self, _grace_s: float | None) -> None:
            await asyncio.sleep(0.01)
            path.unlink(missing_ok=True)

    built: list[Slow] = []

    def build(_address: str) -> Any:
        path.touch()
        built.append(Removing(events) if not built else Slow(events))
        built[-1].go_on.set()
        if len(built) > 1:
            cast("Any", built[-1]._server).is_running = lambda: True
        return built[-1], 1

    server = SteadyServer(build, f"unix://{path}")
    await server.start()
    await eventually(lambda: len(built) == 2, "it listens again")
    await asyncio.sleep(0.05)  # the first one has ended by now
    assert path.exists()
    await server.stop(0)
