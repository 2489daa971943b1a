"""Fetching and watching over real gRPC connections, from servers that break, stall, drip, lie and never end."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures

import grpc
import grpc.aio
import pytest

from egm.v1 import distribution_pb2 as pb
from egm.v1 import distribution_pb2_grpc as rpc
from tests.support.eventually import eventually
from trust import limits
from trust.backoff import Backoff
from trust.edge.distribution_client import WatchListener
from trust.edge.file_source import FetchLimits, GrpcFileSource
from trust.errors import EvidenceError, Reason, StateError

Chunks = Iterator[pb.FileChunk]
Handler = Callable[[pb.GetFileRequest, grpc.ServicerContext], Chunks]
CONTENT = bytes(range(256)) * 40
QUICK = FetchLimits(timeout_s=0.15, deadline_s=5.0, min_bytes_per_s=1024, max_resumes=3)


def local() -> grpc.ChannelCredentials:
    return grpc.local_channel_credentials()


class Server(rpc.DistributionServicer):
    """A distribution server that runs `handler`, and records the offsets it was asked for."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.offsets = list[int]()

    def GetFile(self, request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        self.offsets.append(request.offset)
        return self.handler(request, context)

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.Announcement]:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")


@contextlib.contextmanager
def serving(servicer: rpc.DistributionServicer) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
    rpc.add_DistributionServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def looping() -> Iterator[asyncio.AbstractEventLoop]:
    """Run the loop of the connections; the test is the thread that fetches."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@contextlib.contextmanager
def source(*addresses: str, bounds: FetchLimits = QUICK) -> Iterator[GrpcFileSource]:
    with looping() as loop:
        made = GrpcFileSource(addresses, local, bounds=bounds, loop=loop)
        try:
            yield made
        finally:
            made.close()


def whole(request: pb.GetFileRequest, _context: grpc.ServicerContext) -> Chunks:
    """Serve CONTENT honestly, in pieces of 1000 bytes."""
    for start in range(request.offset, len(CONTENT), 1000):
        yield pb.FileChunk(total_size=len(CONTENT), data=CONTENT[start : start + 1000])


def missing(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
    context.abort(grpc.StatusCode.NOT_FOUND, "no such file")


def unavailable(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
    context.abort(grpc.StatusCode.UNAVAILABLE, "try again")


def cut_after(count: int) -> Handler:
    """Serve `count` chunks, then break the stream."""

    def handler(request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        yield from itertools.islice(whole(request, context), count)
        context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")

    return handler


def stall(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
    """Send one chunk and then nothing, until the client leaves."""
    yield pb.FileChunk(total_size=len(CONTENT), data=CONTENT[:1000])
    _until_left(context)


def _until_left(context: grpc.ServicerContext) -> None:
    left = threading.Event()
    if context.add_callback(left.set):
        left.wait(30)


def refused(addresses: list[str], path: str = "targets/x") -> StateError:
    with source(*addresses) as files, pytest.raises(StateError) as caught:
        list(files.fetch(path))
    return caught.value


def test_a_file_arrives_whole() -> None:
    """The plain case: every byte, in order."""
    with serving(Server(whole)) as address, source(address) as files:
        assert b"".join(files.fetch("targets/x")) == CONTENT


def test_an_empty_file_arrives_empty() -> None:
    """A file of no bytes is a file, not a failure."""
    server = Server(lambda _request, _context: iter([pb.FileChunk(total_size=0)]))
    with serving(server) as address, source(address) as files:
        assert list(files.fetch("targets/empty")) == []


def test_a_missing_file_is_a_normal_answer() -> None:
    """python-tuf finds the newest root by asking for one that is not there."""
    with serving(Server(missing)) as address, source(address) as files, pytest.raises(FileNotFoundError):
        list(files.fetch("metadata/2.root.json"))


def test_a_broken_download_is_resumed_where_it_stopped() -> None:
    """No byte is fetched twice, none is lost."""
    server = Server(cut_after(4))
    with serving(server) as address, source(address) as files:
        assert b"".join(files.fetch("targets/x")) == CONTENT
    assert server.offsets == [0, 4000, 8000]


def test_a_quiet_end_before_the_announced_size_is_resumed_too() -> None:
    """A stream that ends early with OK must not pass for a short file."""
    server = Server(lambda request, context: itertools.islice(whole(request, context), 4))
    with serving(server) as address, source(address) as files:
        assert b"".join(files.fetch("targets/x")) == CONTENT
    assert server.offsets == [0, 4000, 8000]


def test_a_stream_that_breaks_for_ever_is_given_up() -> None:
    """Attempts are bounded even when each one makes progress."""
    server = Server(cut_after(1))
    with serving(server) as address:
        assert refused([address]).reason is Reason.SOURCE_UNAVAILABLE
    assert server.offsets == [0, 1000, 2000, 3000]


def test_the_next_address_continues_the_file() -> None:
    """Any server will do, since everything is verified later; the one that worked is asked first next time."""
    broken, good = Server(cut_after(3)), Server(whole)
    with serving(broken) as first, serving(good) as second, source(first, second) as files:
        assert b"".join(files.fetch("targets/x")) == CONTENT
        assert b"".join(files.fetch("targets/x")) == CONTENT
    assert (broken.offsets, good.offsets) == ([0], [3000, 0])


def test_an_address_where_nobody_listens_is_passed_over() -> None:
    """One dead control plane must not stop a mesh that has two."""
    with serving(Server(whole)) as dead:
        pass
    with serving(Server(whole)) as alive, source(dead, alive) as files:
        assert b"".join(files.fetch("targets/x")) == CONTENT


def test_an_unavailable_server_is_reported_with_address_and_status() -> None:
    """The person at the terminal must see which server said what."""
    with serving(Server(unavailable)) as address:
        error = refused([address])
        assert error.reason is Reason.SOURCE_UNAVAILABLE
        assert address in error.detail
        assert "UNAVAILABLE: try again" in error.detail


def test_a_stalled_server_is_detected_and_not_asked_again() -> None:
    """A server that goes quiet costs one timeout, not one per attempt."""
    server = Server(stall)
    with serving(server) as address:
        assert refused([address]).reason is Reason.DOWNLOAD_TOO_SLOW
    assert server.offsets == [0]


def test_a_stalled_server_is_replaced_by_the_next() -> None:
    """Slowness of one source is not slowness of the mesh."""
    good = Server(whole)
    with serving(Server(stall)) as first, serving(good) as second, source(first, second) as files:
        assert b"".join(files.fetch("targets/x")) == CONTENT
    assert good.offsets == [1000]


def test_a_slow_drip_is_detected() -> None:
    """One byte before every timeout must not hold a refresh for hours."""

    def drip(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        while context.is_active():
            yield pb.FileChunk(total_size=1_000_000, data=b"x")
            time.sleep(0.02)

    with serving(Server(drip)) as address:
        assert refused([address]).reason is Reason.DOWNLOAD_TOO_SLOW


def test_empty_chunks_are_not_progress() -> None:
    """A server cannot keep a download alive by sending nothing, often."""

    def nothing(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        while context.is_active():
            yield pb.FileChunk(total_size=10)
            time.sleep(0.005)

    with serving(Server(nothing)) as address:
        assert refused([address]).reason is Reason.DOWNLOAD_TOO_SLOW


def test_the_deadline_for_one_file_holds_across_attempts() -> None:
    """Resuming must not win back the time that was wasted."""

    def steady(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        while context.is_active():
            yield pb.FileChunk(total_size=10**12, data=b"x" * 4096)
            time.sleep(0.01)

    bounds = FetchLimits(timeout_s=5.0, deadline_s=0.3, min_bytes_per_s=1, max_resumes=100)
    with serving(Server(steady)) as address, source(address, bounds=bounds) as files:
        with pytest.raises(StateError) as caught:
            list(files.fetch("targets/x"))
        assert caught.value.reason is Reason.DOWNLOAD_TOO_SLOW


def test_an_endless_file_is_cut_by_the_caller_and_the_server_is_told() -> None:
    """The caller stops at its cap; the transfer must end with it."""
    stopped = threading.Event()

    def endless(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        context.add_callback(stopped.set)
        while True:
            yield pb.FileChunk(total_size=2**62, data=b"x" * 4096)

    with serving(Server(endless)) as address, source(address) as files:
        with contextlib.closing(files.fetch("targets/x")) as chunks:  # type: ignore[type-var]
            assert sum(len(chunk) for chunk in itertools.islice(chunks, 10)) == 40_960
        assert stopped.wait(20)


def test_more_bytes_than_announced_are_refused() -> None:
    """The size a server announces binds it."""
    server = Server(lambda _request, _context: iter([pb.FileChunk(total_size=3, data=b"four")]))
    with serving(server) as address:
        assert refused([address]).reason is Reason.SOURCE_UNAVAILABLE


def test_a_file_that_changes_while_resumed_is_not_glued_together() -> None:
    """Two versions of timestamp.json must not become one."""

    def changing(request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        yield pb.FileChunk(total_size=10 if request.offset else 20, data=b"12345")
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with serving(Server(changing)) as address:
        assert "changed while" in refused([address], "metadata/timestamp.json").detail


def test_a_chunk_above_the_limit_is_refused() -> None:
    """A server cannot make a node allocate more than a chunk at a time."""
    huge = b"x" * (limits.MAX_CHUNK_BYTES + 4096)
    server = Server(lambda _request, _context: iter([pb.FileChunk(total_size=len(huge), data=huge)]))
    with serving(server) as address:
        error = refused([address])
        assert error.reason is Reason.SOURCE_UNAVAILABLE
        assert "RESOURCE_EXHAUSTED" in error.detail


def test_rotation_in_the_middle_of_a_download_costs_a_resume() -> None:
    """New certificates are used at once; what is under way continues on a new connection."""
    seen = list[int]()

    def credentials() -> grpc.ChannelCredentials:
        seen.append(1)
        return local()

    with serving(Server(whole)) as address, looping() as loop:
        files = GrpcFileSource([address], credentials, bounds=QUICK, loop=loop)
        received = bytearray()
        for number, chunk in enumerate(files.fetch("targets/x")):
            received += chunk
            if number == 2:
                files.rotate()
        files.close()
    assert bytes(received) == CONTENT
    assert len(seen) == 2


def test_without_a_certificate_the_reason_is_the_identity() -> None:
    """A node that was never enrolled must be told so, not that the network is broken."""

    def none() -> grpc.ChannelCredentials:
        raise StateError(Reason.IDENTITY_UNAVAILABLE, "no certificate yet")

    with looping() as loop, pytest.raises(StateError) as caught:
        list(GrpcFileSource(["127.0.0.1:1"], none, loop=loop).fetch("metadata/timestamp.json"))
    assert caught.value.reason is Reason.IDENTITY_UNAVAILABLE


def test_a_closed_source_refuses() -> None:
    """After shutdown no connection is opened again."""
    with looping() as loop:
        files = GrpcFileSource(["127.0.0.1:1"], local, loop=loop)
        files.close()
        with pytest.raises(StateError):
            list(files.fetch("metadata/timestamp.json"))


async def test_a_source_closed_in_its_loop_lets_the_waiting_thread_go_at_once() -> None:
    """A sidecar that ends must not wait for a server that says nothing, nor for a thread that waits for its loop."""
    asked = threading.Event()

    def silent(_request: pb.GetFileRequest, context: grpc.ServicerContext) -> Chunks:
        asked.set()
        _until_left(context)
        return iter(())

    with serving(Server(silent)) as address:
        files = GrpcFileSource([address], local, bounds=FetchLimits(timeout_s=60.0))
        failures: list[BaseException] = []

        def fetch() -> None:
            try:
                list(files.fetch("targets/x"))
            except StateError as error:
                failures.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        await eventually(asked.is_set, "the server is asked")
        files.close()
        thread.join(20)  # blocks the loop, as the end of a process may
        assert not thread.is_alive()
        assert [error.reason for error in failures if isinstance(error, StateError)] == [
            Reason.SOURCE_UNAVAILABLE
        ]


async def test_a_fetch_in_the_loop_of_the_connections_is_a_bug_and_says_so() -> None:
    """It would wait for itself, for ever."""
    files = GrpcFileSource(["127.0.0.1:1"], local)
    with pytest.raises(RuntimeError, match="in a thread"):
        list(files.fetch("metadata/timestamp.json"))
    files.close()


def test_a_loop_that_has_ended_is_a_closed_source() -> None:
    """A thread that outlives its process's loop ends, too."""
    with looping() as loop:
        files = GrpcFileSource(["127.0.0.1:1"], local, loop=loop)
    with pytest.raises(StateError) as caught:
        list(files.fetch("metadata/timestamp.json"))
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    files.rotate()
    files.close()


