"""Identification without a connection: caches keep no one longer than they may, and stay small."""

import base64
import json
from typing import Any

import pytest

from sidecar.edge.identify import (
    MAX_CACHED_CALLERS,
    MAX_CACHED_TOKENS,
    TOKEN_RECHECK_MS,
    JwtSvid,
    Mtls,
    fixed,
)
from tests.support.pki import Authority, now_ms
from trust import limits
from trust.errors import EvidenceError, Reason
from trust.policy.types import Authn
from trust.spiffe import SpiffeId

ALICE = SpiffeId.of("mesh.local", "workload", "alice")


class Connection:
    """What identification asks of a call's context."""

    def __init__(self, *pem: bytes) -> None:
        """Present these certificates."""
        self._pem = pem

    def auth_context(self) -> dict[str, Any]:
        """Return the TLS properties of the connection."""
        return {"x509_pem_cert": list(self._pem)} if self._pem else {}


def token(**claims: Any) -> str:
    """Return something shaped like a token."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.sig"


class Verifier:
    """Accepts everything and counts, until told otherwise."""

    def __init__(self) -> None:
        """Accept."""
        self.calls = 0
        self.withdrawn = False

    def __call__(self, text: str, now: int) -> SpiffeId:
        """Verify."""
        self.calls += 1
        if self.withdrawn:
            raise EvidenceError(Reason.CALLER_TOKEN_INVALID, "unknown key")
        return ALICE


def who(identifier: Any, header: str, now: int) -> Any:
    """Identify a call with one authorization header."""
    return identifier.identify(Connection(), [("authorization", header)], now_ms=now)


def test_plaintext_connection_identifies_nobody() -> None:
    """No certificate, no identity."""
    assert Mtls("mesh.local").identify(Connection(), [], now_ms=0).unidentified is Reason.CALLER_UNIDENTIFIED  # type: ignore[arg-type]


def test_garbage_instead_of_a_certificate_identifies_nobody() -> None:
    """Whatever the transport hands over, identification answers."""
    caller = Mtls("mesh.local").identify(Connection(b"garbage"), [], now_ms=0)  # type: ignore[arg-type]
    assert caller.unidentified is Reason.CALLER_UNIDENTIFIED


def test_known_certificates_are_bounded() -> None:
    """Callers must not fill memory by presenting ever new certificates."""
    identifier = Mtls("mesh.local")
    for number in range(MAX_CACHED_CALLERS + 10):
        identifier.identify(Connection(b"%d" % number), [], now_ms=0)  # type: ignore[arg-type]
    assert len(identifier._known) == MAX_CACHED_CALLERS


def test_certificate_counts_until_its_last_millisecond() -> None:
    """Expiry is exact, in the cache too."""
    svid = Authority("mesh.local").svid(ALICE, not_after_ms=(now_ms() // 1000 + 100) * 1000)
    identifier, connection = Mtls("mesh.local"), Connection(svid.chain_pem)
    for at, expected in (
        (svid.not_after_ms - 1, None),
        (svid.not_after_ms, Reason.CALLER_CERTIFICATE_EXPIRED),
    ):
        assert identifier.identify(connection, [], now_ms=at).unidentified is expected  # type: ignore[arg-type]


def test_verified_token_is_remembered_but_not_past_its_expiry() -> None:
    """The cache saves signatures; it must not prolong a token."""
    verify = Verifier()
    identifier = JwtSvid(verify)
    header = f"Bearer {token(exp=100)}"
    assert who(identifier, header, 90_000).principal == str(ALICE)
    assert who(identifier, header, 99_999).principal == str(ALICE)
    assert verify.calls == 1
    verify.withdrawn = True
    assert who(identifier, header, 100_000).unidentified is Reason.CALLER_TOKEN_INVALID


def test_token_is_verified_again_after_a_while() -> None:
    """A key that was withdrawn must not identify callers for the rest of a token's life."""
    verify = Verifier()
    identifier = JwtSvid(verify)
    header = f"Bearer {token(exp=10_000_000)}"
    who(identifier, header, 0)
    verify.withdrawn = True
    assert who(identifier, header, TOKEN_RECHECK_MS - 1).principal == str(ALICE)
    assert who(identifier, header, TOKEN_RECHECK_MS).unidentified is Reason.CALLER_TOKEN_INVALID


@pytest.mark.parametrize("text", ["x", "a.b.c", token(), token(exp="soon"), token(exp=None)])
def test_verified_token_without_a_readable_expiry_is_never_cached(text: str) -> None:
    """Fail closed: verify each time what we cannot time."""
    verify = Verifier()
    identifier = JwtSvid(verify)
    who(identifier, f"Bearer {text}", 1)
    who(identifier, f"Bearer {text}", 1)
    assert verify.calls == 2


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "good", "Bearer " + "x" * (limits.MAX_JWT_SVID_BYTES + 1)]
)
def test_header_that_is_no_bearer_token_is_invalid(header: str) -> None:
    """Nothing but one bearer token of bounded size gets as far as a signature."""
    verify = Verifier()
    assert who(JwtSvid(verify), header, 0).unidentified is Reason.CALLER_TOKEN_INVALID
    assert verify.calls == 0


def test_remembered_tokens_are_bounded() -> None:
    """Callers must not fill memory with tokens."""
    identifier = JwtSvid(Verifier())
    for number in range(MAX_CACHED_TOKENS + 10):
        who(identifier, f"Bearer {token(exp=10_000_000, jti=number)}", 0)
    assert len(identifier._known) == MAX_CACHED_TOKENS


@pytest.mark.parametrize("authn", [Authn.MTLS, Authn.JWT_SVID])
def test_listener_cannot_vouch_by_what_it_does_not_have(authn: Authn) -> None:
    """Only a listener that belongs to one workload identifies by itself."""
    with pytest.raises(ValueError, match="cannot vouch"):
        fixed(ALICE, authn)
