"""Policy announcements from a control plane's Watch stream; unverified. Files: `trust.edge.file_source`."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio

from egm.v1 import distribution_pb2 as pb
from egm.v1 import distribution_pb2_grpc as rpc
from trust import limits
from trust.backoff import RECONNECT, Backoff
from trust.edge.file_source import Credentials, FetchLimits, GrpcFileSource, Options, bounded
from trust.errors import MeshError

__all__ = ["FetchLimits", "GrpcFileSource", "WatchListener", "watch"]

# Without an announcement for this long the stream is opened anew: the server then repeats the newest one, so
# this is also the probe that finds out about a half-open connection.
WATCH_SILENCE_S: Final = 300.0
WATCH_STABLE_S: Final = 10.0

_log = logging.getLogger(__name__)


async def watch(
    addresses: Sequence[str],
    credentials: Credentials,
    options: Options = (),
    *,
    on_state: Callable[[str | None], None] = lambda _error: None,
    reconnect: Backoff = RECONNECT,
    silence_s: float = WATCH_SILENCE_S,
) -> AsyncIterator[bytes]:
    """Yield announcements (unverified bytes, limited to about `limits.MAX_ANNOUNCEMENT_BYTES`); never ends.

    The stream is opened again, at the next address, whenever it breaks or says nothing for `silence_s`. Close
    it with `contextlib.aclosing`.

    Args:
        addresses: "host:port", tried in turn.
        credentials: called for every connection, so that rotated certificates are used.
        options: channel options; the message limit is set here.
        on_state: called with None when announcements arrive, and with the reason when they stopped.
    """
    if not addresses:
        raise ValueError("watch needs at least one address")
    own = bounded(options, limits.MAX_ANNOUNCEMENT_BYTES)
    loop = asyncio.get_running_loop()
    failures = attempt = 0
    while True:
        address = addresses[attempt % len(addresses)]
        attempt += 1
        started = loop.time()
        try:
            async with grpc.aio.secure_channel(address, credentials(), own) as channel:
                call: Any = rpc.DistributionStub(channel).Watch(pb.WatchRequest())
                stream = aiter(call)
                while True:
                    async with asyncio.timeout(silence_s):
                        announcement = await anext(stream, None)
                    if announcement is None:
                        reason = "the server ended the stream"
                        break
                    on_state(None)
                    yield announcement.timestamp_json
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details() or 'no details'}"
        except TimeoutError:
            reason = "no answer, or silent for too long"
        except MeshError as error:  # no certificate to show, for now
            reason = error.detail
        on_state(f"{address}: {reason}")
        failures = 1 if loop.time() - started >= WATCH_STABLE_S else failures + 1
        delay_ms = reconnect.delay_ms(failures, random.random())  # noqa: S311 (spreads load, hides nothing)
        await asyncio.sleep(delay_ms / 1000)


class WatchListener:
    """Hands every announcement of a control plane's Watch stream to `on_payload`, as `MqttListener` does."""

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Credentials,
        on_payload: Callable[[bytes], None],
        options: Options = (),
        *,
        reconnect: Backoff = RECONNECT,
        silence_s: float = WATCH_SILENCE_S,
    ) -> None:
        self._addresses, self._credentials, self._options = tuple(addresses), credentials, options
        self._on_payload, self._reconnect, self._silence_s = on_payload, reconnect, silence_s
        self.connected = False
        self.last_error: str | None = None
        self.connections = 0
        self.received = 0
        self.refused = 0

    async def run(self) -> None:
        """Listen until cancelled."""
        stream = watch(
            self._addresses,
            self._credentials,
            self._options,
            on_state=self._state,
            reconnect=self._reconnect,
            silence_s=self._silence_s,
        )
        try:
            # An async generator has aclose, which AsyncIterator does not promise.
            async with aclosing(stream) as payloads:  # type: ignore[type-var]
                async for payload in payloads:
                    self._take(payload)
        finally:
            self.connected = False

    def _state(self, error: str | None) -> None:
        was_connected, self.connected = self.connected, error is None
        if error is None:
            self.connections += not was_connected
        elif error != self.last_error:
            _log.warning("watching for announcements: %s", error)
        self.last_error = error

    def _take(self, payload: bytes) -> None:
        self.received += 1
        if not 0 < len(payload) <= limits.MAX_ANNOUNCEMENT_BYTES:
            self.refused += 1
            return
        try:
            self._on_payload(payload)
        except MeshError as error:
            self.refused += 1
            _log.debug("watching for announcements: %s", error)
