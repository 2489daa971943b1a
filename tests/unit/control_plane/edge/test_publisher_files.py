"""Which content of timestamp.json is on disk in the end."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from control_plane.edge import publisher
from control_plane.edge.publisher import Publisher
from control_plane.edge.repository_files import RepositoryFiles

TIMESTAMP = "metadata/timestamp.json"


class Store:
    """A store with one file, which has a new content whenever it is asked for its revision."""

    def __init__(self) -> None:
        self.revisions = 0

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[None]:
        """Give a connection."""
        yield

    async def revision(self, _connection: object) -> int:
        """Return a new one."""
        self.revisions += 1
        return self.revisions

    async def listing(self, _connection: object, *, after: int) -> list[Any]:
        """Return the file."""
        return [SimpleNamespace(path=TIMESTAMP, sha256=hashlib.sha256(self.content()).hexdigest())]

    async def load(self, _connection: object, paths: list[str]) -> dict[str, bytes]:
        """Return its content."""
        return dict.fromkeys(paths, self.content())

    async def state(self, _connection: object) -> Any:
        """Return what is in force."""
        return SimpleNamespace(timestamp=None, role_metadata=lambda _role: None)

    def content(self) -> bytes:
        """Return what the file is now."""
        return b"%d" % self.revisions


class SlowFiles(RepositoryFiles):
    """A disk that takes its time with what is written first."""

    began, go_on = threading.Event(), threading.Event()

    def write(self, files: Mapping[str, bytes]) -> None:
        """Wait, the first time."""
        if not self.began.is_set():
            self.began.set()
            self.go_on.wait(0.2)  # one that has to wait for the first, as it should, ends this by itself
        super().write(files)
        self.go_on.set()


async def test_a_cancelled_publication_does_not_put_an_older_lease_over_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator who goes away leaves a thread behind; what it still writes comes before what is written next."""
    store = Store()
    monkeypatch.setattr(publisher, "repository", store)
    monkeypatch.setattr(publisher, "load_state", store.state)
    files = SlowFiles(tmp_path)
    nothing = cast(Any, None)
    one = Publisher(
        cast(Any, store), files, nothing, nothing, announce=nothing, check=nothing, renew_fraction=0.5
    )
    cancelled = asyncio.create_task(one.synchronise())
    await asyncio.to_thread(files.began.wait, 10)
    cancelled.cancel()
    await one.synchronise()
    await asyncio.gather(cancelled, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert (tmp_path / TIMESTAMP).read_bytes() == b"2"
