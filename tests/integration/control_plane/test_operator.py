"""The operator's API over real sockets, with honest and hostile callers."""


import pytest

from tests.support.control_plane import Domain, archive, publish, running


@pytest.fixture(scope="session")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """One trust domain for all tests of the session."""
    return Domain.create(tmp_path_factory.mktemp("domain"))


async def test_two_of_three_signatures_publish_and_the_files_are_served(domain: Domain) -> None:
    """The main road."""
    async with running(domain) as plane, plane.operator() as operator:
        await publish(operator, domain, domain.base(None, archive()), archive())
        status = await operator.status()
        assert status.role_versions["targets"] == 1, status
        print(status)
