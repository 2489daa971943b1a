"""Keeps the newest policy that TUF vouches for, on disk and across restarts, and never an older one.

A refresh runs python-tuf's Updater in a scratch directory. What it produced is verified a second time
(`trust.chain`: distinct keys, linter) and compared with the version floor before anything is kept, so a refresh
that fails at any point, or is killed, leaves the policy in force as it was.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root, Snapshot, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from trust import limits
from trust.authoring import digest_of, parse_metadata
from trust.chain import (
    Stored,
    VerifiedMetadata,
    published_namespaces,
    verify_metadata,
    verify_policy,
    verify_roots,
)
from trust.edge.clock import SystemClock
from trust.edge.policy_cache import PolicyCache, VersionFloor
from trust.errors import CapacityError, EvidenceError, MeshError, Reason, StateError
from trust.metadata import check_root, check_targets
from trust.ports import Clock, FileSource
from trust.quorum import keys_of
from trust.verified import BASE_ROLE, VerifiedPolicy, target_path

logger = logging.getLogger(__name__)

_TIMESTAMP_PATH: Final = "metadata/timestamp.json"
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=limits.MAX_ROOT_ROTATIONS,
    max_delegations=limits.MAX_NAMESPACES,
    root_max_length=limits.MAX_METADATA_BYTES,
    timestamp_max_length=limits.MAX_ANNOUNCEMENT_BYTES,
    snapshot_max_length=limits.MAX_METADATA_BYTES,
    targets_max_length=limits.MAX_METADATA_BYTES,
    prefix_targets_with_hash=True,
)


class PolicyClient:
    """The policy of one node. Synchronous: call it from a worker thread; one process per directory.

    `rejected_announcement` holds why the announcement given to the last `refresh` was not used, if so.
    """

    def __init__(
        self,
        directory: Path,
        trusted_root: bytes,
        *,
        clock: Clock | None = None,
        floor: Path | None = None,
    ) -> None:
        """Check the trust anchor; nothing is read from the cache yet.

        Args:
            directory: the cache; created when needed.
            trusted_root: root metadata that the node was given out of band, any version.
            floor: the version floor, outside `directory`; default: DIRECTORY.floor.json beside it.

        Raises:
            EvidenceError: METADATA_INVALID, METADATA_UNSAFE or QUORUM_NOT_MET: not a usable root.
        """
        self.rejected_announcement: MeshError | None = None
        self._cache = PolicyCache(directory)
        self._trusted_root = trusted_root
        self._trusted_version = verify_roots(trusted_root, ()).version
        self._clock: Clock = SystemClock() if clock is None else clock
        self._floor = VersionFloor(
            directory.with_name(f"{directory.name}.floor.json") if floor is None else floor
        )
        self._lock = threading.Lock()
        self.newest: tuple[int, bytes] = (0, b"")  # the verified timestamp.json held, version and bytes
        self.base: tuple[int, bytes] = (
            0,
            b"",
        )  # base version, SHA-256 of the canonical bytes of its metadata
        self._verified: VerifiedMetadata | None = None

    def load(self) -> VerifiedPolicy:
        """Return the policy in force from disk, verified again; its lease may have expired.

        Raises:
            StateError: POLICY_MISSING, if there is none; POLICY_ROLLBACK, if the disk holds less than
                was once accepted; INTERNAL, if the disk fails.
            EvidenceError: METADATA_INVALID, QUORUM_NOT_MET, DIGEST_MISMATCH, METADATA_UNSAFE: the cache
                is damaged; the next `refresh` replaces it.
        """
        with self._lock:
            stored = self._cache.read(self._trusted_version)
            if stored is None:
                raise StateError(Reason.POLICY_MISSING, "no policy has been received yet")
            try:
                verified, policy = self._verify(stored)
                self._floor.record(verified)
            except (
                OSError
            ) as error:  # without a floor that can be read and written a rollback cannot be excluded
                raise StateError(
                    Reason.INTERNAL, f"the policy cache cannot be used: {error.strerror or error}"
                ) from error
            self._holds(verified, stored)
            return policy

    def _holds(self, verified: VerifiedMetadata, stored: Stored) -> None:
        digest = digest_of(parse_metadata(stored.roles[BASE_ROLE], Targets))
        self.base = (verified.roles[BASE_ROLE].version, bytes.fromhex(digest))
        self.newest = (verified.timestamp.version, stored.timestamp)
        self._verified = verified

    def approvers(self, role: str) -> dict[str, Key]:
        """Return who may sign `role` by the policy held: key id -> key.

        Raises:
            StateError: POLICY_MISSING, before the first policy. EvidenceError: NOT_AUTHORIZED, for an unknown role.
        """
        verified = self._verified
        if verified is None:
            raise StateError(Reason.POLICY_MISSING, "no policy has been received yet")
        return keys_of(verified.root if role == BASE_ROLE else verified.roles[BASE_ROLE], role)

    def stored(self) -> Stored | None:
        """Return the metadata files that are kept, for a peer that asks; None when there are none.

        Raises:
            EvidenceError: METADATA_INVALID; StateError: INTERNAL.
        """
        return self._cache.read(0)

    def archive(self, sha256: str) -> bytes | None:
        """Return the archive with this SHA-256 (hex) that is kept, for a peer that asks; None when it is not here."""
        return self._cache.read_target(sha256)

    def refresh(self, source: FileSource, announced_timestamp: bytes | None = None) -> VerifiedPolicy:
        """Fetch, verify, keep and return the newest policy; raise without changing anything.

        Args:
            source: where the files are; untrusted.
            announced_timestamp: a `timestamp.json` that was announced; untrusted. If it leads nowhere the
                source's own is used and `rejected_announcement` says why.

        Raises:
            StateError: SOURCE_UNAVAILABLE, DOWNLOAD_TOO_SLOW, POLICY_MISSING, POLICY_EXPIRED,
                POLICY_ROLLBACK; CONFLICT, if another process is using the directory; INTERNAL, if the disk
                fails.
            EvidenceError: QUORUM_NOT_MET, DIGEST_MISMATCH, METADATA_INVALID, METADATA_UNSAFE, KEY_UNSAFE.
            CapacityError: LIMIT_EXCEEDED, if a file is larger than it may be.
        """
        with self._lock:
            self.rejected_announcement = None
            try:
                with self._cache.exclusive():
                    return self._refresh_announced(source, announced_timestamp)
            except OSError as error:
                raise StateError(
                    Reason.INTERNAL, f"the policy cache cannot be written: {error.strerror or error}"
                ) from error

    def _refresh_announced(self, source: FileSource, announced: bytes | None) -> VerifiedPolicy:
        if announced is not None:
            try:
                return self._refresh(_Fetcher(source, self._clock, announced))
            except MeshError as error:
                self.rejected_announcement = error
                logger.warning("announcement not used: %s", error)
        return self._refresh(_Fetcher(source, self._clock, None))

    def _refresh(self, fetcher: "_Fetcher") -> VerifiedPolicy:
        current = self._usable_cache()
        with self._cache.scratch() as name:
            scratch = Path(name)
            if current is not None:
                _seed(scratch, current)
            try:
                with _mapped_errors():
                    self._update(scratch, fetcher)
                stored = self._collect(scratch)
                verified, policy = self._verify(stored)
                self._floor.check_root(verified.root)
                self._check_fresh(policy)
            except MeshError:
                self._learn_root(scratch)
                raise
        if stored != current:
            self._cache.write(stored)
        self._floor.record(verified)
        self._holds(verified, stored)
        self._cache.keep_targets({t.sha256 for t in (policy.base, *policy.namespaces.values())})
        return policy

    def _update(self, scratch: Path, fetcher: "_Fetcher") -> None:
        """Run python-tuf's client workflow and fetch the archives that are not here yet."""
        updater = Updater(
            str(scratch),
            "metadata/",
            target_base_url="targets/",
            fetcher=fetcher,
            config=_CONFIG,
            bootstrap=self._trusted_root,
        )
        updater.refresh()
        root = parse_metadata((scratch / "root.json").read_bytes(), Root).signed
        base = parse_metadata((scratch / "targets.json").read_bytes(), Targets).signed
        snapshot = parse_metadata((scratch / "snapshot.json").read_bytes(), Snapshot).signed
        if not root.consistent_snapshot:
            check_root(root)  # here, or it would look like a source that lacks files
        check_targets(BASE_ROLE, base, root)  # before its delegations and lengths are followed
        for role in (BASE_ROLE, *published_namespaces(base, snapshot)):
            info = updater.get_targetinfo(target_path(role))
            if info is None:
                raise EvidenceError(Reason.METADATA_INVALID, f"{role} does not list {target_path(role)}")
            if info.length > limits.MAX_BUNDLE_ARCHIVE_BYTES:
                raise CapacityError(Reason.LIMIT_EXCEEDED, f"the archive of {role} has {info.length} bytes")
            sha256 = info.hashes.get("sha256", "")
            if self._cache.read_target(sha256) is None:
                file = scratch / "archive"
                updater.download_target(info, str(file))
                self._cache.write_target(file.read_bytes())

    def _collect(self, scratch: Path) -> Stored:
        """Read what the updater left: exactly the bytes that it verified."""
        history = scratch / "root_history"
        newest = parse_metadata((scratch / "root.json").read_bytes(), Root).signed.version
        snapshot = (scratch / "snapshot.json").read_bytes()
        targets = (scratch / "targets.json").read_bytes()
        names = published_namespaces(
            parse_metadata(targets, Targets).signed, parse_metadata(snapshot, Snapshot).signed
        )
        return Stored(
            roots=tuple(
                (history / f"{version}.root.json").read_bytes()
                for version in range(self._trusted_version + 1, newest + 1)
            ),
            timestamp=(scratch / "timestamp.json").read_bytes(),
            snapshot=snapshot,
            roles={BASE_ROLE: targets, **{name: (scratch / f"{name}.json").read_bytes() for name in names}},
        )

    def _learn_root(self, scratch: Path) -> None:
        """Remember the newest root that a failed refresh came by: keys that it replaced must not go on counting here.

        Otherwise whoever has stolen them needs only to see to it that what comes under the new root is refused.
        """
        history, roots = scratch / "root_history", list[bytes]()
        with contextlib.suppress(FileNotFoundError):
            for version in range(
                self._trusted_version + 1, self._trusted_version + 1 + limits.MAX_ROOT_ROTATIONS
            ):
                roots.append((history / f"{version}.root.json").read_bytes())
        while roots:
            try:
                newest = verify_roots(self._trusted_root, roots, now_ms=self._clock.now_ms())
            except MeshError as error:
                logger.warning(
                    "root version %d not taken note of: %s", self._trusted_version + len(roots), error
                )
                roots.pop()  # those before it may be good
            else:
                self._floor.learned(newest)
                return

    def _verify(self, stored: Stored) -> tuple[VerifiedMetadata, VerifiedPolicy]:
        now_ms = self._clock.now_ms()
        root = verify_roots(self._trusted_root, stored.roots, now_ms=now_ms)
        verified = verify_metadata(root, stored, now_ms=now_ms)
        self._floor.check(verified)
        return verified, verify_policy(verified, self._cache.read_target)

    def _usable_cache(self) -> Stored | None:
        """Return the cache if it can seed a refresh; a damaged one is as good as none (the floor holds)."""
        try:
            return self._cache.read(self._trusted_version)
        except EvidenceError as error:
            logger.warning("policy cache is damaged and will be replaced: %s", error)
            return None

    def _check_fresh(self, policy: VerifiedPolicy) -> None:
        # python-tuf judged expiry by the system clock; the node's clock must agree.
        if self._clock.now_ms() >= min(policy.lease_expires_ms, policy.expires_ms):
            raise StateError(Reason.POLICY_EXPIRED, "the newest policy that the source has is expired")


