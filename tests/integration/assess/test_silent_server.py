"""A server that takes a connection and says nothing."""

import asyncio

from control_plane.assess.edge.calls import call_anyhow


async def test_a_server_that_says_nothing_holds_up_neither_the_attempt_nor_the_end_of_the_command() -> None:
    """A command ends when its threads have: one that waited for such a server never did."""
    connections: list[asyncio.StreamWriter] = []

    def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        answer = await call_anyhow(f"{host}:{port}", "run", 0.2)
        assert "no TLS" in answer.detail
        async with asyncio.timeout(30):
            await asyncio.get_running_loop().shutdown_default_executor()
    finally:
        for writer in connections:
            writer.transport.abort()
        server.close()
