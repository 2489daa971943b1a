"""Level 5 over real sockets: a permit for every call, an intent before it is forwarded, and nothing without."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sidecar.edge.provenance import LEDGER_DIRECTORY
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.eventually import eventually
from tests.support.interop_service import DUPLEX, UNARY, ask
from tests.support.sidecar_mesh import Mesh, policy
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.ledger import Reader, verify
from trust.errors import Reason
from trust.permit import PERMIT_KEY, permit_sha256, read_claims
from trust.record import Ending, Intent, Link, Outcome, Record, Side, parse_record
from trust.spiffe import SpiffeId

ALICE = str(SpiffeId.of(TRUST_DOMAIN, "workload", "alice"))
ECHO = SpiffeId.of(TRUST_DOMAIN, "workload", "echo")


def records(home: Path, node: str) -> list[Record]:
    """Read the ledger of a node that has stopped."""
    reader = Reader(home / node / "data" / LEDGER_DIRECTORY)
    return [parse_record(frame.record) for frame in reader.scan()]


def permit_seen(mesh: Mesh) -> str:
    """Return the permit that the service was handed with its last call."""
    return str(dict(mesh.echo.metadata[-1])[PERMIT_KEY])


async def settled(address: str) -> bytes | Reason:
    """Call as alice. In the first second of a callee its permits cannot be told from those of an earlier run."""
    for _ in range(30):
        answer = await sidecars.unary(address, UNARY, ask(size=1))
        if answer not in {Reason.PERMIT_UNVERIFIABLE, Reason.UPSTREAM_UNAVAILABLE}:  # not connected yet
            break
        await asyncio.sleep(0.1)
    return answer


async def directly(mesh: Mesh, address: str, metadata: Any) -> Reason:
    """Call the callee's sidecar past the caller's, with a stolen but valid certificate of the caller."""
    async with mesh.domain.credentials("workload", "alice").channel(address, ECHO.dns_name) as channel:
        try:
            await channel.unary_unary(UNARY, None, None)(ask(size=1), metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error).reason
    return Reason.ALLOWED


async def test_a_call_carries_a_permit_and_leaves_intent_and_outcome_on_both_nodes(mesh: Mesh) -> None:
    """Both ledgers tell of the same execution, under the same permit, and verify as a whole."""
    await mesh.publish(policy(level=5))
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert await settled(a.outbound) == b"\0"
        token = permit_seen(mesh)
    claims = read_claims(token)
    assert (claims.issuer, claims.subject) == (str(SpiffeId.of(TRUST_DOMAIN, "node", "a")), ALICE)
    assert (claims.audience, claims.method) == (str(ECHO), UNARY.lstrip("/"))
    for node, side in (("a", Side.OUTBOUND), ("b", Side.INBOUND)):
        intent, outcome = records(mesh.home, node)[-2:]
        assert isinstance(intent, Intent) and isinstance(outcome, Outcome)
        assert (intent.side, intent.allowed, intent.level, intent.caller) == (side, True, 5, ALICE)
        assert intent.execution_id == outcome.execution_id == claims.execution_id
        assert intent.permit_sha256 == permit_sha256(token)
        assert (outcome.ending, outcome.status, outcome.response_bytes) == (Ending.COMPLETED, "OK", 1)
        assert verify(mesh.home / node / "data" / LEDGER_DIRECTORY).ok


async def test_a_valid_certificate_without_a_permit_or_with_a_used_one_gets_nothing(mesh: Mesh) -> None:
    """Whoever steals a workload's certificate must also own its node's key; a permit works once."""
    await mesh.publish(policy(level=5))
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert await settled(a.outbound) == b"\0"
        used = permit_seen(mesh)
        address = b.inbound["echo"]
        assert await directly(mesh, address, ()) is Reason.PERMIT_MISSING
        assert await directly(mesh, address, ((PERMIT_KEY, used),)) is Reason.PERMIT_REPLAYED
        assert await directly(mesh, address, ((PERMIT_KEY, f"{used[:-4]}AAAA"),)) is Reason.PERMIT_INVALID
        assert len(mesh.echo.metadata) == 1
    refused = {r.reason for r in records(mesh.home, "b") if isinstance(r, Intent) and not r.allowed}
    assert refused - {"PERMIT_UNVERIFIABLE"} == {"PERMIT_MISSING", "PERMIT_REPLAYED", "PERMIT_INVALID"}


async def test_streams_carry_permits_too(mesh: Mesh) -> None:
    """A stream's permit binds its opening message; messages flow both ways and are counted."""
    await mesh.publish(policy(level=5))
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
        grpc.aio.insecure_channel(a.outbound) as channel,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert await settled(a.outbound) == b"\0"
        stream: Any = channel.stream_stream(DUPLEX, None, None)(timeout=30)  # type: ignore[call-arg]
        opening = ask(sizes=[1])
        for _ in range(3):
            await stream.write(opening)
            assert await stream.read() == b"\0"
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
        assert read_claims(permit_seen(mesh)).request_sha256 == hashlib.sha256(opening).digest()
    outcome = records(mesh.home, "b")[-1]
    assert isinstance(outcome, Outcome)
    assert (outcome.request_messages, outcome.response_messages) == (3, 3)


