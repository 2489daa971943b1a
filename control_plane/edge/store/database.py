"""The connection to the database: migrated at start, reads and writes in explicit transactions."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiosqlite
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from trust.errors import Reason, StateError

logger = logging.getLogger(__name__)

_MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
_WRITES: Final = "egm_writes"
_BUSY_TIMEOUT_MS: Final = 30_000
_CONNECT_TIMEOUT_S: Final = 10
_CLOSE_TIMEOUT_S: Final = 10.0
# Any fixed number: only one control plane at a time may migrate a shared database.
_MIGRATION_LOCK: Final = 0x65676D

# asyncpg reports a server that cannot be reached as OSError, not through SQLAlchemy.
# So does what `run_many` hands to SQLite itself.
_BROKEN: Final = (SQLAlchemyError, sqlite3.Error, OSError)
Statement = tuple[str, Sequence[Sequence[Any]]]


class Database:
    """An asynchronous engine on one URL, of one event loop. `read()` and `write()` give a connection in a transaction.

    A writing transaction on SQLite takes the write lock at once, so that it never fails half way because another
    writer came first; on PostgreSQL, row locks do the same (see `repository.lock_head`). Who writes must not ask to
    write again within that.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self._opened: set[aiosqlite.Connection] = set()
        # SQLite lets one writer in at a time and does not queue the others: whoever asks again at the right moment is
        # next. Here they come in the order in which they asked, so that many records cannot keep the lease waiting.
        self._turn = asyncio.Lock()
        arguments: dict[str, Any] = {"timeout": _CONNECT_TIMEOUT_S}
        if self._sqlite:
            arguments = {"async_creator_fn": self._open_sqlite}
        self._engine: AsyncEngine = create_async_engine(
            self._url, connect_args=arguments, pool_pre_ping=not self._sqlite
        )
        if self._sqlite:
            sa.event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
            sa.event.listen(self._engine.sync_engine, "invalidate", _end_sqlite)

    @property
    def kind(self) -> str:
        """ "sqlite" or "postgresql"."""
        return "sqlite" if self._sqlite else "postgresql"

    async def migrate(self) -> None:
        """Bring the schema to the newest version.

        Raises:
            StateError: SOURCE_UNAVAILABLE, when the database cannot be reached or is newer than this program.
        """
        if self._sqlite and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        try:
            async with self.write() as connection:
                if not self._sqlite:
                    await connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
                await connection.run_sync(_upgrade)
        except CommandError as error:
            raise StateError(
                Reason.SOURCE_UNAVAILABLE,
                f"store {self._shown()}: {error}; it was used by a newer egm: upgrade this one",
            ) from error
        except StateError as error:
            if error.__cause__ is None:
                raise
            raise StateError(Reason.SOURCE_UNAVAILABLE, self._unreachable(error.__cause__)) from error

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection that sees one consistent state.

        Raises:
            StateError: SOURCE_UNAVAILABLE, when the database fails.
        """
        with self._failures():
            async with self._engine.connect() as connection:
                if not self._sqlite:
                    await connection.execution_options(
                        isolation_level="REPEATABLE READ", postgresql_readonly=True
                    )
                async with connection.begin():
                    yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection whose changes are committed together, or not at all when the block raises.

        Raises:
            StateError: SOURCE_UNAVAILABLE, when the database fails; CONFLICT, when another writer was first.
        """
        with self._failures():
            turn = self._turn if self._sqlite else contextlib.nullcontext()
            async with turn, self._engine.connect() as connection:
                await connection.execution_options(**{_WRITES: True})
                async with connection.begin():
                    yield connection

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, sqlite3.IntegrityError) as error:
            logger.warning("store: a concurrent change: %s", getattr(error, "orig", error))
            raise StateError(
                Reason.CONFLICT, "the same thing was changed at the same moment; look again and retry"
            ) from error
        except _BROKEN as error:
            logger.error("store: %s", self._unreachable(error))
            raise StateError(
                Reason.SOURCE_UNAVAILABLE, "the control plane cannot use its database now; try again later"
            ) from error

    async def close(self) -> None:
        """Close every connection, and wait for the thread of each: one that outlives the loop dies with an error."""
        await self._engine.dispose()
        for connection in self._opened:
            # Left open by a task that was cancelled while it connected or wrote.
            if connection._running:
                connection.stop()
            await asyncio.to_thread(connection._thread.join, _CLOSE_TIMEOUT_S)
        self._opened.clear()

    def _open_sqlite(self, *arguments: Any, **options: Any) -> aiosqlite.Connection:
        """Make a connection that `close` knows of, also when the task that asked for it is cancelled."""
        connection = aiosqlite.connect(*arguments, **options)
        connection._thread.daemon = True  # as SQLAlchemy does for the connections that it makes itself
        self._opened = {one for one in self._opened if one._thread.is_alive()} | {connection}
        return connection

    def _shown(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def _unreachable(self, error: BaseException) -> str:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        what = f"{type(cause).__name__}: {cause}"
        return f"store {self._shown()} cannot be used: {what}; check `store` in the configuration"


async def run_many(connection: AsyncConnection, statements: Sequence[Statement]) -> None:
    """Run writing statements, each with many rows, in order.

    On SQLite all of them in one go in the connection's thread: handing each over by itself costs more than it does.

    Args:
        connection: in a writing transaction.
        statements: (SQL, rows); `?` stands for a value, and occurs in the text for nothing else.
    """
    wanted = [(sql, rows) for sql, rows in statements if rows]
    if connection.dialect.name == "sqlite":
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        await driver._execute(_run_many, driver._conn, wanted)
        return
    for sql, rows in wanted:
        await connection.exec_driver_sql(_numbered(sql), [tuple(row) for row in rows])


async def fetch(connection: AsyncConnection, sql: str, values: Sequence[Any]) -> list[Sequence[Any]]:
    """Return the rows of one reading statement; on SQLite in one go, as `run_many`.

    Args:
        connection: in a transaction.
        sql: `?` stands for a value, and occurs in the text for nothing else.
        values: as many.
    """
    if connection.dialect.name == "sqlite":
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        return list(await driver._execute(_fetch, driver._conn, sql, values))
    return list((await connection.exec_driver_sql(_numbered(sql), tuple(values))).all())


def _fetch(connection: sqlite3.Connection, sql: str, values: Sequence[Any]) -> list[Sequence[Any]]:
    return connection.execute(sql, values).fetchall()


def _numbered(sql: str) -> str:
    """Return a statement with `$1`, `$2`, … for each `?`, as PostgreSQL wants it."""
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


def _run_many(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    cursor = connection.cursor()
    try:
        for sql, rows in statements:
            cursor.executemany(sql, rows)
    finally:
        cursor.close()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # transactions begin where `_begin_sqlite` says, not where the driver guesses
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _end_sqlite(connection: Any, _record: object, _error: BaseException | None) -> None:
    """Roll back what a cancelled task leaves; closing does not, while a statement is under way.

    SQLite keeps such a connection, and its write lock, until the statement's cursor is collected: every later
    writer would wait for `_BUSY_TIMEOUT_MS` (measured: a control plane took 30 s to stop).
    """
    try:
        connection.rollback()
    except (SQLAlchemyError, sqlite3.Error, ValueError) as error:
        logger.debug("a broken connection could not be rolled back: %s", error)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
