"""`@rate` and `@budget` over real sockets: what a caller sees, what is given back, what survives, what is on record."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from egm.v1 import node_pb2
from sidecar.edge.admin import check
from sidecar.edge.meter_file import FILE
from sidecar.edge.provenance import LEDGER_DIRECTORY
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.interop_service import EMPTY, SERVICE, UNARY, ask
from tests.support.sidecar_mesh import Mesh
from tests.support.sidecars import LOOPBACK, RunningSidecar
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.ledger import Reader
from trust.errors import Reason
from trust.policy.source import build
from trust.record import Intent, parse_record
from trust.spiffe import SpiffeId

NOBODY_LISTENS = "127.0.0.1:1"
BUDGET = "10 per day of amount"


def described() -> descriptor_pb2.FileDescriptorSet:
    """Say that EmptyCall takes an amount; the service does not look at what it is sent."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="grpc.testing", syntax="proto3")
    message = file.message_type.add(name="Asked")
    message.field.add(
        name="amount",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_SINT64,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    service = file.service.add(name="TestService")
    for name in ("EmptyCall", "UnaryCall"):
        service.method.add(name=name, input_type=".grpc.testing.Asked", output_type=".grpc.testing.Asked")
    return descriptor_pb2.FileDescriptorSet(file=[file])


def amount(number: int) -> bytes:
    """Return a request for so much."""
    pool = DescriptorPool()
    pool.Add(described().file[0])
    asked: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("grpc.testing.Asked"))
    return bytes(asked(amount=number).SerializeToString())


def policy() -> bytes:
    """Return a bundle of level 4 in which alice is limited."""
    permits = (
        ("calls", '@rate("2/d")', "UnaryCall", "echo"),
        ("amounts", f'@budget("{BUDGET}")', "EmptyCall", "echo"),
        ("away", '@rate("1/d") @budget("1 per day")', "UnaryCall", "gone"),
    )
    return build(
        {
            "bundle.yaml": (
                f"name: test\ntrust_domain: {TRUST_DOMAIN}\nlevel: 4\nledger: durable\n"
                f"services: {{echo: {{grpc_services: [{SERVICE}]}}, gone: {{grpc_services: [{SERVICE}]}}}}\n"
            ).encode(),
            "policies/p.cedar": "".join(
                f'@id("{name}") {limit}\npermit(principal == Workload::"spiffe://{TRUST_DOMAIN}/workload/alice", '
                f'action == Action::"{SERVICE}/{method}", resource == Service::"{service}");\n'
                for name, limit, method, service in permits
            ).encode(),
            "tests/t.yaml": b"[]\n",
            "descriptors.binpb": described().SerializeToString(deterministic=True),
        }
    )


async def call(
    mesh: Mesh, b: RunningSidecar, path: str, request: bytes, service: str = "echo"
) -> grpc.aio.AioRpcError | None:
    """Call the callee's sidecar with alice's certificate; return how it ended when it did not end well."""
    shown = mesh.domain.credentials("workload", "alice")
    dns = SpiffeId.of(TRUST_DOMAIN, "workload", service).dns_name
    async with shown.channel(b.inbound[service], dns) as channel:
        try:
            await channel.unary_unary(path, None, None)(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error
    return None


async def reason(mesh: Mesh, b: RunningSidecar, path: str, request: bytes, service: str = "echo") -> str:
    """Return the reason of a refusal; "OK" without one."""
    error = await call(mesh, b, path, request, service)
    return "OK" if error is None else error_from_rpc(error).reason


def node(mesh: Mesh, address: str) -> dict[str, Any]:
    """Return the configuration of the callee's node, with one service that is not there."""
    config = mesh.callee()
    config["inbound"].append({"service": "gone", "listen": LOOPBACK, "upstream": {"address": address}})
    config["identity"]["workloads"] = ["echo", "gone"]
    return config


async def test_limits_over_a_real_connection_across_a_crash(mesh: Mesh, tmp_path: Path) -> None:
    """One node: used up, told when to come again, given back when not forwarded, remembered, recorded."""
    await sidecars.token(mesh.cp, tmp_path / "b", "b", "echo", "gone")
    await mesh.publish(policy())
    budgets = tmp_path / "b" / "data" / FILE
    async with sidecars.running(node(mesh, NOBODY_LISTENS)) as b:
        await b.enforces(1)

        assert [await reason(mesh, b, UNARY, ask(size=1)) for _ in range(2)] == ["OK", "OK"]
        error = await call(mesh, b, UNARY, ask(size=1))
        assert error is not None and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_from_rpc(error).reason is Reason.RATE_EXCEEDED
        assert f'policy calls allows spiffe://{TRUST_DOMAIN}/workload/alice @rate("2/d")' in str(
            error.details()
        )
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it is one, which the stubs do not say
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert status.details[1].Unpack(retry)
        assert 0 < retry.retry_delay.seconds <= 12 * 3600

        assert await reason(mesh, b, EMPTY, amount(7)) == "OK"
        kept = budgets.read_bytes()  # what a crash right after the answer would leave
        assert await reason(mesh, b, EMPTY, amount(4)) == Reason.BUDGET_EXCEEDED
        assert await reason(mesh, b, EMPTY, amount(-4)) == Reason.OBLIGATION_UNMET
        assert await reason(mesh, b, EMPTY, b"\xff") == Reason.REQUEST_UNREPRESENTABLE

        for _ in range(3):  # each is given back, so none is refused
            assert await reason(mesh, b, UNARY, ask(size=1), "gone") == Reason.UPSTREAM_UNAVAILABLE

        asked = node_pb2.CheckRequest(
            caller="alice", service="echo", method=f"{SERVICE}/EmptyCall", request_json='{"amount": "2"}'
        )
        answer = check(b.sidecar.view, TRUST_DOMAIN, asked)
        assert answer.allowed
        assert [(one.name, one.value, one.policy, one.left) for one in answer.limits] == [
            ("budget", BUDGET, "amounts", "3")
        ]
        asked.request_json = '{"amount": "4"}'
        assert check(b.sidecar.view, TRUST_DOMAIN, asked).reason == Reason.BUDGET_EXCEEDED

    budgets.write_bytes(kept)
    async with sidecars.running(node(mesh, NOBODY_LISTENS)) as b:
        await b.enforces(1)
        assert await reason(mesh, b, EMPTY, amount(4)) == Reason.BUDGET_EXCEEDED
        assert await reason(mesh, b, EMPTY, amount(3)) == "OK"

    frames = Reader(tmp_path / "b" / "data" / LEDGER_DIRECTORY).scan()
    intents = [record for frame in frames if isinstance(record := parse_record(frame.record), Intent)]
    done = [(one.reason, one.obligations) for one in intents if one.method.endswith("EmptyCall")]
    assert done.count(("ALLOWED", (("budget", f"{BUDGET}=taken"),))) == 2
    assert done.count(("BUDGET_EXCEEDED", ())) == 2
