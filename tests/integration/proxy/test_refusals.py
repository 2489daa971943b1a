"""What callers are told when a call does not go through, and that nothing else is told."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from sidecar.core.gate import Shape
from sidecar.edge import upstream
from tests.support.errors import outcome
from tests.support.interop_cases import EOF
from tests.support.interop_service import DUPLEX, EMPTY, INPUT, OUTPUT, UNARY, ask
from tests.support.open_gate import OpenGate
from tests.support.proxies import KNOWN, hop, path, pool
from trust.errors import Reason, StateError

SHAPES = [pytest.param(KNOWN, id="known"), pytest.param({}, id="unknown")]


@pytest.mark.parametrize("shapes", SHAPES)
async def test_refusal_names_reason_decision_and_policy_and_never_reaches_the_service(shapes: Any) -> None:
    """A developer must be able to look up why, without asking the operator to search logs."""
    gate = OpenGate(shapes=shapes, refuse=lambda attempt, request: Reason.NO_POLICY_PERMITS)
    async with path(1, gate=gate) as through:
        code, message, info = await outcome(through.channel.unary_unary(UNARY, None, None)(ask(size=1)))
        assert code == "PERMISSION_DENIED"
        assert message == "egm: NO_POLICY_PERMITS: the test says no (decision boot-1, policy version 7)"
        assert info == {
            "reason": "NO_POLICY_PERMITS",
            "domain": "egm",
            "decision_id": "boot-1",
            "policy_version": "7",
            "level": "4",
            "service": "shop",
            "method": "grpc.testing.TestService/UnaryCall",
        }
        assert through.service.metadata == []
        assert gate.outcomes == []


async def test_refused_stream_is_refused_before_its_first_message() -> None:
    """A client that waits for the server to speak must hear the refusal without sending anything."""
    gate = OpenGate(refuse=lambda attempt, request: Reason.POLICY_DENIED)
    async with path(1, gate=gate) as through:
        call = through.channel.stream_stream(DUPLEX, None, None)(None)
        code, _, info = await outcome(asyncio.wait_for(call.read(), 60))
        assert (code, info["reason"]) == ("PERMISSION_DENIED", "POLICY_DENIED")
        assert gate.requests == [None]


async def test_stream_whose_policy_reads_the_request_is_decided_on_its_first_message() -> None:
    """The message that the policy saw must be the one that the service gets, once."""
    gate = OpenGate(reads=True)
    async with path(1, gate=gate) as through:
        call = through.channel.stream_unary(INPUT, None, None)(None)
        await call.write(b"first")
        await call.write(b"second")
        await call.done_writing()
        assert await call == b'{"bytes": 11, "messages": 2}'
        assert gate.requests == [b"first"]


async def test_single_request_of_a_server_stream_is_shown_to_the_gate() -> None:
    """A server stream is decided on its request when a descriptor says that there is one."""
    async with path(1) as through:
        call = through.channel.unary_stream(OUTPUT, None, None)(ask(sizes=[1]))
        assert await call.read() == b"\0"
        assert await call.read() is EOF
        assert through.gates[0].requests == [ask(sizes=[1])]
        assert through.gates[0].outcomes in (["OK"], [])


@pytest.mark.parametrize("shapes", SHAPES)
async def test_service_that_is_down_is_reported_by_reason_without_its_address(shapes: Any) -> None:
    """UNAVAILABLE of the sidecar is told apart from the service's own, and leaks no internal address."""
    async with (
        pool() as channels,
        hop(upstream.local(channels, "127.0.0.1:1"), OpenGate(shapes=shapes)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        code, message, info = await outcome(channel.unary_unary(UNARY, None, None)(b"x"))
    assert (code, info["reason"]) == ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")
    assert info["decision_id"] == "boot-1"
    assert "cannot be reached" in message
    assert "127.0.0.1" not in message


async def test_service_that_dies_during_a_stream_is_reported_by_reason() -> None:
    """A broken connection ends the stream with a reason, not with gRPC's internal wording."""

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    server = await asyncio.start_server(die, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        pool() as channels,
        hop(upstream.local(channels, f"127.0.0.1:{port}"), OpenGate()) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = channel.stream_stream(DUPLEX, None, None)(None)
        code, message, info = await outcome(call.read())
    assert (code, info["reason"]) == ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")
    assert "127.0.0.1" not in message


async def test_route_that_leads_nowhere_ends_the_call_with_its_reason() -> None:
    """A service without an address is an answer, not a crash."""

    def nowhere(service: str, method: str, metadata: Any) -> upstream.Upstream:
        raise StateError(Reason.UNKNOWN_SERVICE, "no addresses are configured for shop")

    async with path(1, route=nowhere) as through:
        code, message, info = await outcome(through.channel.unary_unary(EMPTY, None, None)(b""))
        assert (code, info["reason"]) == ("UNIMPLEMENTED", "UNKNOWN_SERVICE")
        assert message == "egm: UNKNOWN_SERVICE: no addresses are configured for shop"


@pytest.mark.parametrize("shape", list(Shape))
async def test_defect_in_the_sidecar_never_shows_its_text(
    shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC would send the exception's text to the caller; it belongs in the log."""

    def broken(service: str, method: str, metadata: Any) -> upstream.Upstream:
        raise RuntimeError("secret path /etc/egm/keys")

    async with path(1, gate=OpenGate(shapes={UNARY[1:]: shape}), route=broken) as through:
        code, message, info = await outcome(through.channel.unary_unary(UNARY, None, None)(b"x"))
    assert (code, info["reason"]) == ("INTERNAL", "INTERNAL")
    assert "secret" not in message
    assert "secret path" in caplog.text


@pytest.mark.parametrize("shapes", SHAPES)
async def test_message_over_the_limit_is_refused_with_the_limit(shapes: Any) -> None:
    """The caller learns which limit it met and what to do."""
    async with path(1, gate=OpenGate(shapes=shapes), max_message_bytes=1000) as through:
        code, message, info = await outcome(through.channel.unary_unary(UNARY, None, None)(bytes(1001)))
        assert (code, info["reason"]) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
        assert "1001 bytes exceeds the limit of 1000 bytes" in message
        assert through.service.metadata == [] or not shapes


async def test_message_far_over_the_limit_is_refused_by_grpc_itself() -> None:
    """What is never taken into memory cannot be explained, but it is refused with the same code."""
    async with path(1, max_message_bytes=1000) as through:
        code, _, _ = await outcome(through.channel.unary_unary(UNARY, None, None)(bytes(3_000_000)))
        assert code == "RESOURCE_EXHAUSTED"


async def test_compressed_message_that_unpacks_over_the_limit_is_refused() -> None:
    """A compression bomb must not be unpacked."""
    async with path(1, max_message_bytes=1000) as through:
        call = through.channel.unary_unary(UNARY, None, None)(
            bytes(30_000_000), compression=grpc.Compression.Gzip
        )
        code, _, _ = await outcome(call)
        assert code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("size", [1001, 65 * 1024 * 1024], ids=["proxy", "grpc"])
async def test_response_over_the_limit_is_refused_with_the_limit(size: int, shapes: Any) -> None:
    """A service's huge response is stopped at the sidecar, which says so; gRPC stops it above its own 64 MiB."""
    async with path(1, gate=OpenGate(shapes=shapes), max_message_bytes=1000) as through:
        code, _, info = await outcome(through.channel.unary_unary(UNARY, None, None)(ask(size=size)))
        assert (code, info["reason"]) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")


async def test_large_message_below_the_limit_passes_both_ways() -> None:
    """The default limit is far above gRPC's own 4 MiB."""
    async with path(2) as through:
        request = ask(size=8_000_000)
        response = await through.channel.unary_unary(UNARY, None, None)(request + bytes(8_000_000))
        assert len(response) == 8_000_000


@pytest.mark.parametrize("bad", ["/no-slash-inside", "/a/b/c", "/a b/c"])
async def test_method_that_no_policy_can_name_is_unimplemented(bad: str) -> None:
    """What is decided must be what is forwarded."""
    async with path(1) as through:
        code, _, _ = await outcome(through.channel.unary_unary(bad, None, None)(b""))
        assert code == "UNIMPLEMENTED"
        assert through.gates[0].attempts == []
