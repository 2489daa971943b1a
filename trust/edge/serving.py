"""A gRPC server that keeps listening when grpc.aio's own accept loop dies, and is not corrupted by its death.

Measured with grpcio 1.85: one request whose :path is not UTF-8 ends `AioServer._server_main_loop`, and with it the
listener, for good; calls in flight go on. Whoever may connect could so switch a service off. This server waits for
the loop's end and listens again on the same address. gRPC itself tells open connections to go away, so clients
connect anew.

Worse, a dying loop frees what it lent to gRPC core for the next call of each *registered* method, and core writes
there when it shuts the server down: memory corruption by one request. `new_server` registers no method; the generic
handlers that generated code adds as well serve every call, and the loop lends nothing when it dies.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import grpc
import grpc.aio

from trust import limits

logger = logging.getLogger(__name__)

# The loop's task is grpc's own affair; where it cannot be told from others, the server is looked at so often instead
# (two such servers in every sidecar were a third of what it used while nobody called).
CHECK_PERIOD_S: Final = 0.02
_SOCKET_LOOKS: Final = 100
_LOOK_PERIOD_S: Final = 1.0  # and otherwise so often, whatever its task says
_ACCEPT_LOOP: Final = "AioServer._server_main_loop"
# Calls that a worn-out server still carries may go on for so long.
_LAST_CALLS_S: Final = float(limits.SVID_TTL_S)

# Builds a bound server for an address; returns it with its port.
Build = Callable[[str], tuple[grpc.aio.Server, int]]


def new_server(
    *, interceptors: Sequence[Any] = (), options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Server:
    """Return a server to add servicers and one port to. The only way to make one: see above.

    Its port is its own: with gRPC's default two servers may share one, and each would get some of the calls.
    """
    server = grpc.aio.server(interceptors=interceptors, options=[*options, ("grpc.so_reuseport", 0)])
    cast("Any", server).add_registered_method_handlers = _register_nothing
    return server


def _register_nothing(service_name: str, method_handlers: object) -> None:
    """Leave the methods to the generic handler that generated code adds for the same service."""


class SteadyServer(grpc.aio.Server):
    """A bound server and the means to build it again. Use like the grpc.aio.Server that `build` returns."""

    def __init__(self, build: Build, listen: str) -> None:
        """Bind `listen` ("host:port", port 0 is chosen once and then kept, or "unix:///path").

        Raises:
            RuntimeError: the address cannot be bound.
        """
        self._build = build
        self._server, self.port = build(listen)
        self._listen = listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{self.port}"
        self._accepting: asyncio.Task[Any] | None = None  # grpc's, of the server that listens now
        self._watching: asyncio.Task[None] | None = None
        self._starting: asyncio.Future[asyncio.Task[Any] | None] | None = None
        self._worn_out: dict[grpc.aio.Server, asyncio.Task[None]] = {}  # they still carry calls

    async def start(self) -> None:
        """Serve, and see to it that it stays so."""
        self._accepting = await self._begin(self._server)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new calls, give those in flight `grace` seconds, then cut them."""
        if self._watching is not None:
            self._watching.cancel()
        for waiting in self._worn_out.values():
            waiting.cancel()
        if self._starting is not None:
            await asyncio.wait({self._starting})
            self._starting.exception()  # whoever began it has it, or is being stopped
        await asyncio.gather(*(_bury(server, grace) for server in (self._server, *self._worn_out)))

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until `stop` was called (True: not within `timeout` seconds)."""
        if self._watching is None:
            return True
        done, _ = await asyncio.wait([self._watching], timeout=timeout)
        return not done

    async def _watch(self) -> None:
        retired: grpc.aio.Server | None = None
        while True:
            await self._ended_perhaps()
            if cast("Any", self._server)._server.is_running():
                continue
            if self._server is not retired:
                retired = self._server
                logger.error(
                    "the listener %s was knocked out by a malformed request; listening again", self._listen
                )
                self._retire(retired)
                await self._socket_gone()
            try:
                server, _ = self._build(self._listen)
                self._server = server  # before it starts: `stop` may come meanwhile
                self._accepting = await self._begin(server)
            except (RuntimeError, grpc.aio.BaseError):
                logger.exception("cannot listen on %s again; trying on", self._listen)

    async def _ended_perhaps(self) -> None:
        """Return when the accept loop has ended, or may have."""
        if self._accepting is None or self._accepting.done():
            await asyncio.sleep(CHECK_PERIOD_S)  # also between attempts to listen again
        else:
            await asyncio.wait([self._accepting], timeout=_LOOK_PERIOD_S)

    async def _socket_gone(self) -> None:
        """Wait until gRPC has removed the Unix socket of the server that ended: it would remove the next one's."""
        for _ in range(_SOCKET_LOOKS):
            if not _has_socket(self._listen):
                return
            await asyncio.sleep(CHECK_PERIOD_S)

    async def _begin(self, server: grpc.aio.Server) -> asyncio.Task[Any] | None:
        """Start a server, to the end also when whoever waits for it is cancelled; return what `_started` does.

        Measured with grpcio 1.85: a server that is stopped after its start was cancelled half-way ends the process with
        a segmentation fault.
        """
        self._starting = asyncio.ensure_future(_started(server))
        return await asyncio.shield(self._starting)

    def _retire(self, server: grpc.aio.Server) -> None:
        """Let a worn-out server finish its calls, and free it then."""
        task = asyncio.get_running_loop().create_task(_bury(server, _LAST_CALLS_S))
        self._worn_out[server] = task
        task.add_done_callback(lambda _: self._worn_out.pop(server, None))

    # The rest of grpc's interface: what is served was decided by `build`.

    def add_generic_rpc_handlers(self, generic_rpc_handlers: object) -> NoReturn:
        """Refuse: add handlers in `build`."""
        raise TypeError("add handlers where the server is built: it may be built again")

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> NoReturn:
        """Refuse: add handlers in `build`."""
        raise TypeError("add handlers where the server is built: it may be built again")

    def add_insecure_port(self, address: str) -> NoReturn:
        """Refuse: a steady server has the one address that it was made with."""
        raise TypeError("a steady server has one address")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> NoReturn:
        """Refuse: a steady server has the one address that it was made with."""
        raise TypeError("a steady server has one address")


def _has_socket(listen: str) -> bool:
    """Return whether there is a file of the Unix socket that is listened on; False for any other address."""
    return listen.startswith("unix:") and Path(listen.removeprefix("unix://").removeprefix("unix:")).exists()


async def _started(server: grpc.aio.Server) -> asyncio.Task[Any] | None:
    """Start a server; return the task that accepts its calls, None when it cannot be told which that is."""
    before = asyncio.all_tasks()
    await server.start()
    found = [
        task
        for task in asyncio.all_tasks() - before
        if getattr(task.get_coro(), "__qualname__", "") == _ACCEPT_LOOP
    ]
    return found[0] if len(found) == 1 else None


async def _bury(server: grpc.aio.Server, grace: float | None) -> None:
    try:
        await server.stop(grace)
    except UnicodeDecodeError:
        logger.debug("a listener ended with what had worn it out")
