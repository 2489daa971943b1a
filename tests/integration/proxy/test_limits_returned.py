"""What a call took of a limit is given back exactly when this sidecar did not forward it: unary calls and streams."""

from typing import NoReturn

import grpc
import grpc.aio

from sidecar.core.call import Decision
from sidecar.edge.case import Case
from sidecar.edge.upstream_call import EOF
from tests.support.interop_service import DUPLEX, UNARY, ask
from tests.support.level_five import MAY, Pair, engine, pair
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import Reason, StateError

LIMITED = f'@id("may") @rate("2/d") {MAY}'


class Refusing:
    """A duty that refuses while a test wants it to."""

    refuses = True

    async def meet(self, case: Case, decision: Decision, *, now_ms: int) -> None:
        """Refuse, or not."""
        if self.refuses:
            raise StateError(Reason.LEDGER_UNAVAILABLE, "not now")


async def unary(mesh: Pair) -> str:
    """Return the reason of the refusal of one unary call; "OK" without."""
    try:
        await mesh.channel.unary_unary(UNARY, None, None)(ask(size=1), timeout=10)
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error).reason
    return "OK"


async def stream(mesh: Pair, code: int = 0) -> str:
    """Return the reason, or else the code, with which one stream ended."""
    call = mesh.channel.stream_stream(DUPLEX, None, None)(timeout=10)  # type: ignore[call-arg]
    try:
        await call.write(ask(sizes=[1], code=code) if code else ask(sizes=[1]))
        await call.done_writing()
        while await call.read() is not EOF:
            continue
    except grpc.aio.AioRpcError as error:
        reason = error_from_rpc(error).reason
        return error.code().name if reason is Reason.SOURCE_UNAVAILABLE else reason
    return (await call.code()).name


async def test_a_call_that_a_later_duty_refuses_takes_nothing_and_one_that_the_service_fails_does() -> None:
    """Both sidecars, one policy: the caller's refuses first; then everything counts once on each."""
    async with pair(engine(LIMITED, level=4, known=True)) as mesh:
        duty = Refusing()
        mesh.caller.notary.duties.add(duty)
        for _ in range(4):
            assert await unary(mesh) == Reason.LEDGER_UNAVAILABLE
        duty.refuses = False
        assert (
            await stream(mesh, code=9) == "FAILED_PRECONDITION"
        )  # the service's own answer: it was forwarded
        assert await unary(mesh) == "OK"
        assert await unary(mesh) == Reason.RATE_EXCEEDED
        assert await stream(mesh) == Reason.RATE_EXCEEDED
        assert len(mesh.callee.pipeline.meters) == len(mesh.caller.pipeline.meters) == 1


async def test_a_service_that_fails_in_the_words_of_grpc_has_seen_the_call() -> None:
    """Its own database is away, after it has done something: the caller does not get that for nothing."""

    async def fails(_request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> NoReturn:
        await context.abort(
            grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: connection refused"
        )

    service = grpc.aio.server()
    name, _, method = UNARY.lstrip("/").partition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(fails)}
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = service.add_insecure_port("127.0.0.1:0")
    await service.start()
    try:
        async with pair(engine(LIMITED, level=4, known=True), service_at=f"127.0.0.1:{port}") as mesh:
            assert [await unary(mesh) for _ in range(3)] == [
                Reason.UPSTREAM_UNAVAILABLE,
                Reason.UPSTREAM_UNAVAILABLE,
                Reason.RATE_EXCEEDED,
            ]
    finally:
        await service.stop(0)


async def test_a_stream_to_a_service_that_cannot_be_reached_takes_nothing() -> None:
    """It never began; the callee's sidecar says so to both."""
    async with pair(engine(LIMITED, level=4), service_at="127.0.0.1:1") as mesh:
        reasons = [await stream(mesh) for _ in range(2)]
        assert reasons == [Reason.UPSTREAM_UNAVAILABLE] * 2
        left = [node.pipeline.meters for node in (mesh.caller, mesh.callee)]
        now_ns = mesh.callee.clock.monotonic_ms() * 1_000_000
        assert [max(meters._rates.values()) > now_ns for meters in left] == [True, False]
