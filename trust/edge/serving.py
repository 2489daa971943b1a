"""A gRPC server that keeps listening when grpc.aio's own accept loop dies.

Measured with grpcio 1.85: one request whose :path is not UTF-8 ends `AioServer._server_main_loop`, and with it the
listener, for good; calls in flight go on. Whoever may connect could so switch a service off. This server notices
within `CHECK_PERIOD_S` and listens again on the same address. gRPC itself tells open connections to go away, so
clients connect anew.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, NoReturn, cast

import grpc
import grpc.aio

logger = logging.getLogger(__name__)

CHECK_PERIOD_S: Final = 0.02

# Builds a bound server for an address; returns it with its port.
Build = Callable[[str], tuple[grpc.aio.Server, int]]


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
        self._watching: asyncio.Task[None] | None = None
        self._worn_out: list[grpc.aio.Server] = []  # they still carry calls

    async def start(self) -> None:
        """Serve, and see to it that it stays so."""
        await self._server.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new calls, give those in flight `grace` seconds, then cut them."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(self._bury(server, grace) for server in (self._server, *self._worn_out)))

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until `stop` was called (True: not within `timeout` seconds)."""
        if self._watching is None:
            return True
        done, _ = await asyncio.wait([self._watching], timeout=timeout)
        return not done

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_PERIOD_S)
            if cast("Any", self._server)._server.is_running():
                continue
            logger.error(
                "the listener %s was knocked out by a malformed request; listening again", self._listen
            )
            self._worn_out = [self._server, *self._worn_out][:8]
            try:
                server, _ = self._build(self._listen)
                await server.start()
            except (RuntimeError, grpc.aio.BaseError):
                logger.exception("cannot listen on %s again; trying on", self._listen)
                continue
            self._server = server

    @staticmethod
    async def _bury(server: grpc.aio.Server, grace: float | None) -> None:
        try:
            await server.stop(grace)
        except UnicodeDecodeError:
            logger.debug("a listener ended with what had worn it out")

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
