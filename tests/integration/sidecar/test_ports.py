"""A port that another process has: refused, never shared."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from sidecar.edge.health import Health
from sidecar.edge.listeners import own_server
from trust.edge.serving import new_server
from trust.errors import InputError, Reason

LOOPBACK = "127.0.0.1:0"


@pytest.fixture
async def taken() -> AsyncIterator[str]:
    """The health listener of one sidecar."""
    server, address = own_server(Health().add_to, LOOPBACK)
    await server.start()
    yield address
    await server.stop(0)


async def test_a_second_sidecar_cannot_have_the_health_port_of_the_first(taken: str) -> None:
    """A probe that reaches either of two sidecars by chance says nothing of both."""
    with pytest.raises(InputError, match="another process") as refused:
        own_server(Health().add_to, taken)
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert taken in refused.value.detail


async def test_no_server_of_the_mesh_shares_a_port_whatever_its_options_are(taken: str) -> None:
    """It is decided where servers are made, so that no listener can forget it."""
    server = new_server(options=[("grpc.so_reuseport", 1)])
    with pytest.raises(RuntimeError):
        server.add_insecure_port(taken)
    await server.stop(0)
    plain: grpc.aio.Server = new_server()
    with pytest.raises(RuntimeError):
        plain.add_insecure_port(taken)
    await plain.stop(0)
