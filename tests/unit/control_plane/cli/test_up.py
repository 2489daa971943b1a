"""What `egm up` makes of its options before it starts anything."""

import pytest

from control_plane.cli import up
from trust.errors import InputError, Reason


@pytest.mark.parametrize(
    "option", ["shop", "=127.0.0.1:1", "shop=1", "shop=host", "shop=host:0", "shop=h:99999"]
)
def test_a_service_without_a_real_address_is_refused_before_anything_starts(option: str) -> None:
    """A mistake of typing is told at once, not by a sidecar that cannot run."""
    with pytest.raises(InputError, match="write NAME=HOST:PORT") as refused:
        up._services([option])
    assert refused.value.reason is Reason.INPUT_INVALID


def test_an_address_and_a_unix_socket_are_taken() -> None:
    """Both ways in which services listen."""
    given = ["a=127.0.0.1:50051", "b=unix:///run/b.sock", "c=[::1]:50051"]
    assert list(up._services(given)) == ["a", "b", "c"]
