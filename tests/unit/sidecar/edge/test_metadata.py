"""Which metadata cross a sidecar."""

import pytest

from sidecar.edge.metadata import crosses, from_caller, from_upstream


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("x-custom", True),
        ("custom-bin", True),
        ("traceparent", True),
        ("grpc-status-details-bin", True),
        ("grpc-trace-bin", True),
        ("grpc-retry-pushback-ms", True),
        ("grpc-timeout", False),
        ("grpc-internal-encoding-request", False),
        ("egm-caller", False),
        ("egm-permit-bin", False),
        ("user-agent", False),
        ("te", False),
    ],
)
def test_key_crosses_unless_a_hop_or_the_mesh_owns_it(key: str, expected: bool) -> None:
    """Forged mesh headers and hop-by-hop headers stop here."""
    assert crosses(key) is expected


def test_repeated_key_shows_all_its_values_to_policies() -> None:
    """A policy that sees only the first value could be fooled by the second."""
    forward, visible = from_caller([("env", "test"), ("env", "prod"), ("blob-bin", b"\xff")])
    assert forward == (("env", "test"), ("env", "prod"), ("blob-bin", b"\xff"))
    assert visible == {"env": "test,prod"}


def test_consumed_token_is_neither_forwarded_nor_shown() -> None:
    """A verified token ends at the sidecar that verified it."""
    assert from_caller([("authorization", "Bearer x")], frozenset({"authorization"})) == ((), {})


def test_user_agent_is_shown_but_not_forwarded() -> None:
    """gRPC writes its own on every hop."""
    assert from_caller([("user-agent", "grpc-go/1")]) == ((), {"user-agent": "grpc-go/1"})


def test_upstream_text_that_grpc_cannot_carry_is_dropped() -> None:
    """One illegal header must not turn a good response into an internal error."""
    received: list[tuple[str, str | bytes]] = [
        ("ok", "1"),
        ("bad", "caf\u00e9"),
        ("worse", "a\nb"),
        ("raw-bin", b"\xff\x00"),
    ]
    assert from_upstream(received) == (("ok", "1"), ("raw-bin", b"\xff\x00"))
