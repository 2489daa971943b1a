"""Callers that do not play by the rules."""

from typing import Any, cast

import grpc.aio

# grpc's own accept loop dies of it, with an exception that nobody fetches.
GRPC_DIES = "ignore::pytest.PytestUnraisableExceptionWarning"


async def knock_out(channel: grpc.aio.Channel) -> None:
    """Send a method name that is not UTF-8, which ends grpc.aio's accept loop."""
    call = cast("Any", channel)._channel.call(b"/a/\xff\xfe", None, None, None, 0)
    await call.unary_unary(b"", ())
    assert (await call.status()).code() != 0
