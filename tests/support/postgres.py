"""A real PostgreSQL server for one test session, in a temporary directory, reachable by a Unix socket only."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


def binaries() -> Path | None:
    """Return the directory with `initdb` and `postgres` of the newest installed version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).resolve().parent


def require() -> Path:
    """Return the binaries; skip the test without them, or fail it when CI=true."""
    found = binaries()
    if found is None:
        message = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root: name the user to become, if needed."""
    if os.geteuid() != 0:
        return []
    names = {entry.pw_name for entry in pwd.getpwall()}
    return ["runuser", "-u", "postgres" if "postgres" in names else "nobody", "--"]


@dataclass(frozen=True)
class Server:
    """A running server that can be stopped and started again."""

    url: str  # of its maintenance database
    stop: Callable[[], None]  # at once, as a crash would
    start: Callable[[], None]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a server and yield the URL of its maintenance database."""
    with restartable() as running:
        yield running.url


@contextlib.contextmanager
def restartable() -> Iterator[Server]:
    """Run a server.

    The directory is short and under /tmp because a Unix socket's path may have at most 107 bytes.
    """
    programs = require()

    def run(*command: str | Path) -> None:
        subprocess.run([*become, *command], check=True, stdout=subprocess.DEVNULL, cwd="/")

    become = _as_user()
    directory = Path(tempfile.mkdtemp(prefix="egm-pg-"))
    if become:
        shutil.chown(directory, user=become[2])
    data = directory / "data"
    try:
        settings = ("-U", "egm", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        run(programs / "initdb", "-D", data, *settings)
        options = f"-k {directory} -c listen_addresses='' -c fsync=off -c max_connections=50"
        control = (programs / "pg_ctl", "-D", data, "-w", "-l", directory / "log")

        def start() -> None:
            run(*control, "-o", options, "start")

        def stop() -> None:
            if (data / "postmaster.pid").exists():
                run(*control, "-m", "immediate", "stop")

        start()
        try:
            yield Server(f"postgresql://egm@/postgres?host={directory}", stop, start)
        finally:
            stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def new_database(maintenance_url: str) -> str:
    """Create an empty database and return its URL."""
    import asyncpg

    name = f"t{uuid.uuid4().hex}"
    connection = await asyncpg.connect(maintenance_url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return maintenance_url.replace("/postgres?", f"/{name}?")
