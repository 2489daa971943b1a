"""Where policy files come from over gRPC: from any of several addresses, resumed, cut when too slow.

Nothing that arrives here is trusted; python-tuf verifies it. What this decides is when to stop waiting.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio

from egm.v1 import distribution_pb2 as pb
from egm.v1 import distribution_pb2_grpc as rpc
from trust import limits
from trust.backoff import RECONNECT, Backoff
from trust.errors import MeshError, Reason, StateError

Options = Sequence[tuple[str, Any]]
Credentials = Callable[[], grpc.ChannelCredentials]

MAX_RESUMES: Final = (
    3  # continuations of one file after its stream broke, in addition to trying every address once
)
# Without an announcement for this long the stream is opened anew: the server then repeats the newest one, so
# this is also the probe that finds out about a half-open connection.
WATCH_SILENCE_S: Final = 300.0
WATCH_STABLE_S: Final = 10.0
_FRAME_BYTES: Final = 1024  # protobuf around a chunk or an announcement

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """When to give up on a file. Tests inject small ones; production uses the named bounds."""

    timeout_s: float = limits.FETCH_TIMEOUT_S  # without a byte
    deadline_s: float = limits.FETCH_DEADLINE_S  # for one whole file
    min_bytes_per_s: int = limits.FETCH_MIN_BYTES_PER_S  # once timeout_s have passed
    max_resumes: int = MAX_RESUMES


class GrpcFileSource:
    """A `trust.ports.FileSource` over egm.v1.Distribution. Thread-safe; `fetch` blocks: call it in a thread.

    Args:
        addresses: "host:port", in order of preference. The one that last worked is asked first.
        credentials: called whenever a channel is opened; see `trust.edge.tls.channel_credentials`.
        options: channel options, such as the server's name; message limits are set here.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Credentials,
        options: Options = (),
        *,
        bounds: FetchLimits | None = None,
    ) -> None:
        if not addresses:
            raise ValueError("a file source needs at least one address")
        self._addresses = tuple(addresses)
        self._credentials = credentials
        self._options = _bounded(options, limits.MAX_CHUNK_BYTES)
        self._bounds = bounds or FetchLimits()
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._preferred = 0
        self._closed = False

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield the file at `path` in non-empty chunks of at most `limits.MAX_CHUNK_BYTES`.

        The caller caps the total; leaving the iterator early ends the transfer.

        Raises:
            FileNotFoundError: the server has no such file (a normal answer in TUF).
            StateError: SOURCE_UNAVAILABLE when no address delivers it, DOWNLOAD_TOO_SLOW when it stalls or
                drips, IDENTITY_UNAVAILABLE when we have no certificate to show.
        """
        transfer = _Transfer(path, self._bounds)
        with self._lock:
            first = self._preferred
        attempts = len(self._addresses) + self._bounds.max_resumes
        for attempt in range(attempts):
            index = (first + attempt) % len(self._addresses)
            try:
                yield from transfer.run(self._channel(self._addresses[index]))
            except FileNotFoundError:  # an answer, too
                with self._lock:
                    self._preferred = index
                raise
            except _BrokenStreamError as broken:
                transfer.failure = f"{self._addresses[index]}: {broken}"
                _log.debug("fetching %s from %s", path, transfer.failure)
                # A server that stalls is not asked again for the same file; the others still are.
                if transfer.out_of_time() or (transfer.slow and attempt >= len(self._addresses) - 1):
                    break
                continue
            with self._lock:
                self._preferred = index
            return
        raise transfer.error()

    def rotate(self) -> None:
        """Use new credentials from now on. Transfers on old channels are cut and resume on new ones."""
        with self._lock:
            old, self._channels = list(self._channels.values()), {}
        for channel in old:
            channel.close()

    def close(self) -> None:
        """Close every channel; a transfer under way fails with SOURCE_UNAVAILABLE."""
        with self._lock:
            self._closed = True
        self.rotate()

    def _channel(self, address: str) -> grpc.Channel:
        with self._lock:
            if self._closed:
                raise StateError(Reason.SOURCE_UNAVAILABLE, "the file source is closed")
            channel = self._channels.get(address)
            if channel is None:
                channel = grpc.secure_channel(address, self._credentials(), options=self._options)
                self._channels[address] = channel
            return channel


class _BrokenStreamError(Exception):
    """This attempt is over; another may continue where it stopped."""


@dataclass(slots=True)
class _Transfer:
    """One file on its way, across as many streams as it takes."""

    path: str
    bounds: FetchLimits
    received: int = 0
    total: int | None = None
    slow: bool = False
    failure: str = "not attempted"
    started: float = field(default_factory=time.monotonic)
    since: float = 0.0  # when the stream that is read now was opened
    had: int = 0  # bytes before it

    def run(self, channel: grpc.Channel) -> Iterator[bytes]:
        """Yield what is missing from one stream. Its pace is its own: what another cost is not held against it.

        Raises:
            _BrokenStreamError: the stream ended before the file did.
            FileNotFoundError: the server has no such file.
        """
        self.slow = False
        self.since, self.had = time.monotonic(), self.received
        request = pb.GetFileRequest(path=self.path, offset=self.received)
        try:
            call: Any = rpc.DistributionStub(channel).GetFile(request, timeout=max(self._left_s(), 0.001))
        except ValueError:  # the channel was closed by a rotation in this very moment
            raise _BrokenStreamError("channel closed") from None
        try:
            yield from self._chunks(call)
        finally:
            call.cancel()

    def _chunks(self, call: Any) -> Iterator[bytes]:
        last_byte = time.monotonic()
        # The file is whole when its last byte is here; how the stream ends after that does not matter.
        while self.received != self.total:
            chunk = self._next(call, last_byte)
            if chunk is None:
                break
            self._check_size(chunk)
            if not chunk.data:
                continue  # an empty chunk is no progress: the clock since the last byte keeps running
            self.received += len(chunk.data)
            yield chunk.data
            last_byte = time.monotonic()
            self._check_rate(last_byte)
        if self.total is None:
            raise _BrokenStreamError("the stream ended without a chunk")
        if self.received < self.total:
            raise _BrokenStreamError(f"the stream ended at {self.received} of {self.total} bytes")

    def _next(self, call: Any, last_byte: float) -> pb.FileChunk | None:
        """Return the next chunk, None at the end; the wait is cut when no byte came for too long."""
        stalled = threading.Event()

        def cut() -> None:
            stalled.set()
            call.cancel()

        watchdog = threading.Timer(max(last_byte + self.bounds.timeout_s - time.monotonic(), 0.0), cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            chunk: pb.FileChunk = next(call)
        except StopIteration:
            return None
        except grpc.RpcError:
            self._explain(call, stalled=stalled.is_set())
        else:
            return chunk
        finally:
            watchdog.cancel()
        return None

    def _explain(self, call: Any, *, stalled: bool) -> None:
        code = call.code()
        if stalled or code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.slow = True
            raise _BrokenStreamError(f"no data for {self.bounds.timeout_s:g} s" if stalled else "too slow")
        if code is grpc.StatusCode.NOT_FOUND:
            raise FileNotFoundError(self.path)
        raise _BrokenStreamError(f"{code.name}: {call.details() or 'no details'}")

    def _check_size(self, chunk: pb.FileChunk) -> None:
        if self.total is None:
            self.total = chunk.total_size
        if chunk.total_size != self.total or chunk.total_size < 0:
            # Joining parts of two files would only fail verification later, and with a worse explanation.
            raise _changed(self.path)
        if self.received + len(chunk.data) > self.total:
            raise StateError(Reason.SOURCE_UNAVAILABLE, f"{self.path}: more bytes than the server announced")

    def _check_rate(self, now: float) -> None:
        elapsed, received = now - self.since, self.received - self.had
        if elapsed > self.bounds.timeout_s and received < elapsed * self.bounds.min_bytes_per_s:
            self.slow = True
            raise _BrokenStreamError(f"{received} bytes in {elapsed:.1f} s")

    def _left_s(self) -> float:
        return self.started + self.bounds.deadline_s - time.monotonic()

    def out_of_time(self) -> bool:
        """Whether the time for the whole file is used up, so that another attempt cannot help."""
        return self._left_s() <= 0

    def error(self) -> StateError:
        """Return why the file could not be had."""
        if self.slow or self.out_of_time():
            return StateError(Reason.DOWNLOAD_TOO_SLOW, f"{self.path}: {self.failure}")
        return StateError(Reason.SOURCE_UNAVAILABLE, f"{self.path}: {self.failure}")


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
    bounded = _bounded(options, limits.MAX_ANNOUNCEMENT_BYTES)
    loop = asyncio.get_running_loop()
    failures = attempt = 0
    while True:
        address = addresses[attempt % len(addresses)]
        attempt += 1
        started = loop.time()
        try:
            async with grpc.aio.secure_channel(address, credentials(), bounded) as channel:
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


def _bounded(options: Options, payload_bytes: int) -> list[tuple[str, Any]]:
    own = "grpc.max_receive_message_length"
    return [*((name, value) for name, value in options if name != own), (own, payload_bytes + _FRAME_BYTES)]


def _changed(path: str) -> StateError:
    return StateError(
        Reason.SOURCE_UNAVAILABLE, f"{path}: changed while it was fetched; the next refresh starts anew"
    )
