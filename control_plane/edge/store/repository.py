"""The published repository in the database: the shared truth of every control plane that uses it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.edge.store.models import repository_files as files
from control_plane.edge.store.models import repository_head as head


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One repository file, without its content."""

    path: str
    sha256: str
    revision: int


async def revision(connection: AsyncConnection) -> int:
    """Return the revision of the newest change; 0 when nothing was ever published."""
    return int((await connection.execute(sa.select(head.c.revision))).scalar_one())


async def lock_head(connection: AsyncConnection) -> int:
    """Take the one lock under which the repository changes, and return the revision that this change makes.

    Held until the transaction ends: other control planes wait here, then see what was committed. Rolling
    back gives the revision back.
    """
    statement = sa.update(head).values(revision=head.c.revision + 1).returning(head.c.revision)
    return int((await connection.execute(statement)).scalar_one())


async def listing(connection: AsyncConnection, *, after: int = -1) -> list[StoredFile]:
    """Return every file written by a revision later than `after`."""
    rows = await connection.execute(
        sa.select(files.c.path, files.c.sha256, files.c.revision).where(files.c.revision > after)
    )
    return [StoredFile(path, sha256, int(revision)) for path, sha256, revision in rows]


async def load(connection: AsyncConnection, paths: Iterable[str]) -> dict[str, bytes]:
    """Return the content of `paths`; a path that does not exist is absent."""
    rows = await connection.execute(
        sa.select(files.c.path, files.c.data).where(files.c.path.in_(list(paths)))
    )
    return {path: bytes(data) for path, data in rows}


async def load_roots(connection: AsyncConnection) -> dict[str, bytes]:
    """Return every version of the root metadata."""
    rows = await connection.execute(
        sa.select(files.c.path, files.c.data).where(files.c.path.like("metadata/%.root.json"))
    )
    return {path: bytes(data) for path, data in rows}


async def write(connection: AsyncConnection, new: Mapping[str, bytes], *, revision: int) -> None:
    """Add or replace files as part of `revision`; the caller holds `lock_head`."""
    if not new:
        return
    await connection.execute(sa.delete(files).where(files.c.path.in_(list(new))))
    await connection.execute(
        sa.insert(files),
        [
            {"path": path, "data": data, "sha256": hashlib.sha256(data).hexdigest(), "revision": revision}
            for path, data in sorted(new.items())
        ],
    )
