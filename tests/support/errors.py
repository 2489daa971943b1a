"""What a caller reads out of a refusal."""

from collections.abc import Mapping
from typing import Any, cast

import grpc.aio
from google.rpc import error_details_pb2, status_pb2


async def outcome(awaitable: Any) -> tuple[str, str, Mapping[str, str]]:
    """Await a call that must fail; return its code name, its message, and the ErrorInfo as a mapping.

    The mapping has `reason`, `domain` and the ErrorInfo's metadata; it is empty when the status carries none.
    """
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        found: dict[str, str] = {}
        for key, value in cast("Any", error.trailing_metadata() or ()):
            if key == "grpc-status-details-bin":
                status = status_pb2.Status.FromString(value)
                info = error_details_pb2.ErrorInfo()
                assert status.details[0].Unpack(info)
                assert status.code == error.code().value[0]
                found = {"reason": info.reason, "domain": info.domain, **info.metadata}
        return error.code().name, error.details() or "", found
    raise AssertionError("the call succeeded")