class _Fetcher(FetcherInterface):
    """python-tuf's view of a `FileSource`, with the deadline and minimum rate that python-tuf lacks."""

    def __init__(self, source: FileSource, clock: Clock, announced: bytes | None) -> None:
        self._source = source
        self._clock = clock
        self._announced = announced

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url == _TIMESTAMP_PATH and self._announced is not None:
            return iter([self._announced])
        return self._chunks(url)

    def _chunks(self, path: str) -> Iterator[bytes]:
        started_ms = self._clock.monotonic_ms()
        first_ms: int | None = None
        received = 0
        try:
            for chunk in self._source.fetch(path):
                now_ms = self._clock.monotonic_ms()
                # The pace is that of whoever delivers: a source that was silent before it is not held against it.
                first_ms = now_ms if first_ms is None else first_ms
                received += len(chunk)
                self._check_pace(path, received, now_ms - first_ms, now_ms - started_ms)
                yield chunk
        except FileNotFoundError:
            if path == _TIMESTAMP_PATH:
                raise StateError(
                    Reason.POLICY_MISSING, "no policy has been published yet; propose, sign and publish one"
                ) from None
            # python-tuf ends its walk over root versions at a 404
            raise tuf_errors.DownloadHTTPError(f"the source has no {path}", 404) from None
        except OSError as error:
            raise StateError(Reason.SOURCE_UNAVAILABLE, f"{path}: {error.strerror or error}") from error

    @staticmethod
    def _check_pace(path: str, received: int, flowing_ms: int, elapsed_ms: int) -> None:
        too_long = elapsed_ms > limits.FETCH_DEADLINE_S * 1000
        settled = flowing_ms > limits.FETCH_TIMEOUT_S * 1000
        if too_long or (settled and received * 1000 < limits.FETCH_MIN_BYTES_PER_S * flowing_ms):
            raise StateError(
                Reason.DOWNLOAD_TOO_SLOW, f"{path}: {received} bytes in {elapsed_ms / 1000:.1f} s; gave up"
            )


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    """Turn python-tuf's exceptions into ours."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise StateError(Reason.POLICY_EXPIRED, _short(error)) from error
    except tuf_errors.BadVersionNumberError as error:
        raise StateError(Reason.POLICY_ROLLBACK, _short(error)) from error
    except tuf_errors.UnsignedMetadataError as error:
        raise EvidenceError(Reason.QUORUM_NOT_MET, _short(error)) from error
    except tuf_errors.LengthOrHashMismatchError as error:
        raise EvidenceError(Reason.DIGEST_MISMATCH, _short(error)) from error
    except tuf_errors.DownloadLengthMismatchError as error:
        raise CapacityError(Reason.LIMIT_EXCEEDED, _short(error)) from error
    except tuf_errors.DownloadError as error:
        raise StateError(Reason.SOURCE_UNAVAILABLE, _short(error)) from error
    except tuf_errors.RepositoryError as error:
        raise EvidenceError(Reason.METADATA_INVALID, _short(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # values of a wrong JSON type reach arithmetic deep inside the library
        raise EvidenceError(Reason.METADATA_INVALID, "metadata has a field of a wrong type") from error


def _short(error: Exception) -> str:
    return str(error)[:200]


def _seed(scratch: Path, stored: Stored) -> None:
    """Give the updater what is in force, for rollback protection and to spare downloads."""
    history = scratch / "root_history"
    history.mkdir()
    for data in stored.roots:
        version = parse_metadata(data, Root).signed.version
        (history / f"{version}.root.json").write_bytes(data)
    (scratch / "timestamp.json").write_bytes(stored.timestamp)
    (scratch / "snapshot.json").write_bytes(stored.snapshot)
    for role, data in stored.roles.items():
        (scratch / f"{role}.json").write_bytes(data)
