"""The reserved method of the assessor is answered by the sidecar itself, whatever its shape, and by nothing else."""

import asyncio
from typing import Any, cast

import grpc

from egm.v1 import probe_pb2
from sidecar.edge.probe import PROBE_METHOD, ProbeUpstream, pong, with_probe
from sidecar.edge.upstream import Upstream
from sidecar.edge.upstream_call import EOF
from trust import limits

SERVICE = cast("Upstream", object())


def reply(data: bytes) -> probe_pb2.PingReply:
    return probe_pb2.PingReply.FromString(data)


def test_only_reserved_methods_take_another_way() -> None:
    """A service is reached by every other method, also by those whose names look like the reserved one."""
    route = with_probe(lambda *_: SERVICE, node="a", service="shop")

    for reserved in (PROBE_METHOD, "egm.v1.Probe/Other"):
        assert isinstance(route("shop", reserved, ()), ProbeUpstream)
    for other in ("egm.v1.Probes/Ping", "egm.v1.probe/Ping", "xegm.v1.Probe/Ping", "shop.v1.Cart/Add"):
        assert route("shop", other, ()) is SERVICE


def test_the_answer_names_the_node_and_repeats_the_nonce() -> None:
    """So the assessor knows which sidecar answered, and that the answer is to its own question."""
    ping = probe_pb2.PingRequest(run="r", nonce=b"n" * limits.MAX_PROBE_NONCE_BYTES).SerializeToString()
    answer = reply(pong(ping, node="a", service="shop"))

    assert (answer.node, answer.service, answer.nonce) == ("a", "shop", b"n" * limits.MAX_PROBE_NONCE_BYTES)


def test_a_nonce_over_the_limit_or_no_ping_at_all_is_not_repeated() -> None:
    """The reserved method is no mirror for large or arbitrary bytes."""
    long = probe_pb2.PingRequest(nonce=b"n" * (limits.MAX_PROBE_NONCE_BYTES + 1)).SerializeToString()

    assert reply(pong(long, node="a", service="shop")).nonce == b""
    assert reply(pong(b"\xff\xff\xff", node="a", service="shop")).nonce == b""


async def test_a_stream_is_answered_once_and_ends_well() -> None:
    """Nothing describes the method, so it comes as a stream: one answer, then OK; further messages change nothing."""
    upstream = cast(
        "ProbeUpstream", with_probe(lambda *_: SERVICE, node="a", service="s")("s", PROBE_METHOD, ())
    )
    call = upstream.call(b"/egm.v1.Probe/Ping", None)
    call.open_stream(asyncio.get_running_loop(), ())
    await call.sendable()
    assert await call.send(probe_pb2.PingRequest(nonce=b"1").SerializeToString())
    assert await call.send(probe_pb2.PingRequest(nonce=b"2").SerializeToString())
    await call.half_close()

    assert await call.initial_metadata() == ()
    assert reply(cast("bytes", await call.receive())).nonce == b"1"
    assert await call.receive() is EOF
    assert await call.status() == (grpc.StatusCode.OK, "", ())
    assert call.done() and not call.cancel()


async def test_unary_server_streaming_and_empty_calls_are_answered_too() -> None:
    """A policy may describe the method, and a caller may send nothing: no shape reaches the service or hangs."""
    answer: Any = ProbeUpstream(lambda request: pong(request, node="a", service="s"))
    loop = asyncio.get_running_loop()
    ping = probe_pb2.PingRequest(nonce=b"x").SerializeToString()

    assert reply(await answer.call(b"", None).unary(ping, ())).nonce == b"x"
    server_stream = answer.call(b"", None)
    server_stream.open_server_stream(loop, ping, ())
    assert reply(await server_stream.receive()).nonce == b"x"
    empty = answer.call(b"", None)
    empty.open_stream(loop, ())
    await empty.half_close()
    assert reply(await empty.receive()).nonce == b""