async def test_without_a_ledger_level_five_refuses_and_level_four_goes_on_with_an_alarm(mesh: Mesh) -> None:
    """A disk that cannot keep a record must not execute a call that needs one."""
    blocked = mesh.home / "b" / "data" / LEDGER_DIRECTORY
    blocked.parent.mkdir(parents=True)
    blocked.write_text("not a directory")
    await mesh.publish(policy(level=5))
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        assert await settled(a.outbound) is Reason.LEDGER_UNAVAILABLE
        assert mesh.echo.metadata == []
        await mesh.publish(policy(level=4))
        await a.enforces(2)
        await b.enforces(2)
        assert await settled(a.outbound) == b"\0"
        assert any("ledger" in text for text in b.sidecar.view.status().alarms)


async def test_records_reach_the_index_and_a_chain_is_linked_by_verified_permits(mesh: Mesh) -> None:
    """The service copies one metadata key to the call it makes, and the chain is proved, not claimed."""
    await mesh.publish(policy(level=5, allow=("alice", "echo")))
    loop = {"workload": "echo", "service": "echo", "listen": sidecars.LOOPBACK, "identify": "loopback"}
    callee = mesh.callee(outbound=[loop], services={"echo": {"addresses": ["127.0.0.1:1"]}})
    async with sidecars.running(callee) as b, sidecars.running(mesh.caller(b.inbound["echo"])) as a:
        await a.enforces(1)
        await b.enforces(1)
        async with grpc.aio.insecure_channel(a.outbound) as channel:
            assert await settled(a.outbound) == b"\0"
            first: Any = channel.stream_stream(DUPLEX, None, None)(timeout=30)  # type: ignore[call-arg]
            await first.write(ask(sizes=[1]))
            assert await first.read() == b"\0"
            carried = permit_seen(mesh)  # while the first execution is open, its service calls on
            answer = await sidecars.unary(b.outbound, UNARY, ask(size=1), metadata=((PERMIT_KEY, carried),))
            assert answer is Reason.UPSTREAM_UNAVAILABLE
            first.cancel()

        def linked() -> bool:
            shipper = b.sidecar.provenance.shipper if b.sidecar.provenance is not None else None
            return shipper is not None and shipper.acknowledged >= 3

        await eventually(linked, "records at the control plane")
    root = read_claims(carried).execution_id
    child = next(r for r in records(mesh.home, "b") if isinstance(r, Intent) and r.side is Side.OUTBOUND)
    assert (child.link, child.root_id, child.parent_id) == (Link.VERIFIED, root, root)
    assert child.parent_permit_sha256 == permit_sha256(carried)
