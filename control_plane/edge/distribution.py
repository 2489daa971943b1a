"""Policy files for nodes: exactly the published ones, in chunks, resumable; and the newest announcement as a stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from control_plane.edge.repository_files import RepositoryFiles
from egm.v1 import distribution_pb2, distribution_pb2_grpc
from trust import limits
from trust.announce import parse_announcement
from trust.edge.grpc_errors import abort
from trust.errors import CapacityError, EvidenceError, Reason

Context = grpc.aio.ServicerContext[Any, Any]


class Announcements:
    """The newest announcement, for any number of watchers up to a limit; a slow one skips what it missed."""

    def __init__(self) -> None:
        self._latest: bytes | None = None
        self._changed = asyncio.Event()
        self._watchers = 0
        self._closed = False

    @property
    def latest(self) -> bytes | None:
        """The newest signed timestamp.json; None before the first publication."""
        return self._latest

    def newest(self) -> tuple[int, bytes]:
        """Return version and bytes of the newest announcement; (0, b"") before the first publication."""
        return (0, b"") if self._latest is None else (parse_announcement(self._latest).version, self._latest)

    def publish(self, timestamp_json: bytes) -> None:
        """Hand a newer announcement to every watcher."""
        if timestamp_json != self._latest:
            self._latest = timestamp_json
            self._wake()

    def close(self) -> None:
        """End every watch: the server is draining."""
        self._closed = True
        self._wake()

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield the newest announcement, then each later one.

        Raises:
            CapacityError: LIMIT_EXCEEDED, with too many watchers.
        """
        if self._watchers >= limits.MAX_WATCHERS:
            raise CapacityError(
                Reason.LIMIT_EXCEEDED, f"{self._watchers} watchers; poll instead, or try later"
            )
        self._watchers += 1
        try:
            sent: bytes | None = None
            while not self._closed:
                changed = self._changed
                if self._latest is not None and self._latest != sent:
                    sent = self._latest
                    yield sent
                    continue
                await changed.wait()
        finally:
            self._watchers -= 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class DistributionServicer(distribution_pb2_grpc.DistributionServicer):
    """egm.v1.Distribution."""

    def __init__(self, files: RepositoryFiles, announcements: Announcements) -> None:
        self._files, self._announcements = files, announcements

    async def GetFile(
        self, request: distribution_pb2.GetFileRequest, context: Context
    ) -> AsyncIterator[distribution_pb2.FileChunk]:
        """Stream one published file from `offset` on."""
        opened = await asyncio.to_thread(self._files.open, request.path)
        if opened is None:
            await abort(context, EvidenceError(Reason.NOT_FOUND, f"no published file {request.path[:120]!r}"))
        file, size = opened
        with file:
            if not 0 <= request.offset <= size:
                await context.abort(
                    grpc.StatusCode.OUT_OF_RANGE, f"offset {request.offset} is outside of {size} bytes"
                )
            await asyncio.to_thread(file.seek, request.offset)
            left = size - request.offset
            while True:
                data = await asyncio.to_thread(file.read, min(left, limits.MAX_CHUNK_BYTES))
                yield distribution_pb2.FileChunk(total_size=size, data=data)
                left -= len(data)
                if left <= 0 or not data:
                    return

    async def Watch(
        self, request: distribution_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[distribution_pb2.Announcement]:
        """Send the newest announcement, then each later one."""
        async for payload in self._announcements.watch():
            yield distribution_pb2.Announcement(timestamp_json=payload)
