"""Metadata properties: nothing of the application's is lost, nothing of the mesh's gets in, whatever is sent."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.edge.metadata import crosses, from_caller, from_upstream, sendable

KEYS = st.one_of(
    st.from_regex(r"[a-z0-9_.-]{1,12}(-bin)?", fullmatch=True),
    st.from_regex(r"(egm|grpc)-[a-z0-9-]{0,8}(-bin)?", fullmatch=True),
    st.sampled_from(["user-agent", "authorization", "te", "grpc-status-details-bin"]),
)
PAIRS = st.lists(
    KEYS.flatmap(
        lambda key: st.tuples(st.just(key), st.binary() if key.endswith("-bin") else st.text(max_size=20))
    ),
    max_size=12,
)
CONSUMED = st.sampled_from([frozenset(), frozenset({"authorization"})])


@given(PAIRS, CONSUMED)
def test_forwarded_metadata_are_the_callers_own_in_order(
    sent: list[tuple[str, str | bytes]], used: frozenset[str]
) -> None:
    """The forwarded pairs are exactly those that may cross, and no mesh key is among them."""
    forward, visible = from_caller(sent, used)
    assert list(forward) == [(k, v) for k, v in sent if k not in used and crosses(k)]
    assert not any(key.startswith("egm-") for key, _ in forward)
    assert not any(key.startswith("egm-") or key in used for key in visible)


@given(PAIRS)
def test_every_text_value_of_a_key_is_visible(sent: list[tuple[str, str | bytes]]) -> None:
    """A policy sees all values of a key or none."""
    _, visible = from_caller(sent)
    for key, shown in visible.items():
        assert shown == ",".join(v for k, v in sent if k == key and isinstance(v, str))


@given(PAIRS)
def test_upstream_metadata_that_cross_can_be_sent(received: list[tuple[str, str | bytes]]) -> None:
    """gRPC core refuses a whole call for one illegal value."""
    assert all(crosses(key) and sendable(value) for key, value in from_upstream(received))
