"""Descriptors from a running server: gRPC server reflection, v1 with v1alpha as fallback."""

from collections.abc import Callable, Iterable
from typing import Final

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2 as pb

from trust import limits
from trust.errors import CapacityError, InputError, Reason, StateError

# The messages of v1 and v1alpha are the same on the wire; only the service was renamed.
_METHODS: Final = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
_OWN_PREFIX: Final = "grpc.reflection."
_MAX_MESSAGE: Final = ("grpc.max_receive_message_length", limits.MAX_REFLECTION_BYTES)

_Ask = Callable[[pb.ServerReflectionRequest], pb.ServerReflectionResponse]


def fetch_descriptors(target: str, *, ca_pem: bytes | None = None) -> bytes:
    """Return the FileDescriptorSet of every service that the server at `target` offers, with all imports.

    The reflection service itself is left out. The same server gives the same bytes.

    Args:
        target: "host:port", or any gRPC target.
        ca_pem: CA certificates to verify the server with; None for plaintext.

    Raises:
        StateError: SOURCE_UNAVAILABLE, when the server cannot be reached or has no reflection.
        InputError: INPUT_INVALID, when what it answers is not a set of descriptors.
        CapacityError: LIMIT_EXCEEDED.
    """
    options = [_MAX_MESSAGE]
    channel = (
        grpc.insecure_channel(target, options)
        if ca_pem is None
        else grpc.secure_channel(target, grpc.ssl_channel_credentials(ca_pem), options)
    )
    with channel:
        ask, listed = _first_answer(channel, target)
        services = sorted(
            s.name for s in listed.list_services_response.service if not s.name.startswith(_OWN_PREFIX)
        )
        return _collect(ask, services, target)


def _first_answer(channel: grpc.Channel, target: str) -> tuple[_Ask, pb.ServerReflectionResponse]:
    """Return how to ask this server, and its list of services."""
    for method in _METHODS:
        ask = _asker(channel, method)
        try:
            return ask, ask(pb.ServerReflectionRequest(list_services=""))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise _unavailable(target, error) from None
    raise StateError(
        Reason.SOURCE_UNAVAILABLE,
        f"{target} has no server reflection; switch it on there, or give descriptors made by protoc",
    )


def _asker(channel: grpc.Channel, method: str) -> _Ask:
    call = channel.stream_stream(
        method,
        request_serializer=pb.ServerReflectionRequest.SerializeToString,
        response_deserializer=pb.ServerReflectionResponse.FromString,
    )

    def ask(request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        for response in call(iter([request]), timeout=limits.REFLECTION_TIMEOUT_S):
            answer: pb.ServerReflectionResponse = response
            return answer
        return pb.ServerReflectionResponse()

    return ask


def _collect(ask: _Ask, services: Iterable[str], target: str) -> bytes:
    """Fetch the file of every service, then every import that is still missing."""
    files: dict[str, FileDescriptorProto] = {}
    size = 0
    waiting = [pb.ServerReflectionRequest(file_containing_symbol=name) for name in services]
    asked: set[str] = set()
    while waiting:
        request = waiting.pop()
        try:
            answer = ask(request)
        except grpc.RpcError as error:
            raise _unavailable(target, error) from None
        if not answer.file_descriptor_response.file_descriptor_proto:
            what = request.file_containing_symbol or request.file_by_filename
            why = answer.error_response.error_message or "it gave none"
            raise InputError(Reason.INPUT_INVALID, f"{target} does not describe {what:.200}: {why:.200}")
        for data in answer.file_descriptor_response.file_descriptor_proto:
            size += len(data)
            file = _parse(data, target)
            files.setdefault(file.name, file)
            _check_bounds(len(files), size, target)
        missing = {name for f in files.values() for name in f.dependency} - files.keys() - asked
        asked |= missing
        waiting += [pb.ServerReflectionRequest(file_by_filename=name) for name in sorted(missing)]
    result = FileDescriptorSet(file=[files[name] for name in sorted(files)])
    return result.SerializeToString(deterministic=True)


def _parse(data: bytes, target: str) -> FileDescriptorProto:
    try:
        return FileDescriptorProto.FromString(data)
    except DecodeError:
        raise InputError(
            Reason.INPUT_INVALID, f"{target} answered with something that is no descriptor"
        ) from None


def _check_bounds(files: int, size: int, target: str) -> None:
    if files > limits.MAX_REFLECTION_FILES or size > limits.MAX_REFLECTION_BYTES:
        raise CapacityError(
            Reason.LIMIT_EXCEEDED,
            f"{target} describes more than {limits.MAX_REFLECTION_FILES} files or"
            f" {limits.MAX_REFLECTION_BYTES} bytes; use descriptors made by protoc",
        )


def _unavailable(target: str, error: grpc.RpcError) -> StateError:
    code, details = error.code(), error.details() or ""
    return StateError(
        Reason.SOURCE_UNAVAILABLE,
        f"{target} did not answer ({code.name}: {details:.200}); is it running there?",
    )
