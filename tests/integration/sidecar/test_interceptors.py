"""Services that want no bypass, behind a real sidecar at level 5: what it hands on runs, and nothing else."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sidecar.edge.node_signer import write_public_key
from sidecar.edge.provenance import LEDGER_DIRECTORY
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.guarded_services import ON, READING, guarded
from tests.support.interop_service import DUPLEX, INPUT, OUTPUT, UNARY
from tests.support.sidecar_mesh import Mesh, policy
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.ledger import Reader
from trust.errors import Reason
from trust.handover import HANDOVER_KEY, Handover, mint_handover
from trust.permit import NO_MESSAGE, PERMIT_KEY, permit_sha256, read_claims
from trust.record import Intent, Link, Side, parse_record
from trust.spiffe import SpiffeId

ALICE = str(SpiffeId.of(TRUST_DOMAIN, "workload", "alice"))
ECHO = str(SpiffeId.of(TRUST_DOMAIN, "workload", "echo"))
LOOP = {"workload": "echo", "service": "echo", "listen": sidecars.LOOPBACK, "identify": "loopback"}


async def settled(address: str, request: bytes) -> bytes | Reason:
    """Call through the mesh. What was minted in the second in which a process started, it refuses."""
    for _ in range(30):
        answer = await sidecars.unary(address, UNARY, request)
        if answer is not Reason.PERMIT_UNVERIFIABLE:
            break
        await asyncio.sleep(0.1)
    return answer


def callee(mesh: Mesh, address: str, **changes: Any) -> dict[str, Any]:
    config = mesh.callee(**changes)
    config["inbound"][0] |= {"upstream": {"address": address}, "handover": True}
    return config


@pytest.mark.parametrize("style", ["sync", "aio"])
async def test_only_what_the_own_sidecar_hands_on_is_executed_and_the_chain_is_linked(
    mesh: Mesh, style: str
) -> None:
    """Through the sidecar it works; past it, with everything that was seen on the wire, it does not."""
    await mesh.publish(policy(level=5, allow=("alice", "echo")))
    key_file = mesh.home / "b" / "data" / "node-key.pub"
    async with (
        guarded(style, key_file, ECHO) as (seen, address),
        sidecars.running(
            callee(mesh, address, outbound=[LOOP], services={"echo": {"addresses": ["127.0.0.1:1"]}})
        ) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        seen.onward = b.outbound
        assert await settled(a.outbound, b"who") == ALICE.encode()
        _, carried = seen.calls[-1]
        used = tuple((key, carried[key]) for key in (HANDOVER_KEY, PERMIT_KEY))
        assert await sidecars.unary(address, UNARY, b"who") is Reason.PERMIT_MISSING
        assert await sidecars.unary(address, UNARY, b"who", metadata=used[1:]) is Reason.PERMIT_MISSING
        assert await sidecars.unary(address, UNARY, b"who", metadata=used) is Reason.PERMIT_REPLAYED
        assert len(seen.calls) == 1
        # Whoever sends a hand-over of their own through the mesh has it taken off.
        answer = await sidecars.unary(a.outbound, UNARY, b"who", metadata=((HANDOVER_KEY, "forged"),))
        assert answer == ALICE.encode()
        async with grpc.aio.insecure_channel(a.outbound) as channel:
            stream: Any = channel.stream_stream(DUPLEX, None, None)(timeout=30)  # type: ignore[call-arg]
            await stream.write(b"1")
            assert await stream.read() == ALICE.encode()
            stream.cancel()
        assert await sidecars.unary(a.outbound, UNARY, ON) == b"UNAVAILABLE"  # nobody listens at 127.0.0.1:1
        permit = str(seen.calls[-1][1][PERMIT_KEY])
    frames = Reader(mesh.home / "b" / "data" / LEDGER_DIRECTORY).scan()
    records = [parse_record(frame.record) for frame in frames]
    child = next(one for one in records if isinstance(one, Intent) and one.side is Side.OUTBOUND)
    root = read_claims(permit).execution_id
    assert (child.link, child.root_id, child.parent_id) == (Link.VERIFIED, root, root)
    assert child.parent_permit_sha256 == permit_sha256(permit)


class Sidecar:
    """A node key that signs hand-overs, without a sidecar around it."""

    def __init__(self, home: Path) -> None:
        self.private, self.file, self.drawn = Ed25519PrivateKey.generate(), home / "node-key.pub", 0
        write_public_key(self.file, self.private.public_key())

    def hand_over(self, path: str, request: bytes | None = None, *, digest: bytes | None = None) -> Any:
        self.drawn += 1
        now_s = time.time_ns() // 1_000_000_000
        claims = Handover(
            audience=ECHO,
            issued_s=now_s,
            expires_s=now_s + 30,
            token_id=self.drawn.to_bytes(16),
            execution_id=bytes.fromhex("0198f2f3eaaa7bbb8ccc0123456789ab"),
            method=path[1:],
            caller=ALICE,
            request_sha256=digest if request is None else hashlib.sha256(request).digest(),
        )
        return ((HANDOVER_KEY, mint_handover(claims, self.private.sign)),)


async def accepting(sidecar: Sidecar, address: str) -> None:
    """Wait until hand-overs are accepted: not in the second in which the service started."""
    for _ in range(30):
        answer = await sidecars.unary(address, UNARY, metadata=sidecar.hand_over(UNARY))
        if answer == ALICE.encode():
            return
        assert answer is Reason.PERMIT_UNVERIFIABLE
        await asyncio.sleep(0.1)
    raise AssertionError("no hand-over is accepted")


@pytest.mark.parametrize("style", ["sync", "aio", "mixed"])
async def test_every_kind_of_call_is_guarded_and_knows_its_caller(tmp_path: Path, style: str) -> None:
    """Unary and streaming, one request bound or none, in every style that grpc has."""
    sidecar = Sidecar(tmp_path)
    async with (
        guarded(style, sidecar.file, ECHO) as (seen, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        await accepting(sidecar, address)
        seen.calls.clear()
        bound = sidecar.hand_over(UNARY, b"this")
        assert await sidecars.unary(address, UNARY, b"this", metadata=bound) == ALICE.encode()
        bound = sidecar.hand_over(UNARY, b"this")
        assert await sidecars.unary(address, UNARY, b"that", metadata=bound) is Reason.PERMIT_MISMATCH
        output: Any = channel.unary_stream(OUTPUT, None, None)
        collect: Any = channel.stream_unary(INPUT, None, None)
        duplex: Any = channel.stream_stream(DUPLEX, None, None)
        metadata = sidecar.hand_over(OUTPUT, b"x")
        assert [one async for one in output(b"x", metadata=metadata)] == [ALICE.encode()] * 2
        assert await collect(iter([b"1", b"2"]), metadata=sidecar.hand_over(INPUT)) == f"1,2,{ALICE}".encode()
        found = [one async for one in duplex(iter([b"1", b"2"]), metadata=sidecar.hand_over(DUPLEX))]
        assert found == [ALICE.encode()] * 2
        executed = len(seen.calls)
        assert await refusal(output(b"y", metadata=sidecar.hand_over(OUTPUT, b"x"))) is Reason.PERMIT_MISMATCH
        for call in (output(b"x"), duplex(silent())):
            assert await refusal(call) is Reason.PERMIT_MISSING
        for path, kind in ((INPUT, "stream_unary"), (DUPLEX, "stream_stream")):
            for message in (b"2", b"", None):
                opening = (address, kind, path, message, sidecar.hand_over(path, b"1"))
                assert await asyncio.to_thread(opened_with, *opening) is Reason.PERMIT_MISMATCH
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await collect(silent())
        assert error_from_rpc(error.value).reason is Reason.PERMIT_MISSING
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        sidecar.file.unlink()
        metadata = sidecar.hand_over(UNARY)
        assert await sidecars.unary(address, UNARY, metadata=metadata) is Reason.PERMIT_UNVERIFIABLE
        health = await sidecars.unary(address, "/grpc.health.v1.Health/Check")
        assert health is Reason.SOURCE_UNAVAILABLE  # unknown there (UNIMPLEMENTED), not refused
        assert len(seen.calls) == executed


@pytest.mark.parametrize("style", ["sync", "aio", "mixed"])
async def test_a_stream_is_executed_with_the_opening_message_that_was_handed_over_and_no_other(
    tmp_path: Path, style: str
) -> None:
    """The handler gets that message as if nobody had looked; or none, where none was handed over."""
    sidecar = Sidecar(tmp_path)
    async with (
        guarded(style, sidecar.file, ECHO) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        await accepting(sidecar, address)
        collect: Any = channel.stream_unary(INPUT, None, None)
        duplex: Any = channel.stream_stream(DUPLEX, None, None)
        metadata = sidecar.hand_over(INPUT, b"1")
        assert await collect(iter([b"1", b"2", b"3"]), metadata=metadata) == f"1,2,3,{ALICE}".encode()
        metadata = sidecar.hand_over(DUPLEX, b"")
        assert [one async for one in duplex(iter([b"", b"2"]), metadata=metadata)] == [ALICE.encode()] * 2
        metadata = sidecar.hand_over(INPUT, digest=NO_MESSAGE)
        assert await collect(iter([]), metadata=metadata) == ALICE.encode()
        if style == "aio":  # only there a handler can read by itself
            reading: Any = channel.stream_stream(READING, None, None)
            metadata = sidecar.hand_over(READING, b"1")
            assert [one async for one in reading(iter([b"1", b"2"]), metadata=metadata)] == [b"1", b"2"]


def opened_with(address: str, kind: str, path: str, message: bytes | None, metadata: Any) -> Reason | None:
    """Return why a stream that begins with `message` is refused, by grpc's blocking client: it does not mind when."""
    requests = iter(() if message is None else (message,))
    with grpc.insecure_channel(address) as plain:
        try:
            answer = getattr(plain, kind)(path, None, None)(requests, metadata=metadata, timeout=10)
            for _ in answer if kind == "stream_stream" else ():
                pass
        except grpc.RpcError as error:
            return error_from_rpc(error).reason
    return None


async def silent() -> AsyncIterator[bytes]:
    """Open a stream and say nothing: a message written into a refusal turns it into INTERNAL at grpc.aio's clients."""
    await asyncio.Event().wait()
    yield b""


async def refusal(call: Any) -> Reason:
    """Return why a streaming call ended."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in call:
            pass
    return error_from_rpc(error.value).reason
