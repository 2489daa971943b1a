"""Policy changes and renewals under load, over real sockets: what is allowed before and after is so in between."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import grpc.aio
import pytest

from control_plane.lab.ports import free_port
from egm.v1 import credentials_pb2, credentials_pb2_grpc
from sidecar.core.trust_state import Standing
from sidecar.edge.attestation import Attestation
from sidecar.edge.credentials import CredentialClient
from tests.integration.sidecar.test_level_five import settled
from tests.support.attested_mesh import NODES, Attested, attested, standing
from tests.support.eventually import eventually
from tests.support.interop_cases import EOF
from tests.support.interop_service import DUPLEX, UNARY, ask
from tests.support.sidecar_mesh import Mesh, policy
from tests.support.sidecars import RunningSidecar
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.tls import Channels
from trust.errors import CapacityError, MeshError, Reason, StateError

Nodes = dict[str, RunningSidecar]
CALLERS = 4
PAUSE_S = 0.005  # both sidecars, the service and the callers share one process
ONE = ask(sizes=[1])


class Load:
    """Unary calls from many at once, counted by how they ended; paused and resumed by the test."""

    def __init__(self, address: str) -> None:
        self.answers: Counter[str] = Counter()
        self.going = asyncio.Event()
        self.going.set()
        self._idle = 0
        self._address = address

    async def _call_forever(self, channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(UNARY, None, None)
        while True:
            if not self.going.is_set():
                self._idle += 1
                await self.going.wait()
                self._idle -= 1
            try:
                await call(ask(size=1), timeout=10)
                self.answers["OK"] += 1
            except grpc.aio.AioRpcError as error:
                self.answers[str(error_from_rpc(error))] += 1
            await asyncio.sleep(PAUSE_S)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Call until the end of the block."""
        async with grpc.aio.insecure_channel(self._address) as channel, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._call_forever(channel)) for _ in range(CALLERS)]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()

    async def goes_on(self, calls: int = 20) -> None:
        """Wait for so many more good calls; every other answer so far fails the test."""
        wanted = self.answers["OK"] + calls
        await eventually(lambda: self.answers["OK"] >= wanted or len(self.answers) > 1, "calls go on")
        assert set(self.answers) == {"OK"}, self.answers

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Make no call in the block."""
        self.going.clear()
        await eventually(lambda: self._idle == CALLERS, "nobody calls")
        yield
        self.going.set()


class Stream:
    """One stream from a caller to the service and back."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call: Any = channel.stream_stream(DUPLEX, None, None)(None)

    async def echo(self) -> None:
        """Send one message and read its answer."""
        await self.call.write(ONE)
        assert await self.call.read() == b"\0"

    async def reason(self) -> Reason:
        """Wait until the stream ends, and return why."""
        try:
            while await self.call.read() is not EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error).reason
        return Reason.ALLOWED


async def in_force(nodes: Nodes, version: int) -> None:
    for node in nodes.values():
        await node.enforces(version)


async def test_no_call_is_refused_while_policies_are_published(mesh: Mesh) -> None:
    """Other lives, other lags, a witness less and one more, and through a level without attestation: zero refusals."""
    world = Attested(mesh, ttl_s=20)
    await world.publish()
    two = {name: world.settings["witnesses"][name] for name in ("a", "b")}
    changes: list[dict[str, Any]] = [
        {},
        {"ttl_s": 30, "max_lag_s": 7},
        {"witnesses": two},
        {"ttl_s": 12},
    ]
    async with world.running(*NODES) as nodes:
        await attested(*nodes.values())
        assert await settled(nodes["a"].outbound) == b"\0"
        async with (
            grpc.aio.insecure_channel(nodes["a"].outbound) as channel,
            Load(nodes["a"].outbound).running() as load,
        ):
            stream = Stream(channel)
            await stream.echo()
            for version, change in enumerate(changes, start=2):
                await world.publish(**change)
                await in_force(nodes, version)
                await load.goes_on()
                await stream.echo()
            stream.call.cancel()
            # A node that is ahead at level 5 wants permits that those behind do not give yet (docs/levels.md).
            async with load.paused():
                await mesh.publish(policy(level=0))  # names no witnesses
                await in_force(nodes, 6)
            await load.goes_on()
            async with load.paused():
                await world.publish()
                await in_force(nodes, 7)
            await load.goes_on()


