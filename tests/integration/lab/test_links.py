"""Links over real sockets: what arrives, what waits for the heal, what is reset, and who dialled."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from control_plane.lab.diallers import OPERATOR, Address, Diallers
from control_plane.lab.links import Link, Streams
from control_plane.lab.network import Fault, Network
from tests.support.eventually import eventually

CUT, WHOLE = Fault(drop=True), Fault()
BOTH = [("a", "b"), ("b", "a")]
QUIET_S = 0.3  # nothing must arrive meanwhile: a slow machine cannot make this fail


class Peers:
    """A link in front of an echo service of member b, dialled as member a."""

    def __init__(self) -> None:
        self.network = Network(0)
        self.dialler: str | None = "a"
        self.served = 0
        self.heard = b""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve, and link."""

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.served += 1
            try:
                while data := await reader.read(65536):
                    self.heard += data
                    writer.write(data)
                    await writer.drain()
                writer.close()
            except ConnectionError:
                writer.transport.abort()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.link = Link("b", f"{host}:{port}", self.network, self._who)
        self.link.bind()
        serving = asyncio.create_task(self.link.serve())
        try:
            yield
        finally:
            await serving
            await self.link.stop()
            server.close()

    def _who(self, _peer: Address, _own: Address) -> str | None:
        return self.dialler

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as member a."""
        host, port = self.link.address.split(":")
        return await asyncio.open_connection(host, int(port))


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    made = Peers()
    async with made.running():
        yield made


async def silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing arrives for a while."""
    try:
        async with asyncio.timeout(QUIET_S):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_a_good_link_carries_bytes_and_ends(peers: Peers) -> None:
    """More than one chunk, then both ends close."""
    reader, writer = await peers.dial()
    data = bytes(range(256)) * 4096
    writer.write(data)
    writer.write_eof()
    assert await reader.read(-1) == data
    writer.close()


async def test_what_is_sent_during_a_cut_arrives_after_the_heal_in_order(peers: Peers) -> None:
    """A connection survives a partition that it does not notice."""
    reader, writer = await peers.dial()
    writer.write(b"1")
    assert await reader.readexactly(1) == b"1"
    peers.network.apply(BOTH, CUT)
    writer.write(b"2")
    assert await silent(reader)
    writer.write(b"3")
    peers.network.heal()
    assert await reader.readexactly(2) == b"23"
    writer.close()


async def test_a_one_way_cut_keeps_answers_away_and_lets_requests_through(peers: Peers) -> None:
    """What a sends over an open connection reaches b; a new connection needs both directions."""
    reader, writer = await peers.dial()
    writer.write(b"1")
    await reader.readexactly(1)
    peers.network.apply([("b", "a")], CUT)
    writer.write(b"2")
    await eventually(lambda: b"2" in peers.heard, "b hears what a sends")
    assert await silent(reader)
    _, second = await peers.dial()
    assert peers.served == 1
    peers.network.heal()
    assert await reader.readexactly(1) == b"2"
    for one in (writer, second):
        one.close()


async def test_a_connection_dialled_into_a_cut_reaches_nobody_until_the_heal(peers: Peers) -> None:
    """And one that was given up meanwhile, never."""
    peers.network.apply(BOTH, CUT)
    reader, writer = await peers.dial()
    _, given_up = await peers.dial()
    given_up.close()
    writer.write(b"x")
    assert await silent(reader)
    assert peers.served == 0
    peers.network.heal()
    assert await reader.readexactly(1) == b"x"
    assert peers.served == 1
    writer.close()


async def test_the_end_of_a_process_is_not_heard_through_a_cut(peers: Peers) -> None:
    """Its last packets do not arrive either."""
    reader, writer = await peers.dial()
    writer.write(b"x")
    await reader.readexactly(1)
    peers.network.apply(BOTH, CUT)
    writer.write_eof()  # the service would answer with its own end
    assert await silent(reader)
    peers.network.heal()
    assert await reader.read(1) == b""
    writer.close()


