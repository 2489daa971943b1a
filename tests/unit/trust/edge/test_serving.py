"""Servers lend gRPC core nothing that a malformed request could make it write to after it was freed."""

import re
from pathlib import Path
from typing import Any, cast

from grpc_health.v1 import health, health_pb2_grpc

import control_plane
import sidecar
import trust
from trust.edge.serving import new_server

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
