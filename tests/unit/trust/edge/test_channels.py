"""Which channels are closed when a pool of them is."""

from typing import Any

import grpc.aio
import pytest

from tests.support.eventually import eventually
from tests.support.pki import Authority, StaticIdentity
from trust.edge import tls
from trust.edge.tls import Channels
from trust.spiffe import SpiffeId

ME = SpiffeId.of("mesh.local", "node", "a")


class Recorded:
    """A channel that carries nothing, and notes how it is closed."""

    def __init__(self) -> None:
        self.closed: list[float | None] = []

    async def close(self, grace_s: float | None = None) -> None:
        """Note."""
        self.closed.append(grace_s)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Have every channel recorded."""
    found: list[Recorded] = []

    def make(*_: object) -> Any:
        found.append(Recorded())
        return found[-1]

    monkeypatch.setattr(grpc.aio, "secure_channel", make)
    return found


async def test_a_channel_that_is_retired_the_moment_the_pool_closes_is_closed(made: list[Recorded]) -> None:
    """The task that retires it never begins: whoever cancels it closes the channel."""
    identity = StaticIdentity(Authority("mesh.local"))
    channels = Channels(identity)
    channels.get("127.0.0.1:1", client=ME, server_dns="x")
    identity.replace(identity.authority.svid(ME))
    channels.get("127.0.0.1:1", client=ME, server_dns="x")
    await channels.close(5.0)
    old, new = made
    assert old.closed == [None]
    assert new.closed == [5.0]


async def test_a_retired_channel_gets_its_time_and_then_leaves(
    made: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that it carries go on; nothing is left to be closed later."""
    monkeypatch.setattr(tls, "_HAND_OVER_S", 0.0)
    identity = StaticIdentity(Authority("mesh.local"))
    channels = Channels(identity, retirement_s=7.0)
    channels.get("127.0.0.1:1", client=ME, server_dns="x")
    identity.replace(identity.authority.svid(ME))
    await eventually(lambda: not channels._retiring, "it has left")
    assert made[0].closed == [7.0]
    await channels.close()
    assert made[0].closed == [7.0]
