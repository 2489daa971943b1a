"""The one table from reasons to gRPC statuses."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from trust.edge.grpc_errors import (
    INTERNAL_TEXT,
    MAX_DETAIL_CHARS,
    STATUS_DETAILS_KEY,
    STATUS_OF,
    error_from_rpc,
    status_of,
)
from trust.errors import Reason, StateError


class FailedCall(grpc.RpcError):
    """What a client holds after a failed call."""

    def __init__(self, code: grpc.StatusCode, details: str | None, trailing: Any) -> None:
        super().__init__()
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


def test_the_table_is_total_and_no_reason_is_ok() -> None:
    """A reason without a status, or with OK, would let a refusal look like success."""
    assert set(STATUS_OF) == set(Reason)
    assert grpc.StatusCode.OK not in STATUS_OF.values()


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_the_way_to_a_peer(reason: Reason) -> None:
    """Encoded by a server, decoded by a client."""
    code, text, trailing = status_of(reason, "why: é", {"kind": "evidence"})
    assert isinstance(trailing, tuple)
    assert isinstance(trailing[0], tuple)
    error = error_from_rpc(FailedCall(code, text, trailing))
    assert (error.reason, error.detail, type(error).__name__) == (reason, "why: é", "EvidenceError")


def test_a_status_without_our_details_is_an_unavailable_source() -> None:
    """Whatever a foreign server or a broken connection says never becomes one of our refusals."""
    other = error_details_pb2.ErrorInfo(reason="POLICY_DENIED", domain="example.org")
    status = status_pb2.Status(code=7, message="no")
    status.details.add().Pack(other)
    unknown = status_pb2.Status(code=7, message="no")
    unknown.details.add().Pack(error_details_pb2.ErrorInfo(reason="NEW_REASON", domain="egm"))
    for trailing in (
        None,
        (),
        ((STATUS_DETAILS_KEY, b"\xff\xff"),),
        ((STATUS_DETAILS_KEY, status.SerializeToString()),),
        ((STATUS_DETAILS_KEY, unknown.SerializeToString()),),
    ):
        error = error_from_rpc(FailedCall(grpc.StatusCode.PERMISSION_DENIED, "no", trailing))
        assert isinstance(error, StateError)
        assert error.reason is Reason.SOURCE_UNAVAILABLE
        assert error.detail == "PERMISSION_DENIED: no"


def test_details_that_contradict_the_status_are_not_believed() -> None:
    """A proxy that changes the code must not leave our reason attached to it."""
    _, text, trailing = status_of(Reason.POLICY_DENIED, "no")
    error = error_from_rpc(FailedCall(grpc.StatusCode.UNAVAILABLE, text, trailing))
    assert error.reason is Reason.SOURCE_UNAVAILABLE


def test_a_long_detail_is_cut_so_that_trailers_stay_small() -> None:
    """Peers refuse trailers over 8 KiB; a refusal must arrive."""
    _, text, trailing = status_of(Reason.INPUT_INVALID, "x" * 100_000)
    assert len(text) == MAX_DETAIL_CHARS
    assert len(text) + len(trailing[0][1]) < 8192
    assert "log" in INTERNAL_TEXT
