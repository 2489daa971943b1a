"""Whatever bytes arrive, the identity parsers answer or refuse; nothing else leaves them."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from control_plane.core.certificates import proven_key
from control_plane.core.join_tokens import token_digest
from tests.support.identity import make_ca, make_svid, member
from trust.edge.leaf_keys import make_csr, new_key
from trust.errors import MeshError
from trust.jwt_svid import parse_jwks, verify_jwt_svid
from trust.x509 import check_anchors, check_peer, read_svid, spiffe_id_of

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CSR = make_csr(new_key())

# the library warns about certificates that it will refuse one day: here they are meant to be odd
pytestmark = [
    pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning"),
    pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning"),
]


def attempt(function: Callable[..., object], *args: object, **options: object) -> None:
    """Call; only our own errors may come out."""
    with contextlib.suppress(MeshError):
        function(*args, **options)


@quick
@given(st.binary(max_size=400))
@example(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
@example(b"\x30\x82\xff\xff")
def test_certificates_from_any_bytes(data: bytes) -> None:
    """Leaf, trust bundle, peer and key pair."""
    attempt(spiffe_id_of, data)
    attempt(check_anchors, data)
    attempt(check_peer, data, trust_domain="mesh.test", now_ms=0)
    attempt(read_svid, data, data)
    attempt(proven_key, data)


@quick
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_certificates_with_one_byte_changed(tmp_path: Path, position: int, flip: int) -> None:
    """Mutations of real ones reach deeper than noise."""
    if not (tmp_path / "ca").exists():
        svid = make_svid(make_ca(tmp_path / "ca"), member("workload", "alice"))
        (tmp_path / "chain").write_bytes(svid.chain_pem)
        (tmp_path / "key").write_bytes(svid.key_pem)
    chain, key = bytearray((tmp_path / "chain").read_bytes()), (tmp_path / "key").read_bytes()
    chain[position % len(chain)] ^= flip
    attempt(spiffe_id_of, bytes(chain))
    attempt(read_svid, bytes(chain), key)
    csr = bytearray(CSR)
    csr[position % len(csr)] ^= flip
    attempt(proven_key, bytes(csr))


@quick
@given(st.text(max_size=200))
def test_tokens_from_any_text(text: str) -> None:
    """JWT-SVIDs and join tokens."""
    attempt(verify_jwt_svid, text, jwks_by_trust_domain={}, audience="a", now_ms=0)
    attempt(token_digest, text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
members = st.sampled_from(["kty", "use", "kid", "crv", "x", "y", "n", "e", "d"])
values = st.sampled_from(["EC", "RSA", "P-256", "sig", "jwt-svid", "AQAB", "", "a"]) | json_values


@quick
@given(st.lists(st.dictionaries(members, values, max_size=8), max_size=3) | json_values)
def test_key_sets_of_any_shape(keys: object) -> None:
    """JWKS with any members of any type."""
    attempt(parse_jwks, json.dumps({"keys": keys}).encode())
    attempt(parse_jwks, json.dumps(keys).encode())
