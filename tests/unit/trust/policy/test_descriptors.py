"""Reading descriptors and requests."""

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from tests.support.engines import descriptors, order, table
from trust.errors import EvidenceError, Reason
from trust.policy.descriptors import MethodTable


def test_methods_and_kinds_are_found() -> None:
    """Each of the four kinds of method is told apart."""
    kinds = {name: info for name in table().methods() if (info := table().get(name)) is not None}
    assert [n for n in kinds if kinds[n].unary] == [
        "shop.Orders/Place",
        "shop.Stock/Count",
        "shop.Stock/Take",
    ]
    assert [n for n in kinds if not kinds[n].has_request] == ["shop.Orders/Chat", "shop.Orders/Upload"]
    assert list(table().services()) == ["shop.Orders", "shop.Stock"]
    assert table().get("shop.Orders/Nope") is None


def test_files_may_come_in_any_order() -> None:
    """A set written by another tool need not list imports first."""
    files = FileDescriptorSet.FromString(descriptors())
    turned = FileDescriptorSet(file=reversed(files.file))
    assert list(MethodTable.parse(turned.SerializeToString()).methods()) == list(table().methods())


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        FileDescriptorSet(file=[FileDescriptorProto(name="a", dependency=["missing"])]).SerializeToString(),
        FileDescriptorSet(
            file=[
                FileDescriptorProto(name="a", dependency=["b"]),
                FileDescriptorProto(name="b", dependency=["a"]),
            ]
        ).SerializeToString(),
        FileDescriptorSet(
            file=[FileDescriptorProto(name="a"), FileDescriptorProto(name="a", package="x")]
        ).SerializeToString(),
    ],
    ids=["garbage", "import missing", "circle", "two of a name"],
)
def test_descriptors_that_do_not_hold_together_are_refused(data: bytes) -> None:
    """A signed set that cannot be used must be refused at load, not at the first call."""
    with pytest.raises(EvidenceError) as caught:
        MethodTable.parse(data)
    assert caught.value.reason == Reason.BUNDLE_MALFORMED
    assert "descriptors.binpb" in caught.value.detail


def test_a_false_well_known_type_is_refused() -> None:
    """What is called Timestamp is shown to policies as a time, so it must be one."""
    files = FileDescriptorSet.FromString(descriptors())
    for file in files.file:
        if file.name == "google/protobuf/timestamp.proto":
            file.message_type[0].field[0].name = "minutes"
    with pytest.raises(EvidenceError) as caught:
        MethodTable.parse(files.SerializeToString())
    assert "google.protobuf.Timestamp" in caught.value.detail


def test_a_map_entry_without_key_and_value_is_refused() -> None:
    """Protobuf accepts the mark on any message; reading such a map would fail on the first call."""
    files = FileDescriptorSet.FromString(descriptors())
    for file in files.file:
        for message in file.message_type:
            for nested in message.nested_type:
                if nested.options.map_entry and message.name == "Order":
                    del nested.field[1]
    with pytest.raises(EvidenceError) as caught:
        MethodTable.parse(files.SerializeToString())
    assert "map entry" in caught.value.detail


def test_two_tables_may_differ_about_one_message() -> None:
    """Every bundle has a pool of its own: a new version of a message replaces nothing."""
    from tests.support import engines

    other = MethodTable.parse(
        engines.descriptors(engines.RICH_PROTO.replace("int64 amount = 7", "string amount = 7"))
    )
    message = other.decode("shop.Orders/Place", order(currency="EUR"))
    assert isinstance(message.amount, str)  # type: ignore[attr-defined]


def test_bytes_that_are_no_request_are_unrepresentable() -> None:
    """A caller chooses the bytes."""
    for method in ("shop.Orders/Place", "no.Such/Method"):
        with pytest.raises(EvidenceError) as caught:
            table().decode(method, b"\xff")
        assert caught.value.reason == Reason.REQUEST_UNREPRESENTABLE


def test_where_two_tables_know_a_service_the_first_decides() -> None:
    """A namespace cannot add methods to a service that the base describes."""
    proto = 'syntax = "proto3"; package shop; message M {} service Orders { rpc New (M) returns (M); } service Mine { rpc Do (M) returns (M); }'  # noqa: E501
    from tests.support.engines import descriptors as compiled

    merged = table().with_fallback(MethodTable.parse(compiled(proto)))
    assert merged.get("shop.Orders/New") is None
    assert merged.get("shop.Mine/Do") is not None
    assert merged.get("shop.Orders/Place") is table().get("shop.Orders/Place")
