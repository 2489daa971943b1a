"""Small bundles with a service for every kind of field, and engines built of them."""

import functools
import importlib.resources
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc_tools  # type: ignore[import-untyped]
from grpc_tools import protoc

from trust.bundle import Bundle, Manifest
from trust.mesh import MeshSettings
from trust.policy.descriptors import MethodInfo, MethodTable
from trust.policy.engine import Engine
from trust.policy.schema import generate_schema
from trust.policy.types import Authn, Call

TD = "mesh.local"

RICH_PROTO = """
syntax = "proto3";
package shop;
import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/field_mask.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
enum Color { NONE = 0; RED = 1; GREEN = 2; }
message Leaf { string name = 1; int64 weight = 2; Leaf child = 3; }
message Order {
  bool express = 1; int32 i32 = 2; sint32 s32 = 3; sfixed32 sf32 = 4; uint32 u32 = 5; fixed32 f32 = 6;
  int64 amount = 7; sint64 s64 = 8; sfixed64 sf64 = 9; uint64 u64 = 10; fixed64 f64 = 11;
  float fl = 12; double price = 13; string currency = 14; bytes blob = 15; Color color = 16;
  optional string note = 17; optional int64 limit = 18; Leaf leaf = 19;
  oneof target { string account = 20; Leaf holder = 21; int64 number = 22; }
  repeated string tags = 23; repeated Leaf leaves = 24; map<string, int64> counts = 25; map<int32, Leaf> by_id = 26;
  google.protobuf.Timestamp at = 27; google.protobuf.Duration wait = 28; google.protobuf.Int64Value maybe = 29;
  google.protobuf.UInt64Value umaybe = 30; google.protobuf.DoubleValue dmaybe = 31;
  google.protobuf.BytesValue bmaybe = 32; google.protobuf.Empty nothing = 33; google.protobuf.Struct free = 34;
  google.protobuf.Value any_value = 35; google.protobuf.Any any = 36; google.protobuf.FieldMask mask = 37;
  repeated google.protobuf.Struct frees = 38; repeated Color colors = 39; repeated double prices = 40;
  string if = 41; Leaf __entity = 42; string Clear = 43; map<string, google.protobuf.Struct> bags = 44;
}
message Reply { bool ok = 1; }
service Orders {
  rpc Place (Order) returns (Reply);
  rpc Watch (Order) returns (stream Reply);
  rpc Upload (stream Order) returns (Reply);
  rpc Chat (stream Order) returns (stream Reply);
}
service Stock { rpc Count (google.protobuf.Empty) returns (Reply); rpc Take (Leaf) returns (Reply); }
"""


@functools.cache
def descriptors(proto: str = RICH_PROTO) -> bytes:
    """Return the serialised FileDescriptorSet of one proto file, with its imports."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shop.proto").write_text(proto)
        out = Path(folder) / "out.binpb"
        include = str(importlib.resources.files(grpc_tools) / "_proto")
        arguments = ["protoc", f"-I{folder}", f"-I{include}", "--include_imports", f"-o{out}", "shop.proto"]
        assert protoc.main(arguments) == 0
        return out.read_bytes()


@functools.cache
def table() -> MethodTable:
    """Return the methods of RICH_PROTO."""
    return MethodTable.parse(descriptors())


def order_info() -> MethodInfo:
    """Return the method whose request is a shop.Order."""
    info = table().get("shop.Orders/Place")
    assert info is not None
    return info


def order(**fields: Any) -> bytes:
    """Return the bytes of a shop.Order."""
    return order_info().input_class(**fields).SerializeToString()


def workload(name: str) -> str:
    """Return the SPIFFE ID of a workload."""
    return f"spiffe://{TD}/workload/{name}"


def entity(
    kind: str, name: str, parents: Iterable[tuple[str, str]] = (), **attributes: Any
) -> dict[str, Any]:
    """Return one entity of an entities document."""
    return {
        "uid": {"type": kind, "id": name},
        "attrs": attributes,
        "parents": [{"type": k, "id": n} for k, n in parents],
    }


DEFAULT_ENTITIES = (
    entity("Role", "staff"),
    entity("Role", "buyers", [("Role", "staff")]),
    entity("Workload", workload("alice"), [("Role", "buyers")]),
    entity("Workload", workload("bob"), [("Role", "staff")]),
    entity("ServiceGroup", "money"),
    entity("Service", "payments", [("ServiceGroup", "money")]),
)
DEFAULT_GROUPS: Mapping[str, tuple[str, ...]] = {"risky": ("shop.Orders/Place", "shop.Stock/Take")}


@functools.cache
def default_schema(grpc_services: tuple[str, ...] = ("bare.Service",)) -> str:
    """Return the generated schema of RICH_PROTO and one service without a descriptor."""
    return generate_schema(
        descriptors(),
        grpc_services=grpc_services,
        action_groups=DEFAULT_GROUPS,
        metadata_keys=("tenant", "x-env"),
    )


def bundle(
    policies: str | Mapping[str, str],
    *,
    namespace: str | None = None,
    entities: Iterable[Mapping[str, Any]] | str = DEFAULT_ENTITIES,
    schema: str | None = None,
    services: Mapping[str, Mapping[str, Any]] | None = None,
    files: bytes | None = b"",
    mesh: bool | None = None,
) -> Bundle:
    """Return a bundle; `files` b"" means the descriptors of RICH_PROTO."""
    settings = MeshSettings.model_validate(
        {
            "trust_domain": TD,
            "services": services
            if services is not None
            else {"payments": {}, "stock": {"namespace": "store"}},
            "metadata_keys": ["tenant", "x-env"],
        }
    )
    return Bundle(
        manifest=Manifest(1, "test", namespace, "", {}),
        policies={"policies/main.cedar": policies} if isinstance(policies, str) else policies,
        schema=default_schema() if schema is None else schema,
        entities=entities if isinstance(entities, str) else json.dumps(list(entities)),
        descriptors=descriptors() if files == b"" else files,
        mesh=settings if (namespace is None if mesh is None else mesh) else None,
        tests={},
        digest="0" * 64,
    )


def engine(policies: str, **more: Any) -> Engine:
    """Return an engine of one base bundle."""
    return Engine.build(bundle(policies, **more), {})


def call(
    caller: str = "alice",
    method: str = "shop.Orders/Place",
    service: str = "payments",
    *,
    request: bytes | None = None,
    authn: Authn = Authn.MTLS,
    level: int = 4,
    metadata: Mapping[str, str] | None = None,
) -> Call:
    """Return a call of a workload, by name."""
    return Call(workload(caller), method, service, authn, "node-a", level, request, metadata or {})
