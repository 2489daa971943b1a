"""Calls of lab workloads: what went in, what came out, as values that a test can look at."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from trust.edge.grpc_errors import error_from_rpc
from trust.errors import InputError, Reason

Payload = Mapping[str, Any] | bytes | Message
CALL_TIMEOUT_S: Final = 10.0
_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call ended. A refusal is an outcome, not an exception.

    Args:
        ok: the service executed it and answered.
        code: gRPC status, "OK" or "PERMISSION_DENIED", …
        reason: of the mesh (docs/reasons.md), when it says one: "POLICY_STALE", …; else "".
        detail: what the refusal says.
        reply: the answer as a mapping (protobuf JSON names), or bytes where no descriptor is known.
        seconds: how long it took.
    """

    ok: bool
    code: str
    reason: str = ""
    detail: str = ""
    reply: Any = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """One line for a person."""
        if self.ok:
            return f"OK {self.reply!r:.200}"
        return f"{self.code} {self.reason}: {self.detail}".replace(" :", ":")


class Messages:
    """The message types of the governed services, by method."""

    def __init__(self, descriptors: bytes | None) -> None:
        """Take a FileDescriptorSet; None: the types that this process has imported."""
        if descriptors is None:
            from egm.sample.v1 import shop_pb2  # noqa: F401 (registers the sample's types)

            self._pool = descriptor_pool.Default()
            return
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
            self._pool.Add(file)

    def encode(self, method: str, payload: Payload) -> bytes:
        """Return the request bytes.

        Raises:
            InputError: INPUT_INVALID, naming the method or field that is unknown.
        """
        if isinstance(payload, bytes):
            return payload
        if isinstance(payload, Message):
            return payload.SerializeToString(deterministic=True)
        found = self._types(method)
        if found is None:
            raise InputError(
                Reason.INPUT_INVALID,
                f"no descriptor of {method}: give `descriptors` in the plan, or the request as bytes",
            )
        try:
            return json_format.ParseDict(dict(payload), found[0]()).SerializeToString(deterministic=True)
        except json_format.ParseError as error:
            raise InputError(Reason.INPUT_INVALID, f"request of {method}: {error}") from None

    def decode(self, method: str, reply: bytes) -> Any:
        """Return the reply as a mapping with every field, or its bytes where no descriptor is known."""
        found = self._types(method)
        if found is None:
            return reply
        return json_format.MessageToDict(
            found[1].FromString(reply),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )

    def _types(self, method: str) -> tuple[type[Message], type[Message]] | None:
        try:
            found = self._pool.FindMethodByName(method.replace("/", "."))
        except KeyError:
            return None
        classes = (message_factory.GetMessageClass(kind) for kind in (found.input_type, found.output_type))
        request, reply = classes
        return request, reply


class Caller:
    """Calls through the listeners of sidecars, as an ordinary plaintext client; keeps its connections."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def call(
        self,
        address: str,
        method: str,
        payload: Payload,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        metadata: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Make one unary call to the outbound listener at `address`."""
        request = self._messages.encode(method, payload)
        channel = self._channels.get(address) or self._channels.setdefault(address, _channel(address))
        started = time.monotonic()
        try:
            # Not `wait_for_ready`: a sidecar that is not there is an answer, too.
            reply = await channel.unary_unary(f"/{method}", None, None)(
                request, timeout=timeout_s, metadata=tuple((metadata or {}).items())
            )
        except grpc.aio.AioRpcError as error:
            return _refused(error, time.monotonic() - started)
        return Outcome(
            True, "OK", reply=self._messages.decode(method, bytes(reply)), seconds=time.monotonic() - started
        )

    async def close(self) -> None:
        """Close every connection."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for channel in channels))


def _channel(address: str) -> grpc.aio.Channel:
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),
        # A restarted sidecar is found again at once, not after the library's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(address, options=options)


def _refused(error: grpc.aio.AioRpcError, seconds: float) -> Outcome:
    told = error_from_rpc(error)
    reason = "" if told.reason is Reason.SOURCE_UNAVAILABLE else told.reason.value  # "": the mesh says none
    return Outcome(False, error.code().name, reason, str(error.details() or ""), seconds=seconds)
