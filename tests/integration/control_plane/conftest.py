"""Fixtures of the control plane's integration tests: one trust domain, and every kind of store."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from control_plane.edge.store.database import Database
from tests.support import postgres
from tests.support.control_plane import Domain, prepare_store


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """The keys and the CA of one trust domain, for all tests of the session."""
    return Domain.create(tmp_path_factory.mktemp("domain"))


@pytest.fixture
def domain(keys: Domain, tmp_path: Path) -> Domain:
    """The trust domain, with a home of its own for this test's control planes."""
    return keys.at(tmp_path)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL."""
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.component("postgresql"))])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, as a configuration names it; once for each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return await postgres.new_database(request.getfixturevalue("postgres_server"))


@pytest.fixture
async def shared_store(postgres_server: str) -> str:
    """The URL of an empty PostgreSQL database, for several control planes at once."""
    return await postgres.new_database(postgres_server)


@pytest.fixture
async def database(store_url: str, domain: Domain) -> AsyncIterator[Database]:
    """A migrated store of each kind."""
    url = domain.config(store=store_url).store_url()
    await prepare_store(url)
    opened = Database(url)
    await opened.migrate()
    yield opened
    await opened.close()
