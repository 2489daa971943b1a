"""Policy files over gRPC, from any server: bytes, unverified. What this decides is when to stop waiting for them.

python-tuf reads files with blocking calls, in a thread of its own. The connections live in the event loop all the same:
the thread hands each step to the loop and waits for it, so no second gRPC client runs in threads.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar

import grpc
import grpc.aio

from egm.v1 import distribution_pb2 as pb
from egm.v1 import distribution_pb2_grpc as rpc
from trust import limits
from trust.errors import Reason, StateError

Options = Sequence[tuple[str, Any]]
Credentials = Callable[[], grpc.ChannelCredentials]

# continuations of one file after its stream broke, in addition to trying every address once
MAX_RESUMES: Final = 3
_FRAME_BYTES: Final = 1024  # protobuf around a chunk or an announcement
_LOOP_PATIENCE_S: Final = 5.0  # for the loop itself to answer, beyond what a step may take

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


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
        bounds: when to give up.
        loop: in which the connections live; by default the running one.

    Raises:
        RuntimeError: without a running loop, when none is given.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Credentials,
        options: Options = (),
        *,
        bounds: FetchLimits | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not addresses:
            raise ValueError("a file source needs at least one address")
        self._addresses = tuple(addresses)
        self._bounds = bounds or FetchLimits()
        self._wire = _Wire(
            loop or asyncio.get_running_loop(), credentials, bounded(options, limits.MAX_CHUNK_BYTES)
        )
        self._lock = threading.Lock()
        self._preferred = 0

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield the file at `path` in non-empty chunks of at most `limits.MAX_CHUNK_BYTES`.

        The caller caps the total; leaving the iterator early ends the transfer.

        Raises:
            FileNotFoundError: the server has no such file (a normal answer in TUF).
            StateError: SOURCE_UNAVAILABLE when no address delivers it, DOWNLOAD_TOO_SLOW when it stalls or
                drips, IDENTITY_UNAVAILABLE when we have no certificate to show.
            RuntimeError: in the thread of the loop, which would wait for itself.
        """
        transfer = _Transfer(path, self._bounds, self._wire)
        with self._lock:
            first = self._preferred
        attempts = len(self._addresses) + self._bounds.max_resumes
        for attempt in range(attempts):
            index = (first + attempt) % len(self._addresses)
            try:
                yield from transfer.run(self._addresses[index])
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
        self._wire.rotate()

    def close(self) -> None:
        """Close every channel; a transfer under way fails with SOURCE_UNAVAILABLE, at once and without the loop."""
        self._wire.close()


class _BrokenStreamError(Exception):
    """This attempt is over; another may continue where it stopped."""


class _StalledError(Exception):
    """No answer in time."""


