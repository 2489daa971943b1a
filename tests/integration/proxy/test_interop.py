"""gRPC's interoperability cases give the same result through sidecars as directly."""

import pytest

from tests.support.interop_cases import CASES, DEMANDED
from tests.support.proxies import path


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("sidecars", [1, 2])
@pytest.mark.parametrize("case", sorted(CASES))
async def test_interop_case_looks_the_same_through_sidecars(case: str, sidecars: int, known: bool) -> None:
    """A caller cannot tell whether sidecars are there, whether or not they know the method's shape."""
    async with path(0) as direct:
        expected = await CASES[case](direct.channel)
    if case in DEMANDED:
        assert expected["code"] == DEMANDED[case]
    async with path(sidecars, known=known) as through:
        assert await CASES[case](through.channel) == expected
