"""Fixtures of the sidecar's integration tests: one trust domain, and a mesh whose sidecars a test starts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import sidecars
from tests.support.control_plane import Domain
from tests.support.control_plane import running as control_plane
from tests.support.sidecar_mesh import Mesh


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """Keys and certificates, made once."""
    return Domain.create(tmp_path_factory.mktemp("domain"))


@pytest.fixture
async def mesh(domain: Domain, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A control plane and a service; sidecars are started by the test."""
    at = domain.at(tmp_path)
    async with control_plane(at) as cp, sidecars.upstream() as (echo, address):
        made = Mesh(tmp_path, at, cp, echo, address)
        await made.enrol()
        yield made