class Watched(rpc.DistributionServicer):
    """Sends `announcements`, one connection after the other."""

    def __init__(self, *connections: list[bytes], hold: bool = True) -> None:
        self.connections = list(connections)
        self.hold = hold
        self.count = 0

    async def GetFile(  # type: ignore[override]
        self, _request: pb.GetFileRequest, context: grpc.aio.ServicerContext[pb.GetFileRequest, pb.FileChunk]
    ) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    async def Watch(  # type: ignore[override]
        self, _request: pb.WatchRequest, context: grpc.aio.ServicerContext[pb.WatchRequest, pb.Announcement]
    ) -> None:
        self.count += 1
        for payload in self.connections.pop(0) if self.connections else []:
            await context.write(pb.Announcement(timestamp_json=payload))
        if self.hold and not self.connections:
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def watching(
    servicer: Watched, take: Callable[[bytes], None], *, silence_s: float = 30.0
) -> AsyncIterator[WatchListener]:
    server = grpc.aio.server()
    rpc.add_DistributionServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
    await server.start()
    listener = WatchListener(
        [f"127.0.0.1:{port}"],
        local,
        take,
        reconnect=Backoff(min_ms=10, max_ms=50),
        silence_s=silence_s,
    )
    task = asyncio.ensure_future(listener.run())
    try:
        yield listener
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(None)


