"""Policy files from and for peers: a node serves what it verified, and asks others when no control plane answers.

Nothing that arrives here is trusted; the TUF client verifies it, so it does not matter who sent it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import grpc
import grpc.aio
from tuf.api.metadata import Root, Snapshot, Targets

from egm.v1 import distribution_pb2 as pb
from egm.v1 import distribution_pb2_grpc as rpc
from sidecar.edge.first_answer import Place, first_answer
from trust import limits
from trust.authoring import parse_metadata
from trust.chain import sha256_of_target
from trust.edge.file_source import FetchLimits, GrpcFileSource
from trust.edge.gossip import PEERS, Check
from trust.edge.grpc_errors import abort
from trust.edge.tls import channel_credentials, channel_options
from trust.edge.tuf_client import PolicyClient
from trust.errors import CapacityError, EvidenceError, MeshError, Reason, StateError
from trust.identity import IdentitySource
from trust.ports import FileSource
from trust.repository import TIMESTAMP_PATH, metadata_path, target_file_path
from trust.spiffe import SpiffeId

Context = grpc.aio.ServicerContext[Any, Any]
_ROOT_FILE: Final = ".root.json"
_TRIED_PEERS: Final = 3  # for one file; the next refresh tries others
_PEER_LIMITS: Final = FetchLimits(timeout_s=3.0, max_resumes=1)


class PeerFiles:
    """The policy files of this node by their repository path, as a peer asks for them."""

    def __init__(self, client: PolicyClient, root: bytes) -> None:
        """Serve what `client` holds, and `root`, the trust anchor."""
        self._client, self._root = client, root
        self._index = _Index(-1)

    def read(self, path: str) -> bytes | None:
        """Return one file; None when it is not here. Blocking; several threads may ask at once."""
        version, index = self._client.newest[0], self._index
        if version != index.of:
            index = self._index = self._made(version)
        if path in index.archives:
            return self._client.archive(index.archives[path])
        return index.files.get(path)

    def _made(self, version: int) -> "_Index":
        """Return a whole index: nobody may look into one that is being made."""
        stored, index = self._client.stored(), _Index(version)
        if stored is None:
            return index
        for root in (self._root, *stored.roots):
            version = parse_metadata(root, Root).signed.version
            index.files[metadata_path("root", version)] = root
        index.files[TIMESTAMP_PATH] = stored.timestamp
        snapshot = parse_metadata(stored.snapshot, Snapshot).signed
        index.files[metadata_path("snapshot", snapshot.version)] = stored.snapshot
        for role, data in stored.roles.items():
            targets = parse_metadata(data, Targets).signed
            index.files[metadata_path(role, targets.version)] = data
            sha256 = sha256_of_target(role, targets)
            index.archives[target_file_path(role, sha256)] = sha256
        return index


@dataclass(frozen=True, slots=True)
class _Index:
    """What a node has, by repository path; metadata itself, archives by their SHA-256 (hex)."""

    of: int  # timestamp version that it was made for
    files: dict[str, bytes] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)


class PeerDistribution(rpc.DistributionServicer):
    """egm.v1.Distribution as a node serves it: the policy that it enforces, to other nodes."""

    def __init__(
        self, files: PeerFiles, check: Check, *, transfers: int = limits.MAX_CONCURRENT_UPLOADS
    ) -> None:
        """Serve `files` to whoever `check` lets through, to few at a time: this node has calls to carry."""
        self._files, self._check = files, check
        self._free = transfers

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> AsyncIterator[pb.FileChunk]:
        """Stream one file from `offset` on."""
        await self._check(context, PEERS)
        if self._free == 0:
            await abort(context, CapacityError(Reason.LIMIT_EXCEEDED, "this node serves others; ask another"))
        self._free -= 1
        try:
            data = await self._data(request.path, context)
            if not 0 <= request.offset <= len(data):
                text = f"offset {request.offset} is outside of {len(data)} bytes"
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, text)
            start = request.offset
            while True:
                part = data[start : start + limits.MAX_CHUNK_BYTES]
                yield pb.FileChunk(total_size=len(data), data=part)
                start += len(part)
                if start >= len(data):
                    return
        finally:
            self._free += 1

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Announcement]:
        """Refuse: nodes tell each other by gossip what is new."""
        await self._check(context, PEERS)
        nothing: tuple[pb.Announcement, ...] = ()
        for announcement in nothing:  # a stream, like that of a control plane
            yield announcement
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a node announces by egm.v1.Gossip")

    async def _data(self, path: str, context: Context) -> bytes:
        try:
            data = await asyncio.to_thread(self._files.read, path)
        except MeshError as error:
            await abort(context, error)
        if data is None:
            await abort(context, EvidenceError(Reason.NOT_FOUND, f"no policy file {path[:120]!r} here"))
        return data


class RotatingSource(FileSource, Protocol):
    """A source of files whose certificates change; `GrpcFileSource` is one."""

    def rotate(self) -> None:
        """Use new certificates from now on."""
        ...

    def close(self) -> None:
        """Close every channel."""
        ...


class AnySource:
    """The control plane, and when it does not answer, peers. A `trust.ports.FileSource`; blocking."""

    def __init__(
        self,
        control_plane: RotatingSource,
        identity: IdentitySource,
        me: SpiffeId,
        peers: Callable[[], Mapping[str, str]],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take where files come from.

        Args:
            control_plane: asked first.
            identity: supplies the certificate to show to peers.
            me: this node.
            peers: NAME -> HOST:PORT, in the order in which to ask.
            loop: in which connections to peers live; `fetch` runs in threads.
        """
        self._identity, self._me, self._peers, self._loop = identity, me, peers, loop
        self._first = Place("the control plane", control_plane, authority=True)
        self._last_peer = ""
        self._lock = threading.Lock()
        self._closed = False
        self._sources: list[RotatingSource] = [control_plane]
        self._known: dict[tuple[str, str], Place] = {}

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield the file in chunks; see `trust.ports.FileSource`.

        The control plane is asked first; when it is silent, peers are asked beside it, and first once it is known to be
        silent. A peer that does not have the file proves nothing: then another is asked, and only when all that answer
        lack it, it is said not to exist.
        """
        place, chunks = first_answer(
            path,
            self._places(path),
            must_exist=not path.endswith(
                _ROOT_FILE
            ),  # the walk over root versions ends at one that is missing
        )
        if place is not self._first:
            self._last_peer = place.name
        yield from chunks

    def rotate(self) -> None:
        """Use new certificates from now on."""
        with self._lock:
            sources = tuple(self._sources)
        for source in sources:
            source.rotate()

    def close(self) -> None:
        """Close every channel; transfers under way fail, and their threads have ended."""
        with self._lock:
            self._closed = True
            sources, places = tuple(self._sources), (self._first, *self._known.values())
        for source in sources:
            source.close()
        for place in places:
            place.join()

    def _places(self, path: str) -> list[Place]:
        peers = list(self._peers().items())
        self._forget_all_but(peers)
        if path != TIMESTAMP_PATH:
            # Who had the newest lease has the files that go with it. The lease itself is asked of anybody: one that
            # has fallen behind must not be asked for ever.
            peers.sort(key=lambda peer: peer[0] != self._last_peer)
        return [self._first, *(self._peer(name, address) for name, address in peers[:_TRIED_PEERS])]

    def _forget_all_but(self, peers: Sequence[tuple[str, str]]) -> None:
        """Close the way to where no peer is any more: a control plane may name other addresses with every report."""
        with self._lock:
            gone = [key for key, place in self._known.items() if key not in peers and not place.busy]
            places = [self._known.pop(key) for key in gone]
            self._sources = [one for one in self._sources if all(one is not place.files for place in places)]
        for place in places:
            cast("RotatingSource", place.files).close()

    def _peer(self, name: str, address: str) -> Place:
        known = self._known.get((name, address))
        if known is None:
            server = SpiffeId.of(self._me.trust_domain, "node", name)
            source = peer_source(self._identity, self._me, server, address, loop=self._loop)
            with self._lock:
                if self._closed:
                    raise StateError(Reason.SOURCE_UNAVAILABLE, "the sources of policy files are closed")
                self._sources.append(source)
                known = self._known[name, address] = Place(name, source)
        return known


def peer_source(
    identity: IdentitySource,
    me: SpiffeId,
    peer: SpiffeId,
    address: str,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
) -> GrpcFileSource:
    """Return where the policy files of one peer come from; `loop` is needed where none runs (in a thread)."""
    return GrpcFileSource(
        [address],
        lambda: channel_credentials(identity, me),
        channel_options(peer),
        bounds=_PEER_LIMITS,
        loop=loop,
    )
