"""TCP links: each member's listener has one in front of it, and whatever crosses it meets the network's faults."""

import asyncio
import contextlib
import functools
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from control_plane.lab.network import Network, Pair
from trust.address import split_address

LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 256
CHUNK_BYTES: Final = 64 * 1024
QUEUED_CHUNKS: Final = 32  # on their way in one direction; a stalled sender is held back behind them
_RST: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset

Address = tuple[str, int]
# (address of the dialler, address it dialled) -> member, or None when it is none of the mesh
Dialler = Callable[[Address, Address], str | None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[Address], Awaitable[Streams]]
_FIN, _ABORT = b"", None  # what follows the last chunk: an end, or a reset


async def connect(address: Address) -> Streams:
    """Reach a listener of this machine."""
    return await asyncio.open_connection(*address)


class Link:
    """The way to one listener of one member."""

    def __init__(
        self, target: str, address: str, network: Network, dialler: Dialler, connect: Connect = connect
    ) -> None:
        """Describe a link.

        Args:
            target: the member that is reached.
            address: where it really listens, "host:port".
            network: says what happens on the way.
            dialler: says who dialled.
            connect: reaches the listener.
        """
        self.target, self._network, self._dialler = target, network, dialler
        self._upstream, self._connect = split_address(address), connect
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], _Connection] = {}
        self._stopped = False
        network.on_reset(self._reset)

    @property
    def address(self) -> str:
        """Where others reach the member, "host:port"; after `bind`."""
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def bind(self) -> None:
        """Take a free port of the loopback interface; connections wait until `serve`."""
        self._socket.bind((LOOPBACK, 0))
        self._socket.listen(BACKLOG)

    async def serve(self) -> None:
        """Take connections."""
        # Known before it listens: one that is stopped at this moment would leave its socket to the loop.
        self._server = await asyncio.start_server(self._accept, sock=self._socket, start_serving=False)
        await self._server.start_serving()

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        self._stopped = True
        if self._server is not None:
            self._server.close()
        self._socket.close()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:  # it was taken at the last moment
            reset(writer)
            return
        peer, own = (tuple(writer.get_extra_info(name)[:2]) for name in ("peername", "sockname"))
        source = self._dialler(peer, own)
        if source is None or self._refused(source):  # an unknown dialler would slip past a partition
            reset(writer)
            return
        connection = _Connection(source, self.target, self._network, reader, writer)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a callback of start_server is a task)
        self._open[task] = connection
        try:
            await connection.run(functools.partial(self._connect, self._upstream))
        except asyncio.CancelledError:
            reset(writer)  # the link is stopped: a callback that ends cancelled would be reported as an error
        finally:
            del self._open[task]

    def _refused(self, source: str) -> bool:
        return any(
            self._network.fault(*pair).reset for pair in ((source, self.target), (self.target, source))
        )

    def _reset(self, pair: Pair) -> None:
        for connection in list(self._open.values()):
            if {connection.source, self.target} == set(pair):
                connection.reset()


class _Connection:
    """One connection over a link: two flows."""

    def __init__(
        self,
        source: str,
        target: str,
        network: Network,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.source, self._target, self._network = source, target, network
        self._near_reader, self._near = reader, writer
        self._far: asyncio.StreamWriter | None = None
        self._there = _Flow(network, source, target)
        self._back = _Flow(network, target, source)

    def reset(self) -> None:
        """Reset both ends."""
        reset(self._near)
        if self._far is not None:
            reset(self._far)

    async def run(self, connect: Callable[[], Awaitable[Streams]]) -> None:
        """Carry bytes both ways until both ends are done or one breaks."""
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._there.read(self._near_reader))
                if not await self._reachable(reading):
                    raise ConnectionAbortedError
                far_reader, self._far = await connect()
                group.create_task(self._there.write(self._far))
                group.create_task(self._back.read(far_reader))
                group.create_task(self._back.write(self._near))
        except* OSError:
            pass  # refused, reset or gone: both ends learn it by the reset below
        finally:
            self.reset()

    async def _reachable(self, reading: "asyncio.Task[None]") -> bool:
        """Wait while a dialler would get no answer; False when it gave up."""
        while any(
            self._network.dropped(*p) for p in ((self.source, self._target), (self._target, self.source))
        ):
            changing = asyncio.create_task(self._network.change())
            try:
                await asyncio.wait({changing, reading}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changing.cancel()
            if reading.done():
                return False
        return True


class _Flow:
    """Bytes in one direction: read at once, delivered when the network lets them arrive."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self._network, self._source, self._target = network, source, target
        self._queue: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(QUEUED_CHUNKS)
        self._due = 0.0  # of what was read last: order is kept

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Take what the source sends until it ends or breaks."""
        loop = asyncio.get_running_loop()
        while True:
            chunk: bytes | None
            try:
                chunk = await reader.read(CHUNK_BYTES)
            except OSError:
                chunk = _ABORT
            fault = self._network.fault(self._source, self._target)
            self._due = max(self._due, loop.time() + self._network.stall_s(fault))
            await self._queue.put((self._due, chunk))
            if not chunk:
                return

    async def write(self, writer: asyncio.StreamWriter) -> None:
        """Deliver; an end or a reset is told the target only when it would arrive."""
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await self._queue.get()
            if (wait_s := due - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            while self._network.dropped(self._source, self._target):
                await self._network.change()
            if chunk is _ABORT:
                raise ConnectionResetError
            if chunk == _FIN:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            limit = self._network.fault(self._source, self._target).bytes_per_s
            if limit is not None:
                await asyncio.sleep(len(chunk) / limit)
            writer.write(chunk)
            await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close at once with a reset (RST)."""
    found = writer.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()
