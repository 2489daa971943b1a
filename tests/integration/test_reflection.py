"""Descriptors fetched from real gRPC servers by reflection."""

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb
from typer.testing import CliRunner

from control_plane.cli.policy_source import register
from control_plane.edge.reflection import fetch_descriptors
from tests.support.engines import descriptors, table
from trust import limits
from trust.errors import CapacityError, InputError, MeshError, Reason
from trust.policy.descriptors import MethodTable

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"


def shop_pool() -> DescriptorPool:
    """The files of the example service, in a pool of their own."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(descriptors()).file:
        pool.Add(file)  # type: ignore[no-untyped-call,unused-ignore]
    return pool


@contextmanager
def server(
    *handlers: "grpc.GenericRpcHandler[Any, Any]",
    names: tuple[str, ...] = (),
    pool: DescriptorPool | None = None,
) -> Iterator[str]:
    """A plaintext server on a free port; with `names`, it offers v1alpha reflection."""
    running = grpc.server(futures.ThreadPoolExecutor(4), handlers=list(handlers))
    if names:
        reflection.enable_server_reflection(names, running, pool=pool)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        running.stop(None).wait()


def answering(answer: object, service: str = V1) -> "grpc.GenericRpcHandler[Any, Any]":
    """A reflection service that says what a test wants."""
    assert callable(answer)

    def info(
        requests: Iterator[pb.ServerReflectionRequest], _: object
    ) -> Iterator[pb.ServerReflectionResponse]:
        for request in requests:
            yield answer(request)

    handler = grpc.stream_stream_rpc_method_handler(
        info, pb.ServerReflectionRequest.FromString, pb.ServerReflectionResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})


def honest(request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
    """Answer one file at a time, as servers in other languages do: imports must be asked for."""
    pool, answer = shop_pool(), pb.ServerReflectionResponse()
    if request.HasField("list_services"):
        answer.list_services_response.service.add(name="shop.Orders")
        answer.list_services_response.service.add(name=V1)
        return answer
    if request.file_containing_symbol:
        file = pool.FindFileContainingSymbol(request.file_containing_symbol)
    else:
        file = pool.FindFileByName(request.file_by_filename)
    answer.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
    return answer


def listing(request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
    answer = pb.ServerReflectionResponse()
    if request.HasField("list_services"):
        answer.list_services_response.service.add(name="shop.Orders")
    return answer


def test_v1alpha_server_gives_every_service_with_its_imports() -> None:
    """What grpcio's own reflection offers today."""
    with server(names=("shop.Orders", "shop.Stock", reflection.SERVICE_NAME), pool=shop_pool()) as target:
        data = fetch_descriptors(target)
        assert data == fetch_descriptors(target)
    assert list(MethodTable.parse(data).methods()) == list(table().methods())


def test_v1_server_that_sends_one_file_at_a_time_gives_the_imports_too() -> None:
    """Imports are fetched by name until none is missing."""
    with server(answering(honest)) as target:
        data = fetch_descriptors(target)
    assert list(MethodTable.parse(data).methods()) == list(table().methods())
    assert "google/protobuf/timestamp.proto" in {f.name for f in FileDescriptorSet.FromString(data).file}


def test_health_service_is_described_like_any_other() -> None:
    """Only the reflection service itself is left out."""
    name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    with server(names=(name, reflection.SERVICE_NAME)) as target:
        methods = list(MethodTable.parse(fetch_descriptors(target)).methods())
    assert "grpc.health.v1.Health/Check" in methods
    assert not any(method.startswith("grpc.reflection.") for method in methods)


def test_server_without_reflection_is_reported_as_unavailable() -> None:
    """The message says what to do."""
    with server() as target, pytest.raises(MeshError) as caught:
        fetch_descriptors(target)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert "protoc" in caught.value.detail


def test_nobody_listening_is_reported_as_unavailable() -> None:
    """Exit code 3: it could not be told."""
    with server() as target:
        pass
    with pytest.raises(MeshError) as caught:
        fetch_descriptors(target)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


def test_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers must not hang the terminal."""
    monkeypatch.setattr(limits, "REFLECTION_TIMEOUT_S", 0.3)

    def silent(
        requests: Iterator[pb.ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ServerReflectionResponse]:
        for _ in requests:
            while context.is_active():
                context.set_code(grpc.StatusCode.OK)
        yield from ()

    handler = grpc.stream_stream_rpc_method_handler(
        silent, pb.ServerReflectionRequest.FromString, pb.ServerReflectionResponse.SerializeToString
    )
    generic = grpc.method_handlers_generic_handler(V1, {"ServerReflectionInfo": handler})
    with server(generic) as target, pytest.raises(MeshError) as caught:
        fetch_descriptors(target)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE


def test_server_that_describes_garbage_or_nothing_is_refused() -> None:
    """What is written to a policy folder must be descriptors."""

    def garbage(request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        answer = listing(request)
        if not request.HasField("list_services"):
            answer.file_descriptor_response.file_descriptor_proto.append(b"\xff\xff")
        return answer

    def refusing(request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        answer = listing(request)
        if not request.HasField("list_services"):
            answer.error_response.error_message = "not for you"
        return answer

    for answer, words in [(garbage, "no descriptor"), (refusing, "not for you"), (listing, "it gave none")]:
        with server(answering(answer)) as target, pytest.raises(InputError) as caught:
            fetch_descriptors(target)
        assert words in caught.value.detail


def test_server_that_describes_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file imports another that nobody asked for yet."""
    monkeypatch.setattr(limits, "MAX_REFLECTION_FILES", 20)

    def endless(request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        answer = listing(request)
        if not request.HasField("list_services"):
            from google.protobuf.descriptor_pb2 import FileDescriptorProto

            name = request.file_by_filename or "0"
            file = FileDescriptorProto(name=name, dependency=[str(int(name) + 1)])
            answer.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
        return answer

    with server(answering(endless)) as target, pytest.raises(CapacityError):
        fetch_descriptors(target)


def test_command_writes_descriptors_that_a_policy_folder_can_use(tmp_path: Path) -> None:
    """From a running server to a folder that passes, in two commands."""
    app = typer.Typer()
    register(app)
    out = tmp_path / "descriptors.binpb"
    with server(answering(honest)) as target:
        result = CliRunner().invoke(
            app, ["schema", "--reflect", target, "-o", str(out)], catch_exceptions=False
        )
    assert result.exit_code == 0
    folder = str(tmp_path / "policy")
    result = CliRunner().invoke(app, ["new", folder, "--descriptors", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert CliRunner().invoke(app, ["test", folder], catch_exceptions=False).exit_code == 0
