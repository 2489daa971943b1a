"""Streams at level 5, through two real proxies: the permit binds the opening message, or what policy says instead."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from sidecar.core.call import Attempt, Decision, Direction
from tests.support.errors import outcome
from tests.support.eventually import eventually
from tests.support.interop_cases import CASES, EOF
from tests.support.interop_service import DUPLEX, EMPTY, INPUT, OUTPUT, UNARY, GenericHandler, ask
from tests.support.level_five import BOUND, METHOD_ALONE, Pair, engine, pair
from tests.support.proxies import ALICE, SHOP, path, served
from trust.compact import to_base64url
from trust.edge.tls import channel_credentials
from trust.errors import Reason
from trust.permit import NO_MESSAGE, PERMIT_KEY, certificate_sha256, read_claims
from trust.policy.types import Authn
from trust.record import Ending, Outcome

SOON: Any = {"opening_timeout_s": 0.2}
ONE, OTHER = ask(sizes=[1]), ask(sizes=[2])
ALLOWED = Decision("d", allowed=True, reason=Reason.ALLOWED, level=5, policy_version=1, method_alone=True)


def digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def permit_at(through: Pair) -> str:
    """Return the permit that the service's last call came with."""
    return str(dict(through.service.metadata[-1])[PERMIT_KEY])


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("case", sorted(CASES))
async def test_interop_case_looks_the_same_at_level_five(case: str, known: bool) -> None:
    """A caller that speaks first cannot tell that its opening message was bound, whatever kind of call it is."""
    async with path(0) as direct:
        expected = await CASES[case](direct.channel)
    async with pair(engine(known=known)) as through:
        assert await CASES[case](through.channel) == expected


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_every_kind_of_call_binds_its_first_message_by_default(known: bool) -> None:
    """Permit, both records and the message that the service gets are of one digest."""
    async with pair(engine(known=known)) as through:
        channel = through.channel
        bound = []
        assert await channel.unary_unary(EMPTY, None, None)(b"") == b""
        bound.append(b"")
        assert await channel.unary_unary(UNARY, None, None)(ONE) == b""
        bound.append(ONE)
        assert [m async for m in channel.unary_stream(OUTPUT, None, None)(ONE)] == [b"\0"]
        bound.append(ONE)
        upload = channel.stream_unary(INPUT, None, None)(iter([b"first", b"second"]))
        assert await upload == b'{"bytes": 11, "messages": 2}'
        bound.append(b"first")
        assert [m async for m in channel.stream_stream(DUPLEX, None, None)(iter([ONE, OTHER]))] == [
            b"\0",
            b"\0\0",
        ]
        bound.append(ONE)
        permits = [str(dict(sent)[PERMIT_KEY]) for sent in through.service.metadata]
    expected = [digest(message) for message in bound]
    assert [read_claims(permit).request_sha256 for permit in permits] == expected
    for node in (through.caller, through.callee):
        assert [intent.request_sha256 for intent in node.intents()] == expected


async def test_a_stream_without_any_message_is_bound_to_that() -> None:
    """An empty stream and an empty message are different calls, to the permit too."""
    async with pair(engine()) as through:
        call: Any = through.channel.stream_unary(INPUT, None, None)(None)
        await call.done_writing()
        assert await call == b'{"bytes": 0, "messages": 0}'
        assert read_claims(permit_at(through)).request_sha256 == NO_MESSAGE
        assert through.callee.intents()[-1].request_sha256 == NO_MESSAGE