async def test_a_stream_lives_as_long_as_its_caller_is_vouched_for(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed credentials are fetched; when there are none any more, the callee cuts, whatever the caller says."""
    world = Attested(mesh, ttl_s=3)
    await world.publish()
    async with world.running(*NODES) as nodes:
        a, b = nodes["a"].sidecar, nodes["b"].sidecar
        await attested(*nodes.values())
        assert await settled(nodes["a"].outbound) == b"\0"
        async with grpc.aio.insecure_channel(nodes["a"].outbound) as channel:
            stream = Stream(channel)
            await stream.echo()
            (caller,) = b.pipeline.streams.callers
            first_end_ms = b.trust.check_caller(caller, now_ms=b.clock.now_ms())
            await eventually(lambda: b.clock.now_ms() > first_end_ms, "the first credential ends")
            await stream.echo()
            assert b.trust.check_caller(caller, now_ms=b.clock.now_ms()) > first_end_ms

            rounds: Any = a.view.attestation
            keeper = rounds.__self__
            assert isinstance(keeper, Attestation)

            async def refused(*_: Any) -> None:
                raise StateError(Reason.NODE_NOT_ATTESTED, "the witnesses refuse")

            monkeypatch.setattr(keeper._round, "run", refused)
            monkeypatch.setattr(
                a.pipeline, "_attested", lambda *_: True
            )  # a lying sidecar does not cut itself
            assert await stream.reason() is Reason.ATTESTATION_EXPIRED
            assert standing(nodes["b"]) is Standing.ATTESTED
            assert len(b.pipeline.streams) == 0


async def test_a_callee_fetches_a_credential_that_it_lacks(mesh: Mesh) -> None:
    """From the node that the permit is of; the caller notices nothing. One that cannot be had is refused."""
    world = Attested(mesh)
    await world.publish()
    async with world.running("a", "b") as nodes:
        await attested(*nodes.values())
        assert await settled(nodes["a"].outbound) == b"\0"
        trust = nodes["b"].sidecar.trust
        async with grpc.aio.insecure_channel(nodes["a"].outbound) as channel:
            call = channel.unary_unary(UNARY, None, None)
            trust._peers.clear()
            many = await asyncio.gather(*(call(ask(size=1), timeout=10) for _ in range(CALLERS)))
            assert many == [b"\0"] * CALLERS
            assert len(trust._peers) == 1
            # What the sidecars say to each other stays between them.
            nodes["a"].sidecar.provenance.notary.passports._carriage._holds.clear()  # type: ignore[union-attr]
            carrying = call(ask(size=1), timeout=10)
            assert await carrying == b"\0"
            assert not [key for key, _ in await carrying.initial_metadata() if key.startswith("egm-")]
            assert not [key for key, _ in mesh.echo.metadata[-1] if key.startswith("egm-attestation")]
            assert nodes["a"].sidecar.provenance.notary.passports._carriage._holds  # type: ignore[union-attr]
            stream = Stream(channel)
            trust._peers.clear()
            await stream.echo()
            stream.call.cancel()
            nodes["a"].sidecar.membership.member.blobs._held.clear()
            trust._peers.clear()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(ask(size=1), timeout=10)
            assert error_from_rpc(error.value).reason is Reason.ATTESTATION_UNKNOWN
            assert await call(ask(size=1), timeout=10) == b"\0", "from then on it is carried"
        await ask_each_other(mesh, nodes)


async def ask_each_other(mesh: Mesh, nodes: Nodes) -> None:
    """Check what a node answers that is asked for its credential, where it is looked for, and who may ask."""
    a, b = nodes["a"].sidecar, nodes["b"].sidecar
    me, other, own = b.membership.me, a.membership.me, a.trust.own()
    assert own is not None
    channels = Channels(b.identity)

    def client(known: str, told: str = "", at_once: int = 2) -> CredentialClient:
        addresses = {"a": known} if known else {}
        return CredentialClient(
            me, channels, b.identity, known=lambda: addresses, told=lambda _node: told, at_once=at_once
        )

    async def refused(asked: Awaitable[bytes]) -> Reason:
        with pytest.raises(MeshError) as error:
            await asked
        return error.value.reason

    dead = f"127.0.0.1:{free_port(set())}"
    assert await client(nodes["a"].admin).newest(other) == own.data
    assert await client(dead, nodes["a"].admin).newest(other) == own.data
    assert await client("", nodes["a"].admin).newest(other) == own.data
    assert await refused(client("").newest(other)) is Reason.ATTESTATION_UNKNOWN
    assert await refused(client(nodes["a"].admin).by_digest(other, b"\x01" * 32)) is Reason.NOT_FOUND
    assert await refused(client(dead).newest(other)) is not Reason.ATTESTATION_UNKNOWN
    impostor = client(nodes["b"].admin)  # who answers there is not the node that was meant
    assert await refused(impostor.newest(other)) is not Reason.ATTESTATION_UNKNOWN
    busy = client(nodes["a"].admin, at_once=1)
    asked = [busy.newest(other), busy.newest(other), busy.by_digest(other, own.sha256)]
    shared, same, third = await asyncio.gather(*asked, return_exceptions=True)
    assert shared == same == own.data
    assert isinstance(third, CapacityError)
    await busy.close()
    await channels.close()
    credentials = mesh.domain.credentials("operator", "alice")
    async with credentials.channel(nodes["a"].admin, other.dns_name) as channel:
        stub = credentials_pb2_grpc.CredentialsStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GetCredential(credentials_pb2.GetCredentialRequest(), timeout=10)
        assert error_from_rpc(error.value).reason is Reason.NOT_AUTHORIZED