async def test_the_watch_stream_delivers_announcements_in_order() -> None:
    """The broker-free substitute for MQTT."""
    heard = list[bytes]()
    async with watching(Watched([b"1", b"2", b"3"]), heard.append) as listener:
        await eventually(lambda: heard == [b"1", b"2", b"3"], "three announcements")
        assert listener.connected
    assert not listener.connected


async def test_a_watch_that_ends_is_opened_again() -> None:
    """A control plane that restarts costs only delay."""
    heard = list[bytes]()
    async with watching(Watched([b"1"], [b"2"], [b"3"]), heard.append) as listener:
        await eventually(lambda: heard == [b"1", b"2", b"3"], "three connections")
        await eventually(lambda: listener.connected, "connected again")


async def test_a_silent_watch_is_opened_again() -> None:
    """A half-open connection is found out; nothing else would tell."""
    servicer = Watched([b"1"])
    async with watching(servicer, lambda _payload: None, silence_s=0.05):
        await eventually(lambda: servicer.count >= 3, "it is opened again and again")


async def test_garbage_and_oversize_on_the_watch_stream_are_survived() -> None:
    """What the callback refuses is counted; what exceeds the message limit breaks one connection."""
    heard = list[bytes]()

    def take(payload: bytes) -> None:
        if payload == b"garbage":
            raise EvidenceError(Reason.METADATA_INVALID, "garbage")
        heard.append(payload)

    too_large = b"x" * (limits.MAX_ANNOUNCEMENT_BYTES + 4096)
    async with watching(Watched([b"garbage", b"", b"1", too_large, b"never"], [b"2"]), take) as listener:
        await eventually(lambda: heard == [b"1", b"2"], "the good ones arrive")
    assert listener.refused == 2


async def test_a_watch_without_a_server_reports_why_and_goes_on() -> None:
    """The reason is for status output; the loop never ends by itself."""
    listener = WatchListener(["127.0.0.1:1"], local, lambda _payload: None, reconnect=Backoff(10, 50))
    task = asyncio.ensure_future(listener.run())
    await eventually(lambda: listener.last_error, "the failure is reported")
    assert "127.0.0.1:1" in str(listener.last_error)
    assert not listener.connected
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
