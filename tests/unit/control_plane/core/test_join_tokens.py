"""Join tokens: their text, and what one lets its bearer become."""

import pytest

from control_plane.core.join_tokens import Grant, check_ttl, make_grant, token_digest
from control_plane.edge.join import new_token
from trust import limits
from trust.errors import InputError, MeshError, Reason
from trust.spiffe import SpiffeId

GRANT = Grant("a", ("alice",))


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("spiffe://mesh.test/node/a", True),
        ("spiffe://mesh.test/workload/alice", True),
        ("spiffe://mesh.test/node/b", False),
        ("spiffe://mesh.test/workload/a", False),
        ("spiffe://mesh.test/node/alice", False),
        ("spiffe://other.test/node/a", False),
        ("spiffe://mesh.test/operator/a", False),
        ("spiffe://mesh.test/control-plane/a", False),
        ("spiffe://mesh.test/node/a/b", False),
        ("spiffe://mesh.test/workload", False),
    ],
)
def test_a_grant_allows_its_node_and_its_workloads_and_nothing_else(text: str, allowed: bool) -> None:
    """Kind, name and trust domain must all fit."""
    assert GRANT.allows(SpiffeId.parse(text), trust_domain="mesh.test") is allowed


def test_tokens_differ_and_only_their_digest_is_stored() -> None:
    """The digest does not contain the token."""
    one, two = new_token(), new_token()
    assert token_digest(one) != token_digest(two)
    assert one.removeprefix("egm-join.v1.") not in token_digest(one)
    assert len(token_digest(one)) == 64


@pytest.mark.parametrize("text", ["", "egm-join.v1.", "egm-join.v1." + "A" * 42, "egm-join.v2." + "A" * 43])
def test_what_is_no_token_is_refused_before_the_store_is_asked(text: str) -> None:
    """Also with a newline or a blank at its end, as pasted."""
    for variant in (text, "egm-join.v1." + "A" * 43 + "\n", " egm-join.v1." + "A" * 43):
        with pytest.raises(MeshError) as refused:
            token_digest(variant)
        assert refused.value.reason is Reason.JOIN_TOKEN_INVALID


def test_names_in_a_grant_are_names_and_few() -> None:
    """A workload called `../operator/x` or the thousandth one is refused when the token is made."""
    assert make_grant("a", ["bob", "alice", "bob"]).workloads == ("alice", "bob")
    with pytest.raises(MeshError):
        make_grant("a", ["../operator/x"])
    with pytest.raises(InputError, match="at most"):
        make_grant("a", [f"w{n}" for n in range(limits.MAX_WORKLOADS_PER_NODE + 1)])


def test_the_lifetime_is_bounded() -> None:
    """Zero means the default; never for ever."""
    assert check_ttl(0) == limits.JOIN_TOKEN_TTL_S
    for ttl_s in (-1, limits.MAX_JOIN_TOKEN_TTL_S + 1):
        with pytest.raises(InputError):
            check_ttl(ttl_s)