async def first_says_hello(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """Speak before the caller does."""
    yield b"hello"
    async for request in requests:
        yield request


@contextlib.asynccontextmanager
async def server_first() -> AsyncIterator[tuple[str, list[str]]]:
    """Serve a method that speaks first; yield its address and what was called."""
    called: list[str] = []

    class Service(GenericHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            called.append(handler_call_details.method)
            return grpc.stream_stream_rpc_method_handler(first_says_hello)

    async with served(Service()) as address:
        yield address, called


async def test_where_every_policy_says_so_the_server_may_speak_first() -> None:
    """The stream opens at once; its permit binds the method alone."""
    async with server_first() as (address, called), pair(engine(METHOD_ALONE), service_at=address) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        assert await call.read() == b"hello"
        await call.write(b"hello yourself")
        assert await call.read() == b"hello yourself"
        await call.done_writing()
        assert await call.read() is EOF
        assert called == [DUPLEX]
    for node in (through.caller, through.callee):
        (intent,) = node.intents()
        assert read_claims(intent.permit.decode()).request_sha256 is None
        assert (intent.request_sha256, intent.allowed) == (b"", True)


async def test_where_policy_does_not_say_so_a_caller_that_waits_is_told_what_to_do() -> None:
    """A hang that nobody can explain would be the worst way to learn of the rule; the service hears nothing."""
    async with server_first() as (address, called), pair(engine(), service_at=address, **SOON) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        code, message, info = await outcome(call.read())
        assert (code, info["reason"]) == ("FAILED_PRECONDITION", "OPENING_MISSING")
        assert '@permit("method")' in message
        assert called == [] and through.callee.intents() == []
        assert [intent.reason for intent in through.caller.intents()] == ["OPENING_MISSING"]


async def test_a_deadline_does_not_hide_why_a_stream_was_not_opened() -> None:
    """DEADLINE_EXCEEDED would tell a developer nothing."""
    async with pair(engine()) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None, timeout=5)
        code, _, info = await outcome(call.read())
        assert (code, info["reason"]) == ("FAILED_PRECONDITION", "OPENING_MISSING")


async def test_one_policy_without_the_annotation_is_enough_to_bind_the_message() -> None:
    """Of several policies that allow a call the strictest decides what its permit binds."""
    both = METHOD_ALONE + BOUND.replace('"may"', '"may-too"')
    async with pair(engine(both), **SOON) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        _, _, info = await outcome(call.read())
        assert info["reason"] == "OPENING_MISSING"


async def test_a_stream_that_policy_denies_is_refused_before_its_first_message() -> None:
    """Nobody is kept waiting for a no."""
    nobody = BOUND.replace(str(ALICE), str(SHOP))
    async with pair(engine(nobody)) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        code, _, info = await outcome(asyncio.wait_for(call.read(), 60))
        assert (code, info["reason"]) == ("PERMISSION_DENIED", "NO_POLICY_PERMITS")


async def test_the_callees_policy_alone_decides_whether_the_method_alone_is_enough() -> None:
    """A caller's sidecar with a laxer policy, or none of our code, gets nothing by it; a stricter one is welcome."""
    async with pair(engine(METHOD_ALONE), engine(BOUND)) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        code, message, info = await outcome(call.read())
        assert (code, info["reason"]) == ("PERMISSION_DENIED", "PERMIT_MISMATCH")
        assert '@permit("method")' in message
        assert through.service.metadata == []
        assert [intent.allowed for intent in through.callee.intents()] == [False]
    async with pair(engine(BOUND), engine(METHOD_ALONE)) as through:
        call = through.channel.stream_stream(DUPLEX, None, None)(iter([ONE]))
        assert [m async for m in call] == [b"\0"]


def forged(through: Pair, request_sha256: bytes | None) -> tuple[tuple[str, str], ...]:
    """Return what a compromised sidecar of the caller can mint: anything, in the name of its own workload."""
    now_ms, ids = time.time_ns() // 1_000_000, through.caller.notary._ids()
    token = through.caller.notary._signing.minter.mint_for(
        Attempt(Direction.OUTBOUND, "shop", DUPLEX[1:], str(ALICE), Authn.MTLS),
        ALLOWED,
        request_sha256,
        None,
        ids,
        certificate_sha256(through.identity.svid(ALICE).chain_pem),
        now_ms,
        execution_id=ids,
        callee=str(SHOP),
        policy_sha256=bytes(32),
    )
    return ((PERMIT_KEY, token),)


async def test_a_compromised_callers_sidecar_can_swap_no_opening_message_and_leave_none_out() -> None:
    """It owns certificate and node key, and still binds itself; what it showed is spent."""
    async with pair(engine(), **SOON) as through:
        credentials = channel_credentials(through.identity, ALICE)
        name = (("grpc.ssl_target_name_override", SHOP.dns_name),)
        async with grpc.aio.secure_channel(through.inbound, credentials, name) as channel:
            open_call: Any = channel.stream_stream(DUPLEX, None, None)

            async def refused(metadata: Any, *messages: bytes, end: bool = False) -> str:
                call = open_call(None, metadata=metadata)
                for message in messages:
                    await call.write(message)
                if end:
                    await call.done_writing()
                code, _, info = await outcome(call.read())
                assert code != "OK"
                return info["reason"]

            assert await refused(forged(through, None)) == "PERMIT_MISMATCH"
            assert await refused(forged(through, digest(ONE)), OTHER) == "PERMIT_MISMATCH"
            assert await refused(forged(through, digest(ONE)), end=True) == "PERMIT_MISMATCH"
            assert await refused(forged(through, NO_MESSAGE), b"") == "PERMIT_MISMATCH"
            kept = forged(through, digest(ONE))
            assert await refused(kept) == "OPENING_MISSING"
            assert await refused(kept) == "PERMIT_REPLAYED"  # at once: nobody waits for a used permit
            assert through.service.metadata == []
            good = open_call(None, metadata=forged(through, digest(ONE)))
            await good.write(ONE)
            assert await good.read() == b"\0"
            await good.write(OTHER)  # what follows is the caller's own affair
            assert await good.read() == b"\0\0"
            good.cancel()


async def test_taking_the_annotation_away_cuts_the_streams_that_relied_on_it() -> None:
    """They hold a permit that nobody would accept any more."""
    async with pair(engine(METHOD_ALONE)) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        await call.write(ONE)
        assert await call.read() == b"\0"
        through.callee.adopt(engine(BOUND))
        code, message, info = await outcome(call.read())
        assert (code, info["reason"]) == ("PERMISSION_DENIED", "AUTHORIZATION_WITHDRAWN")
        assert "opening message" in message


async def test_a_caller_that_goes_away_before_its_first_message_leaves_nothing_behind() -> None:
    """Nothing was executed: no record, no call of the service, no permit."""
    async with pair(engine()) as through:
        waiting = through.caller.pipeline.counters
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        await asyncio.sleep(0.05)
        call.cancel()
        assert (await call.code()).name == "CANCELLED"
        answered = through.channel.unary_unary(EMPTY, None, None)
        assert await answered(b"") == b""
        await eventually(lambda: waiting.statuses() == {"outbound.OK": 1}, "the outcome of the only call")
        assert len(through.caller.intents()) == len(through.service.metadata) == 1


async def test_policy_that_comes_while_a_stream_is_held_is_the_one_it_is_decided_under() -> None:
    """What was allowed when the stream was opened does not count when its message comes."""
    nobody = BOUND.replace(str(ALICE), str(SHOP))
    async with pair(engine()) as through:
        call: Any = through.channel.stream_stream(DUPLEX, None, None)(None)
        await asyncio.sleep(0.05)
        through.caller.adopt(engine(nobody))
        await call.write(ONE)
        _, _, info = await outcome(call.read())
        assert (info["reason"], info["policy_version"]) == ("NO_POLICY_PERMITS", "2")
        assert through.service.metadata == []


@pytest.mark.parametrize("level", [1, 3])
async def test_below_level_four_no_stream_is_refused_because_a_message_that_policy_asks_to_keep_does_not_come(
    level: int,
) -> None:
    """There a person is told that it is not kept, and the stream goes on with every message that comes later."""
    auditor = to_base64url(X25519PrivateKey.generate().public_key().public_bytes_raw())
    asks = BOUND.replace('@id("may")', '@id("may") @audit("payload")')
    policy = engine(asks, level=level, more=f"auditors: {{ann: {auditor}}}\n")
    async with server_first() as (address, _), pair(policy, service_at=address, **SOON) as p:
        call: Any = p.channel.stream_stream(DUPLEX, None, None)(None)
        assert await call.read() == b"hello"
        await call.write(b"hello yourself")
        assert await call.read() == b"hello yourself"
        await call.done_writing()
        assert await call.read() is EOF
        silent: Any = p.channel.stream_stream(DUPLEX, None, None)(None)
        assert await silent.read() == b"hello"
        silent.cancel()


class Standard(GenericHandler):
    """Health and reflection as services have them."""

    def __init__(self) -> None:
        self.handlers: list[Any] = []
        self.health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self)
        names = (health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, cast("Any", self))

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.handlers += handlers

    def add_registered_method_handlers(self, *_: Any) -> None:
        """Not needed beside the generic ones."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        found = (handler.service(handler_call_details) for handler in self.handlers)
        return next((handler for handler in found if handler is not None), None)


async def test_health_watch_and_reflection_need_no_annotation() -> None:
    """What every user has: their clients speak first."""
    service = Standard()
    async with served(service) as address, pair(engine(), service_at=address) as through:
        health = health_pb2_grpc.HealthStub(through.channel)
        await service.health.set("", health_pb2.HealthCheckResponse.SERVING)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watching = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        await service.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()
        stub = reflection_pb2_grpc.ServerReflectionStub(through.channel)
        asked = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        (listed,) = [one async for one in asked]
        assert "grpc.health.v1.Health" in str(listed)
    bound = [intent.request_sha256 for intent in through.callee.intents()]
    assert len(bound) == 3 and all(len(digest) == 32 and digest != NO_MESSAGE for digest in bound)


@pytest.mark.parametrize("method", [UNARY, DUPLEX], ids=["unary", "stream"])
async def test_a_call_whose_right_goes_while_it_waits_for_the_disk_is_not_forwarded(method: str) -> None:
    """Forwarded late, it would use a right that the node knows to be gone; both records say how it ended."""
    async with pair(engine(known=True)) as through:
        waiting, synced = asyncio.Event(), asyncio.Event()

        async def slow(pending: object) -> None:
            waiting.set()
            await synced.wait()

        through.callee.journal.durable = slow  # type: ignore[method-assign]
        if method == UNARY:
            call: Any = through.channel.unary_unary(UNARY, None, None)(ONE)
        else:
            call = through.channel.stream_stream(DUPLEX, None, None)(iter([ONE]))
        asking = asyncio.ensure_future(call.code())
        await asyncio.wait_for(waiting.wait(), 30)
        through.callee.adopt(engine(BOUND.replace(str(ALICE), f"{ALICE}-two")))
        synced.set()
        assert await asking is grpc.StatusCode.PERMISSION_DENIED
        assert "AUTHORIZATION_WITHDRAWN" in await call.details()
        assert through.service.metadata == []
        await eventually(lambda: len(through.callee.journal.held) == 2, "the outcome is written")
        ended = through.callee.journal.held[1]
        assert isinstance(ended, Outcome)
        assert (ended.ending, ended.reason) == (Ending.CUT, "AUTHORIZATION_WITHDRAWN")