class _Wire:
    """The channels, in the loop, and the steps that threads wait for."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, credentials: Credentials, options: list[tuple[str, Any]]
    ) -> None:
        self._loop, self._credentials, self._options = loop, credentials, options
        self._channels: dict[str, grpc.aio.Channel] = {}  # touched in the loop alone
        self._closing: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        self._waited_for: set[futures.Future[Any]] = set()
        self._closed = False

    # from any thread

    def open(self, address: str, request: pb.GetFileRequest, timeout_s: float) -> Any:
        """Return a call that is under way.

        Raises:
            StateError: SOURCE_UNAVAILABLE once closed; what the credentials raise.
        """
        return self._step(self._open(address, request, timeout_s), timeout_s)

    def read(self, call: Any, patience_s: float) -> pb.FileChunk | None:
        """Return the next chunk of a call, None at the end.

        Raises:
            _StalledError: none came in time; the call is over.
            _BrokenStreamError: its channel was closed.
            grpc.aio.AioRpcError: the server said no, or is gone.
        """
        return self._step(self._read(call, patience_s), patience_s)

    def drop(self, call: Any) -> None:
        """End a call; it may be over already."""
        self._soon(call.cancel)

    def rotate(self) -> None:
        """Open new channels from now on."""
        self._soon(self._close_channels)

    def close(self) -> None:
        """Let nobody wait any more, and close the channels."""
        with self._lock:
            self._closed = True
            waited_for = tuple(self._waited_for)
        for future in waited_for:
            future.cancel()
        self.rotate()

    def _soon(self, work: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and every channel with it
            self._loop.call_soon_threadsafe(work)

    def _step(self, work: Coroutine[Any, Any, _T], patience_s: float) -> _T:
        """Run one step in the loop and wait for it."""
        if _in(self._loop):
            work.close()
            raise RuntimeError("fetch blocks: call it in a thread, not in the loop of its connections")
        with self._lock:
            if self._closed or self._loop.is_closed():
                work.close()
                raise _over()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._waited_for.add(future)
        try:
            return future.result(max(patience_s, 0.0) + _LOOP_PATIENCE_S)
        except futures.CancelledError:
            raise _over() from None
        except TimeoutError:
            future.cancel()
            raise _StalledError("this process itself is too slow") from None
        finally:
            with self._lock:
                self._waited_for.discard(future)

    # in the loop

    async def _open(self, address: str, request: pb.GetFileRequest, timeout_s: float) -> Any:
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.secure_channel(address, self._credentials(), options=self._options)
            self._channels[address] = channel
        return rpc.DistributionStub(channel).GetFile(request, timeout=timeout_s)

    @staticmethod
    async def _read(call: Any, patience_s: float) -> pb.FileChunk | None:
        try:
            async with asyncio.timeout(patience_s):
                chunk = await call.read()
        except TimeoutError:
            call.cancel()
            raise _StalledError(f"no data for {patience_s:g} s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _BrokenStreamError("channel closed") from None
        return chunk if isinstance(chunk, pb.FileChunk) else None  # EOF at the end

    def _close_channels(self) -> None:
        old, self._channels = list(self._channels.values()), {}
        for channel in old:
            task = self._loop.create_task(channel.close(None), name="close a channel for files")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


@dataclass(slots=True)
class _Transfer:
    """One file on its way, across as many streams as it takes."""

    path: str
    bounds: FetchLimits
    wire: _Wire
    received: int = 0
    total: int | None = None
    slow: bool = False
    failure: str = "not attempted"
    started: float = field(default_factory=time.monotonic)
    since: float = 0.0  # when the stream that is read now was opened
    had: int = 0  # bytes before it

    def run(self, address: str) -> Iterator[bytes]:
        """Yield what is missing from one stream. Its pace is its own: what another cost is not held against it.

        Raises:
            _BrokenStreamError: the stream ended before the file did.
            FileNotFoundError: the server has no such file.
        """
        self.slow = False
        self.since, self.had = time.monotonic(), self.received
        request = pb.GetFileRequest(path=self.path, offset=self.received)
        try:
            call = self.wire.open(address, request, max(self._left_s(), 0.001))
        except _StalledError as stalled:
            self.slow = True
            raise _BrokenStreamError(str(stalled)) from None
        try:
            yield from self._chunks(call)
        finally:
            self.wire.drop(call)

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
        left_s = max(last_byte + self.bounds.timeout_s - time.monotonic(), 0.0)
        try:
            return self.wire.read(call, left_s)
        except _StalledError:
            self.slow = True
            raise _BrokenStreamError(f"no data for {self.bounds.timeout_s:g} s") from None
        except grpc.aio.AioRpcError as error:
            self._explain(error)

    def _explain(self, error: grpc.aio.AioRpcError) -> NoReturn:
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.slow = True
            raise _BrokenStreamError("too slow")
        if code is grpc.StatusCode.NOT_FOUND:
            raise FileNotFoundError(self.path)
        raise _BrokenStreamError(f"{code.name}: {error.details() or 'no details'}")

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


def bounded(options: Options, payload_bytes: int) -> list[tuple[str, Any]]:
    """Return channel options with the limit of what one message may hold, in place of any other."""
    own = "grpc.max_receive_message_length"
    return [*((name, value) for name, value in options if name != own), (own, payload_bytes + _FRAME_BYTES)]


def _in(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the thread of the loop, while it runs."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _over() -> StateError:
    return StateError(Reason.SOURCE_UNAVAILABLE, "the file source is closed")


def _changed(path: str) -> StateError:
    return StateError(
        Reason.SOURCE_UNAVAILABLE, f"{path}: changed while it was fetched; the next refresh starts anew"
    )
