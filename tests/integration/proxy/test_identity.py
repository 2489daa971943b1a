"""Callers at a real mTLS listener: whom the sidecar believes, call by call."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from sidecar.core.call import Attempt
from sidecar.edge import upstream
from sidecar.edge.identify import jwt_svid
from tests.support.errors import outcome
from tests.support.interop_service import EMPTY, InteropService
from tests.support.open_gate import OpenGate
from tests.support.pki import Authority, StaticIdentity, now_ms
from tests.support.proxies import ALICE, DOMAIN, SHOP, hop, pool, served
from tests.support.sidecar_core import ManualClock
from trust.edge.tls import channel_options
from trust.errors import EvidenceError, Reason
from trust.identity import Svid
from trust.policy.types import Authn
from trust.spiffe import SpiffeId


def unidentified(attempt: Attempt, request: bytes | None) -> Reason | None:
    """Refuse whom the door could not identify, as level 4 does."""
    return attempt.unidentified


@contextlib.asynccontextmanager
async def listener(gate: OpenGate, authority: Authority, **options: Any) -> AsyncIterator[str]:
    """Yield the address of an inbound mTLS listener in front of a service."""
    async with served(InteropService()) as address, pool() as channels:
        to = upstream.local(channels, address)
        async with hop(to, gate, identity=StaticIdentity(authority), **options) as inbound:
            yield inbound


def dial(address: str, authority: Authority, svid: Svid) -> grpc.aio.Channel:
    """Return a channel that presents `svid`."""
    credentials = grpc.ssl_channel_credentials(authority.pem, svid.key_pem, svid.chain_pem)
    return grpc.aio.secure_channel(address, credentials, channel_options(SHOP))


@pytest.mark.parametrize(
    ("uris", "reason"),
    [
        ([str(ALICE), "spiffe://mesh.local/workload/root"], "CALLER_AMBIGUOUS"),
        ([], "CALLER_AMBIGUOUS"),
        (["https://mesh.local/workload/alice"], "CALLER_AMBIGUOUS"),
        (["spiffe://elsewhere.local/workload/alice"], "CALLER_UNIDENTIFIED"),
    ],
)
async def test_certificate_without_exactly_one_name_of_ours_identifies_nobody(
    uris: Sequence[str], reason: str
) -> None:
    """The first of two names must never be taken, nor a name of somebody else's domain."""
    authority = Authority(DOMAIN)
    svid = authority.svid(ALICE, uris=uris)
    async with (
        listener(OpenGate(refuse=unidentified), authority) as address,
        dial(address, authority, svid) as channel,
    ):
        code, _, info = await outcome(channel.unary_unary(EMPTY, None, None)(b""))
    assert (code, info["reason"]) == ("UNAUTHENTICATED", reason)


async def test_certificate_that_expires_on_an_open_connection_stops_identifying() -> None:
    """TLS checks expiry once; connections last longer."""
    authority = Authority(DOMAIN)
    svid = authority.svid(ALICE)
    clock = ManualClock(now_ms())
    gate = OpenGate(refuse=unidentified)
    async with listener(gate, authority, clock=clock) as address, dial(address, authority, svid) as channel:
        call = channel.unary_unary(EMPTY, None, None)
        await call(b"")
        assert gate.attempts[0].principal == str(ALICE)
        clock.pass_ms(svid.not_after_ms - clock.now_ms())
        code, _, info = await outcome(call(b""))
    assert (code, info["reason"]) == ("UNAUTHENTICATED", "CALLER_CERTIFICATE_EXPIRED")


async def test_caller_without_a_certificate_of_ours_does_not_get_a_connection() -> None:
    """A stranger's certificate ends in the handshake."""
    authority, stranger = Authority(DOMAIN), Authority(DOMAIN)
    async with (
        listener(OpenGate(), authority) as address,
        dial(address, authority, stranger.svid(ALICE)) as channel,
    ):
        code, _, _ = await outcome(channel.unary_unary(EMPTY, None, None)(b"", timeout=5))
    assert code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


async def test_token_identifies_its_subject_and_goes_no_further() -> None:
    """Whoever gets the forwarded call must not be able to replay the caller's token."""

    def verify(token: str, now: int) -> SpiffeId:
        if token != "good":
            raise EvidenceError(Reason.CALLER_TOKEN_INVALID, "bad signature")
        return ALICE

    gate = OpenGate(refuse=unidentified)
    service = InteropService()
    async with (
        served(service) as address,
        pool() as channels,
        hop(upstream.local(channels, address), gate, identify=jwt_svid(verify)) as front,
        grpc.aio.insecure_channel(front) as channel,
    ):
        call = channel.unary_unary(EMPTY, None, None)
        await call(b"", metadata=(("authorization", "Bearer good"), ("x-kept", "1")))
        assert (gate.attempts[0].principal, gate.attempts[0].authn) == (str(ALICE), Authn.JWT_SVID)
        assert "authorization" not in gate.attempts[0].metadata
        assert "authorization" not in dict(service.metadata[0])
        assert dict(service.metadata[0])["x-kept"] == "1"
        for headers, reason in (
            ((), "CALLER_UNIDENTIFIED"),
            ((("authorization", "Bearer bad"),), "CALLER_TOKEN_INVALID"),
            ((("authorization", "Basic good"),), "CALLER_TOKEN_INVALID"),
            ((("authorization", "Bearer good"), ("authorization", "Bearer bad")), "CALLER_AMBIGUOUS"),
        ):
            code, _, info = await outcome(call(b"", metadata=headers))
            assert (code, info["reason"]) == ("UNAUTHENTICATED", reason)
    assert len(service.metadata) == 1
