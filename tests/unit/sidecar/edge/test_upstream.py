"""Where calls go, and which failures are the connection's."""

import grpc
import pytest

from sidecar.edge.upstream import Upstream, broke_off, never_sent, targets
from trust.errors import InputError

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def test_numeric_addresses_share_a_target_and_names_get_their_own() -> None:
    """gRPC balances over a list of numbers; names it resolves one by one."""
    assert targets(["10.0.0.1:1", "pay.local:2", "10.0.0.2:3", "[::1]:4", "unix:///run/x"]) == [
        "ipv4:10.0.0.1:1,10.0.0.2:3",
        "ipv6:[::1]:4",
        "dns:///pay.local:2",
        "unix:///run/x",
    ]


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:70000", "host:http", ""])
def test_address_without_host_and_port_is_refused_by_name(address: str) -> None:
    """A typing error in a configuration must be found at start."""
    with pytest.raises(InputError, match="host:port"):
        targets([address])


def test_upstream_without_addresses_is_refused() -> None:
    """Nothing to dial is a configuration error."""
    with pytest.raises(InputError, match="at least one"):
        Upstream([])


class Channel:
    """A channel as far as taking turns needs one."""

    def __init__(self, name: str, state: grpc.ChannelConnectivity) -> None:
        """Be in one state."""
        self.name, self.state = name, state

    def get_state(self, *, try_to_connect: bool) -> grpc.ChannelConnectivity:
        """Return the state."""
        return self.state


def test_turns_pass_over_channels_that_cannot_connect() -> None:
    """One dead address must not take its share of the calls."""
    ready, failing = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
    channels = [Channel("a", ready), Channel("b", failing), Channel("c", ready)]
    upstream = Upstream([lambda c=c: c for c in channels])  # type: ignore[misc]
    assert {upstream._next().name for _ in range(6)} == {"a", "c"}  # type: ignore[attr-defined]
    channels[0].state = channels[2].state = failing
    assert upstream._next().name in {"a", "b", "c"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "details",
    [
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
        "Socket closed",
        "DNS resolution failed for shop:1",
        "connections to all backends failing; last error: ...",
        "recvmsg:Connection reset by peer",
    ],
)
def test_broken_connection_is_told_from_an_answer(details: str) -> None:
    """gRPC words its own failures; an answer with trailers is an answer whatever it says."""
    assert broke_off(UNAVAILABLE, details, has_trailers=False)
    assert not broke_off(UNAVAILABLE, details, has_trailers=True)
    assert not broke_off(grpc.StatusCode.INTERNAL, details, has_trailers=False)


def test_only_a_call_that_had_no_connection_was_never_sent() -> None:
    """Else whoever makes a service fail would have its limits given back for what the service has done."""
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused"
    assert never_sent(refused, connected=False)
    assert never_sent("DNS resolution failed for shop:1", connected=False)
    assert not never_sent(refused, connected=True), "the service's own upstream is away"
    for late in ("recvmsg:Connection reset by peer", "connection aborted", "Socket closed", "Broken pipe"):
        assert not never_sent(late, connected=False)


def test_services_own_unavailable_is_an_answer() -> None:
    """Applications say UNAVAILABLE too."""
    assert not broke_off(UNAVAILABLE, "closed for lunch", has_trailers=False)
    assert not broke_off(UNAVAILABLE, None, has_trailers=False)
