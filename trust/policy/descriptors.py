"""Decides which methods a bundle describes, and reads their messages."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from google.protobuf import (
    any_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from trust.errors import EvidenceError, Reason


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """One described method. `input_class` is the message class of its request."""

    name: str  # "package.Service/Method"
    client_streaming: bool
    server_streaming: bool
    input_class: type[Message]
    input_type: Descriptor

    @property
    def unary(self) -> bool:
        """One message each way."""
        return not self.client_streaming and not self.server_streaming

    @property
    def has_request(self) -> bool:
        """A single request message exists when the call opens, so policies may read it."""
        return not self.client_streaming

    def decode(self, data: bytes) -> Message:
        """Read request bytes.

        Raises:
            EvidenceError: REQUEST_UNREPRESENTABLE, when the bytes are not such a message.
        """
        try:
            return self.input_class.FromString(data)
        except DecodeError:
            detail = f"the request is not a {self.input_type.full_name}"
            raise EvidenceError(Reason.REQUEST_UNREPRESENTABLE, detail) from None


class MethodTable:
    """The methods of one FileDescriptorSet, in a descriptor pool of its own."""

    def __init__(self, methods: Mapping[str, MethodInfo], services: Iterable[str]) -> None:
        self._methods = dict(methods)
        self._services = frozenset(services)

    @classmethod
    def parse(cls, data: bytes | None) -> Self:
        """Read a serialised FileDescriptorSet; None gives an empty table.

        Files may come in any order; imports must be in the set.

        Raises:
            EvidenceError: BUNDLE_MALFORMED, naming what is wrong.
        """
        if data is None:
            return cls({}, ())
        try:
            files = FileDescriptorSet.FromString(data).file
        except DecodeError:
            raise _malformed("not a serialised FileDescriptorSet") from None
        for file in files:
            _check_messages(file.package, file.message_type)
        pool = _pool(files)
        methods: dict[str, MethodInfo] = {}
        services: list[str] = []
        for file in files:
            for service in pool.FindFileByName(file.name).services_by_name.values():
                services.append(service.full_name)
                methods.update((info.name, info) for info in map(_info, service.methods))
        return cls(methods, services)

    def with_fallback(self, other: "MethodTable") -> "MethodTable":
        """Return a table that knows the services of both; where both know a service, this one decides."""
        extra = {m: i for m, i in other._methods.items() if m.partition("/")[0] not in self._services}
        return MethodTable({**extra, **self._methods}, self._services | other._services)

    def get(self, method: str) -> MethodInfo | None:
        """Return what is known of "package.Service/Method"."""
        return self._methods.get(method)

    def methods(self) -> Iterable[str]:
        """Every described method, "package.Service/Method", sorted."""
        return sorted(self._methods)

    def services(self) -> Iterable[str]:
        """Every described gRPC service, "package.Service", sorted."""
        return sorted(self._services)

    def describes(self, service: str) -> bool:
        """Whether the gRPC service "package.Service" is described."""
        return service in self._services

    def decode(self, method: str, data: bytes) -> Message:
        """Read the request bytes of `method`.

        Raises:
            EvidenceError: REQUEST_UNREPRESENTABLE, when the method is unknown or the bytes are not its request.
        """
        info = self._methods.get(method)
        if info is None:
            raise EvidenceError(Reason.REQUEST_UNREPRESENTABLE, f"the bundle does not describe {method}")
        return info.decode(data)


def fields_on_the_wire(data: bytes | None) -> dict[str, str]:
    """Return how each message and method of a readable FileDescriptorSet is encoded, as text by name.

    By this a policy's `context.request.amount` is bound to bytes: with another field number it reads another value.
    """
    shown: dict[str, str] = {}
    for file in FileDescriptorSet.FromString(data or b"").file:
        scope = f"{file.package}." if file.package else ""
        shown |= _message_fields(scope, file.message_type)
        for service in file.service:
            for method in service.method:
                streams = ("stream " if method.client_streaming else "", method.input_type.lstrip("."))
                name = f"rpc {scope}{service.name}/{method.name}"
                shown[name] = "".join(streams) + (" returns a stream" if method.server_streaming else "")
    return shown


def _message_fields(scope: str, messages: Iterable[DescriptorProto]) -> dict[str, str]:
    shown: dict[str, str] = {}
    for message in messages:
        shown[f"message {scope}{message.name}"] = ", ".join(
            f"{f.name}={f.number}:{f.type_name.lstrip('.') or FieldDescriptorProto.Type.Name(f.type)[5:].lower()}"
            + ("[]" if f.label == FieldDescriptorProto.LABEL_REPEATED else "")
            for f in sorted(message.field, key=lambda f: f.number)
        )
        shown |= _message_fields(f"{scope}{message.name}.", message.nested_type)
    return shown


def _info(method: MethodDescriptor) -> MethodInfo:
    return MethodInfo(
        name=f"{method.containing_service.full_name}/{method.name}",
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        input_class=message_factory.GetMessageClass(method.input_type),
        input_type=method.input_type,
    )


def _pool(files: Iterable[FileDescriptorProto]) -> DescriptorPool:
    """Return a pool of `files`, added so that imports come first."""
    waiting: dict[str, FileDescriptorProto] = {}
    for file in files:
        if waiting.setdefault(file.name, file) != file:
            raise _malformed(f"two different files are called {file.name!r}")
    pool = DescriptorPool()
    while waiting:
        ready = [f for f in waiting.values() if not any(name in waiting for name in f.dependency)]
        if not ready:
            raise _malformed(f"files import each other in a circle: {', '.join(sorted(waiting))}")
        for file in ready:
            _add(pool, file)
            del waiting[file.name]
    return pool


def _add(pool: DescriptorPool, file: FileDescriptorProto) -> None:
    try:
        pool.AddSerializedFile(file.SerializeToString())
        pool.FindFileByName(file.name)
    except (TypeError, KeyError, ValueError) as error:
        lines = str(error).strip().splitlines() or ["refused by protobuf"]
        raise _malformed(f"{file.name}: {lines[0]}") from None


def _check_messages(scope: str, messages: Iterable[DescriptorProto]) -> None:
    """Refuse what protobuf itself accepts but nobody could read: odd map entries, false well-known types."""
    for message in messages:
        name = f"{scope}.{message.name}"
        shape = _shape(message)
        if message.options.map_entry and [field[:2] for field in shape] != [("key", 1), ("value", 2)]:
            raise _malformed(f"{name} is marked as a map entry but is none")
        if shape != _WELL_KNOWN.get(name, shape):
            raise _malformed(f"{name} is not the type that protobuf defines under this name")
        _check_messages(name, message.nested_type)


def _shape(message: DescriptorProto) -> list[tuple[str, int, int, int]]:
    return sorted(
        ((f.name, f.number, int(f.type), int(f.label)) for f in message.field), key=lambda field: field[1]
    )


def _well_known() -> dict[str, list[tuple[str, int, int, int]]]:
    """Return the shape of every type that policies see in a form of its own."""
    shapes: dict[str, list[tuple[str, int, int, int]]] = {}
    for module in (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        shapes.update((f"{file.package}.{message.name}", _shape(message)) for message in file.message_type)
    return shapes


_WELL_KNOWN: Final = _well_known()


def _malformed(what: str) -> EvidenceError:
    return EvidenceError(Reason.BUNDLE_MALFORMED, f"descriptors.binpb: {what}")