async def test_a_reset_ends_open_connections_and_refuses_new_ones(peers: Peers) -> None:
    """As a firewall that rejects; after the heal one can connect again."""
    reader, writer = await peers.dial()
    writer.write(b"x")
    await reader.readexactly(1)
    peers.network.apply(BOTH, Fault(reset=True))
    with pytest.raises(ConnectionError):
        await reader.readexactly(1)
    writer.transport.abort()
    reader, writer = await peers.dial()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.transport.abort()
    peers.network.heal()
    reader, writer = await peers.dial()
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.close()


async def test_a_slow_narrow_lossy_link_loses_and_reorders_nothing(peers: Peers) -> None:
    """TCP hides all of it but the time."""
    peers.network.apply(BOTH, Fault(delay_ms=1, jitter_ms=20, loss=0.1, bytes_per_s=4_000_000))
    reader, writer = await peers.dial()
    data = bytes(range(256)) * 1024
    for start in range(0, len(data), 8192):
        writer.write(data[start : start + 8192])
        await writer.drain()
    writer.write_eof()
    assert await reader.read(-1) == data
    writer.close()


async def test_a_stranger_is_not_let_through(peers: Peers) -> None:
    """A dialler that the lab cannot name would slip past every partition."""
    peers.dialler = None
    reader, writer = await peers.dial()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    assert peers.served == 0
    writer.transport.abort()


async def test_a_service_that_is_not_there_resets_the_dialler() -> None:
    """As its closed port would."""
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    link = Link("b", f"{host}:{port}", Network(0), lambda _peer, _own: "a")
    link.bind()
    await link.serve()
    reader, writer = await asyncio.open_connection(host, int(link.address.rpartition(":")[2]))
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.transport.abort()
    await link.stop()


DIAL = """
import socket, sys
family = socket.AF_INET6 if sys.argv[2] == "6" else socket.AF_INET
host = "::ffff:127.0.0.1" if sys.argv[2] == "6" else "127.0.0.1"
with socket.socket(family) as s:
    s.connect((host, int(sys.argv[1])))
    s.recv(1)
"""


@pytest.mark.parametrize("family", ["4", "6"])
async def test_the_kernel_says_which_process_dialled(family: str) -> None:
    """Also through the IPv6 sockets that gRPC uses for IPv4 addresses."""
    found: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    pids: dict[str, int] = {}

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (writer.get_extra_info(name)[:2] for name in ("peername", "sockname"))
        found.set_result(Diallers(lambda: pids)(*ends))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DIAL, str(port), family)
    pids["a"] = process.pid
    assert await found == "a"
    await process.wait()
    server.close()


async def test_our_own_connections_are_the_operators() -> None:
    """And one whose process is unknown is nobody's."""
    found: asyncio.Future[tuple[str | None, str | None]] = asyncio.get_running_loop().create_future()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, own = (writer.get_extra_info(name)[:2] for name in ("peername", "sockname"))
        diallers = Diallers(dict)
        found.set_result((diallers(peer, own), diallers((peer[0], 1), own)))
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await found == (OPERATOR, None)
    writer.close()
    server.close()


async def test_a_link_that_is_stopped_while_it_begins_leaves_no_listener() -> None:
    """Cancelled in the one step in which it listens already, and does not say so."""
    link = Link("b", "127.0.0.1:1", Network(0), lambda _peer, _own: "a")
    link.bind()
    number = link._socket.fileno()
    serving = asyncio.create_task(link.serve())
    await asyncio.sleep(0)
    serving.cancel()
    await link.stop()
    await asyncio.gather(serving, return_exceptions=True)
    assert not asyncio.get_running_loop().remove_reader(number)


async def test_a_connection_that_was_taken_as_the_link_stopped_goes_nowhere() -> None:
    """Its task begins after those that were ended."""
    dialled: list[Address] = []

    async def connect(address: Address) -> Streams:
        dialled.append(address)
        raise ConnectionRefusedError

    link = Link("b", "127.0.0.1:1", Network(0), lambda _peer, _own: "a", connect)
    link.bind()
    await link.serve()
    await link.stop()
    taken: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()
    other = await asyncio.start_server(lambda *streams: taken.set_result(streams), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*other.sockets[0].getsockname())
    await link._accept(*await taken)
    assert not dialled
    writer.transport.abort()
    other.close()
