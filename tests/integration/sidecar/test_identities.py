"""The other ways in: certificates from a Workload API, callers by JWT-SVID; and one trace through both sidecars."""

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from control_plane.edge.ca import CertificateAuthority
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN
from tests.support.eventually import eventually
from tests.support.identity import make_svid
from tests.support.interop_service import UNARY, ask
from tests.support.sidecar_mesh import Mesh, policy
from tests.support.workload_api import workload_api
from trust.errors import Reason
from trust.spiffe import SpiffeId


def member(kind: str, name: str) -> SpiffeId:
    """Return a SPIFFE ID of the mesh."""
    return SpiffeId.of(TRUST_DOMAIN, kind, name)


async def test_workload_api_identity_and_callers_by_jwt_svid(mesh: Mesh) -> None:
    """No join token, no loopback trust: the token says who calls, and it is not forwarded."""
    await mesh.publish(policy())
    ca = CertificateAuthority.open(mesh.domain.directory / "ca")
    socket = mesh.home / "agent.sock"
    async with sidecars.running(mesh.callee()) as b, workload_api(socket) as api:
        ids = [member("node", "a"), member("workload", "alice")]
        await api.set_x509([make_svid(ca, one) for one in ids], ca.anchors_pem())
        await api.rotate_jwt(TRUST_DOMAIN, "k1")
        config = mesh.caller(
            b.inbound["echo"],
            identity={"source": "workload-api", "workload_api": f"unix://{socket}"},
            jwt={"audience": "mesh"},
        )
        config["outbound"][0]["identify"] = "jwt-svid"
        async with sidecars.running(config) as a:
            await a.enforces(1)
            await b.enforces(1)

            async def call(token: str | None) -> bytes | Reason:
                metadata = () if token is None else (("authorization", f"Bearer {token}"),)
                return await sidecars.unary(a.outbound, UNARY, ask(size=1), metadata=metadata)

            assert await call(api.sign(str(ids[1]), ["mesh"])) == b"\0"
            assert not [key for key, _ in mesh.echo.metadata[-1] if key == "authorization"]
            assert await call(None) is Reason.CALLER_UNIDENTIFIED
            assert await call(api.sign(str(ids[1]), ["other"])) is Reason.CALLER_TOKEN_INVALID
            # Bob's own, valid token at Alice's listener: it would be decided as Bob and dialled as Alice.
            stolen = api.sign(str(member("workload", "bob")), ["mesh"])
            assert await call(stolen) is Reason.CALLER_TOKEN_INVALID


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        """Keep every span."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the standard variables point to."""
    made = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield made
    server.stop(0)


async def test_one_trace_from_the_caller_through_both_sidecars_to_the_service(
    mesh: Mesh, collector: Collector
) -> None:
    """Real OTLP over a real socket; the service sees the inbound sidecar as its parent."""
    await mesh.publish(policy())
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with (
        sidecars.running(mesh.callee()) as b,
        sidecars.running(mesh.caller(b.inbound["echo"])) as a,
    ):
        await a.enforces(1)
        await b.enforces(1)
        sent = (("traceparent", f"00-{trace}-{parent}-01"),)
        assert await sidecars.unary(a.outbound, UNARY, ask(size=1), metadata=sent) == b"\0"
        await eventually(lambda: len(collector.spans) == 2, "both spans exported")
    spans = {
        next(x.value.string_value for x in span.attributes if x.key == "egm.direction"): span
        for span in collector.spans
    }
    assert {span.trace_id.hex() for span in spans.values()} == {trace}
    assert spans["outbound"].parent_span_id.hex() == parent
    assert spans["inbound"].parent_span_id == spans["outbound"].span_id
    arrived = dict(mesh.echo.metadata[-1])["traceparent"]
    assert arrived == f"00-{trace}-{spans['inbound'].span_id.hex()}-01"


async def test_sidecar_that_starts_before_its_control_plane_waits(mesh: Mesh) -> None:
    """Order of start must not matter; it says why it waits, is not ready, and still ends in order."""
    config = mesh.callee()
    config["control_plane"] = {"addresses": ["127.0.0.1:1"], "join_addresses": ["127.0.0.1:1"]}
    sidecar, task = sidecars.start(config)
    await eventually(sidecar.view.alarms.texts, "the alarm")
    assert "SOURCE_UNAVAILABLE" in sidecar.view.alarms.texts()[0]
    assert sidecar.view.readiness().not_ready
    assert not sidecar.view.readiness().serving
    sidecar.stop.set()
    await task
