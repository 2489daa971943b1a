"""Keeps the trust credentials that permits named, so that evidence of an earlier execution can show them.

DIR/SECONDS.jsonl   credentials, one a line, in the order in which they were named; SECONDS: Unix time of its first
DIR/peers/          the same of other nodes, whose permits were accepted here

A credential is found by the SHA-256 of its line: a line that a crash cut off is nobody's.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from trust import limits
from trust.attestation.credential import Credential, credential_sha256
from trust.edge.files import read_at_most, sync_directory
from trust.edge.threads import to_thread_until_done

logger = logging.getLogger(__name__)

PEERS: Final = "peers"
_SPACING_S: Final = 0.3  # between two writes: many callers come at once after a start of the whole mesh
_RETRY_S: Final = 5.0
# a credential is written seconds after it was first named, and named no longer than it lives
_AROUND_S: Final = limits.MAX_ATTESTATION_TTL_S + 600


class CredentialFiles:
    """One folder. `note` and `take` belong to the event loop; `write` may run in a thread, one at a time."""

    def __init__(self, directory: Path, *, max_bytes: int, noted: Callable[[], None] = lambda: None) -> None:
        """Use `directory`; it is made when it is first needed.

        Args:
            directory: of nothing else but `peers`.
            max_bytes: beyond them the oldest file goes.
            noted: told when there is something to write.
        """
        self._directory, self._max_bytes, self._tell = directory, max_bytes, noted
        self._seen: dict[bytes, None] = {}  # digests that were noted, the newest last
        self._noted: dict[bytes, bytes] = {}

    def note(self, credential: Credential) -> None:
        """Remember a verified credential that a permit names, until `take`. Touches no disk."""
        if credential.sha256 not in self._seen:
            self.keep(credential.sha256, credential.data)
            self._tell()

    def keep(self, sha256: bytes, data: bytes) -> None:
        """Remember a credential by its digest, until `take`; beyond MAX_CREDENTIALS the oldest leaves."""
        for known in (self._seen, self._noted):
            if len(known) >= limits.MAX_CREDENTIALS:
                del known[next(iter(known))]
        self._seen[sha256] = None
        self._noted[sha256] = data

    def take(self) -> dict[bytes, bytes]:
        """Return what was noted since, for `write`; after a failure give it to `keep` again."""
        taken, self._noted = self._noted, {}
        return taken

    def write(self, noted: Mapping[bytes, bytes], now_s: int) -> None:
        """Append them, durably.

        Args:
            noted: of `take`.
            now_s: Unix time, s; names a new file.

        Raises:
            OSError: some may be written, and will be found.
        """
        if not noted:
            return
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = _files(self._directory)
        newest = files[-1] if files else None
        if newest is None or newest.stat().st_size >= limits.KEPT_CREDENTIALS_FILE_BYTES:
            start_s = now_s if newest is None else max(now_s, int(newest.stem) + 1)
            newest = self._directory / f"{start_s:012d}.jsonl"
        fresh = not newest.exists()
        with open(newest, "ab", opener=_private) as opened:
            start = b"" if _ended(newest) else b"\n"  # a crash may have left half a line
            opened.write(start + b"".join(data + b"\n" for data in noted.values()))
            opened.flush()
            os.fsync(opened.fileno())
        if fresh:
            sync_directory(self._directory)
            self._bound()

    def _bound(self) -> None:
        files = _files(self._directory)
        total = sum(path.stat().st_size for path in files)
        for path in files[:-1]:
            if total + limits.KEPT_CREDENTIALS_FILE_BYTES <= self._max_bytes:
                break
            total -= path.stat().st_size
            path.unlink()


class KeptCredentials:
    """What one node keeps: its own credentials, and those of other nodes, which cannot crowd out its own."""

    def __init__(self, directory: Path, now_ms: Callable[[], int]) -> None:
        """Use `directory` and `peers` in it; `now_ms` is the wall clock, Unix ms."""
        self._noted, self._now_ms, self._failed = asyncio.Event(), now_ms, False
        self._flushing = asyncio.Lock()
        self.own = CredentialFiles(
            directory, max_bytes=limits.MAX_KEPT_CREDENTIALS_BYTES, noted=self._noted.set
        )
        self.peers = CredentialFiles(
            directory / PEERS, max_bytes=limits.MAX_KEPT_PEER_CREDENTIALS_BYTES, noted=self._noted.set
        )

    def restore(self, path: Path) -> None:
        """Keep the credential of the last run, if `path` has it: a crash may have come before it was written."""
        try:
            data = read_at_most(path, limits.MAX_CREDENTIAL_BYTES) if path.is_file() else b""
        except OSError as error:
            logger.warning("%s is not kept for evidence: %s", path, error)
            return
        if data:
            self.own.keep(credential_sha256(data), data)

    async def run(self) -> None:
        """Write what is noted soon after it is, before its record can be exported; until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S):
                    await self._noted.wait()
            self._noted.clear()
            await self.flush()
            await asyncio.sleep(_SPACING_S)

    async def flush(self) -> None:
        """Write what was noted, in a thread; what a failing disk does not take is tried again."""
        async with self._flushing:  # the last one, when the node stops, may meet that of `run`
            for files in (self.own, self.peers):
                await self._flush(files)

    async def _flush(self, files: CredentialFiles) -> None:
        noted = files.take()
        if not noted:
            return
        try:
            await to_thread_until_done(files.write, noted, self._now_ms() // 1000)
        except OSError as error:
            if not self._failed:
                logger.warning("trust credentials are not kept for evidence, will retry: %s", error)
            self._failed = True
            for sha256, data in noted.items():
                files.keep(sha256, data)
        else:
            self._failed = False


def find_credentials(
    directories: Sequence[Path], wanted: Mapping[bytes, int], *, newest: Sequence[Path] = ()
) -> dict[bytes, bytes]:
    """Return digest to credential of those that the folders have; unverified.

    Args:
        directories: of `CredentialFiles`; those that are not there hold nothing.
        wanted: digest to when a permit named it, Unix ms: files around these times are read first.
        newest: files with one credential each, that nodes hold now; those that are not there are passed over.
    """
    found: dict[bytes, bytes] = {}
    times = {at_ms // 1000 for at_ms in wanted.values()}
    near: list[Path] = []
    far: list[Path] = []
    for directory in directories:
        files = _files(directory)
        for path, following in itertools.zip_longest(files, files[1:]):
            start_s = int(path.stem) - _AROUND_S
            end_s = None if following is None else int(following.stem) + _AROUND_S
            around = any(start_s <= at_s and (end_s is None or at_s <= end_s) for at_s in times)
            (near if around else far).append(path)
    for path in (*filter(Path.is_file, newest), *near, *far):
        if len(found) == len(wanted):
            break
        for line in _lines(path):
            sha256 = hashlib.sha256(line).digest()
            if sha256 in wanted:
                found[sha256] = line
    return found


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.jsonl") if path.stem.isdecimal())


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as opened:
        while line := opened.readline(limits.MAX_CREDENTIAL_BYTES + 1):
            yield line.removesuffix(b"\n")


def _ended(path: Path) -> bool:
    with path.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        if size == 0:
            return True
        opened.seek(size - 1)
        return opened.read(1) == b"\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
