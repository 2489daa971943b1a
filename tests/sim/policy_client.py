"""The product's policy client on a simulated disk, fed with files that some member or attacker serves.

Only python-tuf's walk is simulated, in its order and without any verification: so what the product verifies a second
time, and its version floor, stand here alone.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import Snapshot, Targets

from tests.sim.kernel import Disk, SimPath
from tests.sim.realm import root
from trust.authoring import parse_metadata
from trust.chain import Stored, published_namespaces, sha256_of_target
from trust.edge.policy_cache import PolicyCache
from trust.edge.tuf_client import PolicyClient
from trust.errors import MeshError, Reason, StateError
from trust.verified import BASE_ROLE, VerifiedPolicy

if TYPE_CHECKING:
    from tests.sim.node import Node

CACHE, FLOOR = "policy", "policy.floor.json"


@dataclass(frozen=True)
class Files:
    """What a policy source serves. `roots`: versions 2 and on; `spaces`: name, metadata, archive of each namespace."""

    timestamp: bytes
    snapshot: bytes
    targets: bytes
    archive: bytes
    roots: tuple[bytes, ...] = ()
    spaces: tuple[tuple[str, bytes, bytes], ...] = ()

    def fetch(self, path: str) -> Iterator[bytes]:
        """Serve nothing one by one: the simulated walk takes the whole."""
        raise FileNotFoundError(path)


def scratch_of(_name: str) -> SimPath:
    """Stand in for `pathlib.Path` of a scratch directory."""
    return SimPath(Disk("scratch", lambda: False), "scratch")


class SimCache(PolicyCache):
    """The real cache; one process at a time has it anyway, and its scratch directory is in memory."""

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold it."""
        yield

    def scratch(self) -> AbstractContextManager[str]:
        """Return a name; see `scratch_of`."""
        return contextlib.nullcontext("scratch")

    def keep_targets(self, keep: set[str]) -> None:
        """Remove every archive but these."""
        disk: Disk = self._targets.disk  # type: ignore[attr-defined]
        for name in [one for one in disk.files if one.startswith(f"{CACHE}/targets/")]:
            if name.rpartition("/")[2] not in keep:
                del disk.files[name]


class SimClient(PolicyClient):
    """The real client; `_update` does what python-tuf's Updater would download."""

    def _update(self, scratch: Any, fetcher: Any) -> None:
        files: Files = fetcher._source
        held = [one for one in scratch.disk.files if one.startswith("scratch/root_history/")]
        for version, data in enumerate(files.roots, 2):
            if version - 2 >= len(held):  # what was followed once stays
                (scratch / "root_history" / f"{version}.root.json").write_bytes(data)
        newest = max(len(files.roots), len(held)) + 1
        history = scratch / "root_history" / f"{newest}.root.json"
        (scratch / "root.json").write_bytes(history.read_bytes() if newest > 1 else root())
        (scratch / "timestamp.json").write_bytes(files.timestamp)
        (scratch / "snapshot.json").write_bytes(files.snapshot)
        (scratch / "targets.json").write_bytes(files.targets)
        for archive in (files.archive, *(one for _, _, one in files.spaces)):
            if self._cache.read_target(hashlib.sha256(archive).hexdigest()) is None:
                self._cache.write_target(archive)
        served = {name: metadata for name, metadata, _ in files.spaces}
        base = parse_metadata(files.targets, Targets).signed
        for name in published_namespaces(base, parse_metadata(files.snapshot, Snapshot).signed):
            if name not in served:
                raise StateError(Reason.SOURCE_UNAVAILABLE, f"the source has no {name}")
            (scratch / f"{name}.json").write_bytes(served[name])


class Policing:
    """The policy of one node since it started: its client, and what it was given."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        disk = node.disk
        self.client = SimClient(SimPath(disk, CACHE), root(), clock=node, floor=SimPath(disk, FLOOR))  # type: ignore[arg-type]

    def load(self) -> VerifiedPolicy | None:
        """Return what is on disk; None when there is nothing usable."""
        try:
            return self.client.load()
        except MeshError:
            return None

    def take(self, files: Files) -> VerifiedPolicy:
        """Refresh from files, and have the observer know what was learned on the way.

        Raises:
            MeshError: as `PolicyClient.refresh`.
        """
        observer = self.node.world.observer
        try:
            policy = self.client.refresh(files)
        except MeshError:
            observer.knows_roots(self.node, files.roots, kept=False)
            raise
        observer.knows_roots(self.node, files.roots, kept=True)
        return policy

    def served(self) -> Files | None:
        """Return what this node has for a peer that asks."""
        try:
            stored = self.client.stored()
        except MeshError:
            return None
        return None if stored is None else _files_of(stored, self.client.archive)


def _files_of(stored: Stored, archive: Callable[[str], bytes | None]) -> Files | None:
    """Return everything as one; None while an archive is missing."""
    found = {
        role: archive(sha256_of_target(role, parse_metadata(data, Targets).signed))
        for role, data in stored.roles.items()
    }
    base = found.pop(BASE_ROLE)
    spaces = [(name, stored.roles[name], data) for name, data in sorted(found.items()) if data is not None]
    if base is None or len(spaces) != len(found):
        return None
    roles = stored.roles
    return Files(stored.timestamp, stored.snapshot, roles[BASE_ROLE], base, stored.roots, tuple(spaces))
