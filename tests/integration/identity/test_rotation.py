"""Certificates and CAs rotate under traffic: no call is dropped, and what is no longer trusted stops connecting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.edge.ca import CertificateAuthority, issue_to_directory, rotate_ca
from control_plane.edge.join import create_token
from tests.support.eventually import eventually
from tests.support.identity import (
    TRUST_DOMAIN,
    ControlPlane,
    ShiftedClock,
    control_plane,
    make_ca,
    make_svid,
    member,
)
from trust.edge.grpc_errors import FixedInternalErrors, abort, error_from_rpc
from trust.edge.identity_directory import DirectoryIdentity
from trust.edge.identity_embedded import EmbeddedIdentity
from trust.edge.leaf_keys import key_to_pem, new_key
from trust.edge.tls import Channels, ServerCredentials, channel_options, peer_of, server_options
from trust.errors import InputError, MeshError, Reason
from trust.identity import IdentitySource
from trust.spiffe import SpiffeId
from trust.x509 import to_datetime

NODE, ALICE, BOB = member("node", "a"), member("workload", "alice"), member("workload", "bob")
ECHO, HOLD = "/test.Echo/Say", "/test.Echo/Hold"


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Says who called; `Hold` answers each message of a stream with the same."""

    def __init__(self, clock: ShiftedClock) -> None:
        self._clock = clock

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of the method."""
        if handler_call_details.method == ECHO:
            return grpc.unary_unary_rpc_method_handler(self._say)
        return grpc.stream_stream_rpc_method_handler(self._hold)

    def _who(self, context: Any) -> bytes:
        return str(peer_of(context, trust_domain=TRUST_DOMAIN, now_ms=self._clock.now_ms())).encode()

    async def _say(self, request: bytes, context: Any) -> bytes:
        try:
            return self._who(context)
        except MeshError as error:
            await abort(context, error)

    async def _hold(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield self._who(context)


@asynccontextmanager
async def echo_server(source: IdentitySource, spiffe_id: SpiffeId, clock: ShiftedClock) -> AsyncIterator[str]:
    """Serve Echo with mTLS as `spiffe_id`."""
    server = grpc.aio.server(interceptors=[FixedInternalErrors()], options=server_options())
    server.add_generic_rpc_handlers([Echo(clock)])
    port = server.add_secure_port("127.0.0.1:0", ServerCredentials(source, spiffe_id)())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.5)


async def enrolled(cp: ControlPlane, directory: Path) -> EmbeddedIdentity:
    token, _ = await create_token(cp.tokens, "a", ["alice", "bob"], ttl_s=60, now_ms=cp.clock.now_ms())
    source = EmbeddedIdentity(
        directory,
        [NODE, ALICE, BOB],
        control_plane=[cp.address],
        join_addresses=[cp.join_address],
        trust_domain=TRUST_DOMAIN,
        ca_pem=cp.ca.anchors_pem(),
        token=token,
        clock=cp.clock,
    )
    await source.start()
    return source


def hold(channel: grpc.aio.Channel) -> Any:
    """Open a stream to be written and read by hand."""
    open_stream: Any = channel.stream_stream(HOLD, None, None)
    return open_stream()


def say(channels: Channels, address: str) -> Any:
    channel = channels.get(address, client=ALICE, server_dns=BOB.dns_name)
    return channel.unary_unary(ECHO, None, None)(b"", timeout=10)


class Traffic:
    """Calls without pause; counts what came back, keeps every failure."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._channels, self._address = channels, address
        self.calls, self.failures = 0, list[BaseException]()
        self._stop = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stop:
            try:
                assert await say(self._channels, self._address) == str(ALICE).encode()
            except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
                self.failures.append(error)
            self.calls += 1

    async def flow(self, more: int) -> None:
        """Wait until `more` further calls have been made."""
        until = self.calls + more
        await eventually(lambda: self.calls >= until, "traffic flows")

    async def stop(self) -> list[BaseException]:
        """Stop; return the failures."""
        self._stop = True
        await self._task
        return self.failures


async def test_certificates_rotate_while_calls_flow_and_none_is_dropped(tmp_path: Path) -> None:
    """Renewals under unary traffic and an open stream: every call succeeds, new connections use new certificates."""
    async with control_plane(tmp_path) as cp:
        source = await enrolled(cp, tmp_path / "n")
        channels = Channels(source)
        async with echo_server(source, BOB, cp.clock) as address:
            channel = channels.get(address, client=ALICE, server_dns=BOB.dns_name)
            stream = hold(channel)
            await stream.write(b"1")
            assert await stream.read() == str(ALICE).encode()
            traffic = Traffic(channels, address)
            for _ in range(5):
                await source.renew_now()
                await traffic.flow(20)
            assert await traffic.stop() == []
            assert channels.generation == 5
            await stream.write(b"2")  # opened under the first certificate
            assert await stream.read() == str(ALICE).encode()
            await stream.done_writing()
            await channels.close()


async def test_a_retired_channel_lets_its_stream_finish_after_the_hand_over(tmp_path: Path) -> None:
    """The old channel closes behind its last call, not under it."""
    async with control_plane(tmp_path) as cp:
        source = await enrolled(cp, tmp_path / "n")
        channels = Channels(source)
        async with echo_server(source, BOB, cp.clock) as address:
            channel = channels.get(address, client=ALICE, server_dns=BOB.dns_name)
            stream = hold(channel)
            await stream.write(b"1")
            await stream.read()
            await source.renew_now()
            assert channels.get(address, client=ALICE, server_dns=BOB.dns_name) is not channel
            async with asyncio.timeout(60):  # the old channel stops taking calls ...
                while True:
                    try:
                        await channel.unary_unary(ECHO, None, None)(b"", timeout=10)
                    except grpc.aio.UsageError:
                        break
                    await asyncio.sleep(0.02)
            await stream.write(b"2")  # ... and still serves the open one
            assert await stream.read() == str(ALICE).encode()
            await stream.done_writing()
            assert await stream.code() is grpc.StatusCode.OK
            await channels.close()


async def test_the_ca_rotates_in_three_steps_without_dropping_calls(tmp_path: Path) -> None:
    """prepare, activate, retire: nodes learn the new CA before they meet its certificates; the old one ends."""
    async with control_plane(tmp_path) as cp:
        source, me = await enrolled(cp, tmp_path / "n"), member("control-plane", "cp-1")
        channels = Channels(source)
        old_anchor = cp.ca.anchors_pem()
        async with echo_server(source, BOB, cp.clock) as address:
            traffic = Traffic(channels, address)
            await traffic.flow(10)
            rotate_ca(tmp_path / "ca", "prepare")
            await source.renew_now()
            assert source.anchors_pem().count(b"BEGIN CERT") == 2
            await traffic.flow(10)
            rotate_ca(tmp_path / "ca", "activate", force=True)
            issue_to_directory(cp.ca, me, tmp_path / "identity")
            assert cp.identity.reload()
            await source.renew_now()
            await traffic.flow(10)
            rotate_ca(tmp_path / "ca", "retire", force=True)
            issue_to_directory(cp.ca, me, tmp_path / "identity")
            assert cp.identity.reload()
            await source.renew_now()
            await traffic.flow(10)
            assert await traffic.stop() == []
            assert old_anchor not in source.anchors_pem()
            assert source.anchors_pem().count(b"BEGIN CERT") == 1
        await channels.close()


async def test_a_leaf_of_a_retired_ca_no_longer_connects(tmp_path: Path) -> None:
    """After retirement a certificate of the old CA is worth nothing on a new connection."""
    async with control_plane(tmp_path) as cp:
        source = await enrolled(cp, tmp_path / "n")
        left_over, old = make_svid(cp.ca, ALICE), cp.ca.anchors_pem()
        rotate_ca(tmp_path / "ca", "prepare")
        rotate_ca(tmp_path / "ca", "activate", force=True)
        await source.renew_now()
        async with echo_server(source, BOB, cp.clock) as address:

            async def connect() -> bytes:
                credentials = grpc.ssl_channel_credentials(
                    old + cp.ca.anchors_pem(), left_over.key_pem, left_over.chain_pem
                )
                async with grpc.aio.secure_channel(address, credentials, channel_options(BOB)) as channel:
                    return bytes(await channel.unary_unary(ECHO, None, None)(b"", timeout=10))

            assert await connect() == str(ALICE).encode()
            rotate_ca(tmp_path / "ca", "retire", force=True)
            issue_to_directory(cp.ca, member("control-plane", "cp-1"), tmp_path / "identity")
            assert cp.identity.reload()
            await source.renew_now()
            with pytest.raises(grpc.aio.AioRpcError):
                await connect()


def test_steps_that_would_cut_peers_off_are_refused_with_the_time_when_they_are_safe(tmp_path: Path) -> None:
    """Activation waits until nodes had time to learn the CA; retirement until its leaves are gone."""
    make_ca(tmp_path)
    with pytest.raises(InputError, match="next step is prepare"):
        rotate_ca(tmp_path, "retire")
    clock = ShiftedClock()
    rotate_ca(tmp_path, "prepare", clock=clock)
    with pytest.raises(InputError, match="safe from"):
        rotate_ca(tmp_path, "activate", clock=clock)
    clock.shift_ms = 16 * 60 * 1000
    rotate_ca(tmp_path, "activate", clock=clock)
    with pytest.raises(InputError, match="safe from"):
        rotate_ca(tmp_path, "retire", clock=clock)
    clock.shift_ms += 91 * 24 * 3600 * 1000
    assert rotate_ca(tmp_path, "retire", clock=clock).anchors == 1


@pytest.mark.parametrize("present", [("ca.next.key.pem",), ("ca.next.key.pem", "ca.json")])
def test_a_crash_during_prepare_leaves_a_ca_that_works_and_can_prepare_again(
    tmp_path: Path, present: tuple[str, ...]
) -> None:
    """Files of a step that did not finish are overwritten by the next attempt."""
    before = make_ca(tmp_path).anchors_pem()
    for name in present:
        (tmp_path / name).write_bytes(b"{}")
    assert CertificateAuthority.open(tmp_path).anchors_pem() == before
    assert rotate_ca(tmp_path, "prepare").phase == "prepared"


async def test_an_expired_client_certificate_is_refused_on_an_open_connection(tmp_path: Path) -> None:
    """TLS checked it once; the peer check looks again at every call."""
    async with control_plane(tmp_path) as cp:
        source = await enrolled(cp, tmp_path / "n")
        channels, clock = Channels(source), ShiftedClock()
        async with echo_server(source, BOB, clock) as address:
            assert await say(channels, address) == str(ALICE).encode()
            clock.shift_ms = 3601_000
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await say(channels, address)
            assert error_from_rpc(refused.value).reason is Reason.CALLER_CERTIFICATE_EXPIRED
        await channels.close()


async def test_two_uri_names_identify_nobody(tmp_path: Path) -> None:
    """A certificate of our own CA with two URI SANs passes TLS and is refused as ambiguous."""
    async with control_plane(tmp_path) as cp:
        source = await enrolled(cp, tmp_path / "n")
        key = new_key()
        chain = two_names(cp.ca, key)
        async with echo_server(source, BOB, cp.clock) as address:
            credentials = grpc.ssl_channel_credentials(source.anchors_pem(), key_to_pem(key), chain)
            async with grpc.aio.secure_channel(address, credentials, channel_options(BOB)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(ECHO, None, None)(b"", timeout=10)
        assert error_from_rpc(refused.value).reason is Reason.CALLER_AMBIGUOUS


def two_names(ca: CertificateAuthority, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a leaf with two SPIFFE IDs, signed by `ca`'s key: what a careless CA might issue."""
    now_ms = ShiftedClock().now_ms()
    names = [x509.UniformResourceIdentifier(str(i)) for i in (ALICE, BOB)]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(to_datetime(now_ms - 5000))
        .not_valid_after(to_datetime(now_ms + 600_000))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(ca._key, hashes.SHA256())
    )
    return leaf.public_bytes(serialization.Encoding.PEM)


async def test_a_server_that_is_another_workload_is_refused_by_the_caller(tmp_path: Path) -> None:
    """The caller checks the name of the workload it wants, not only the CA."""
    async with control_plane(tmp_path) as cp:
        source = await enrolled(cp, tmp_path / "n")
        channels = Channels(source)
        async with echo_server(source, ALICE, cp.clock) as address:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await say(channels, address)  # wants bob
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await channels.close()


async def test_directory_identity_keeps_the_old_pair_while_a_writer_is_between_two_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new key beside an old certificate is not adopted, which is logged once; the finished pair is."""
    ca, me = make_ca(tmp_path / "ca"), member("operator", "olga")
    issue_to_directory(ca, me, tmp_path / "id")
    source = DirectoryIdentity(tmp_path / "id", ShiftedClock())
    old, told = source.svid(me), list[int]()
    source.subscribe(lambda: told.append(1))
    (tmp_path / "id" / "svid.key.pem").write_bytes(key_to_pem(new_key()))
    assert not source.reload()
    assert not source.reload()
    assert caplog.text.count("keeping the old certificate") == 1
    assert source.svid(me) == old
    issue_to_directory(ca, me, tmp_path / "id")
    assert source.reload()
    assert source.svid(me) != old
    assert told == [1]


async def test_a_failing_certificate_fetch_keeps_serving_the_old_one(tmp_path: Path) -> None:
    """gRPC would swallow the exception: the fetcher reports it and new connections still work until expiry."""
    async with control_plane(tmp_path) as cp:
        source = await enrolled(cp, tmp_path / "n")
        channels = Channels(source)
        async with echo_server(source, BOB, cp.clock) as address:
            credentials = grpc.ssl_channel_credentials(
                source.anchors_pem(), source.svid(ALICE).key_pem, source.svid(ALICE).chain_pem
            )
            source._svids.pop(BOB)
            async with grpc.aio.secure_channel(address, credentials, channel_options(BOB)) as channel:
                assert await channel.unary_unary(ECHO, None, None)(b"", timeout=10) == str(ALICE).encode()
        await channels.close()


async def test_plain_channels_need_no_identity_and_are_shared() -> None:
    """A local upstream is reached without an SVID; the same target gives the same channel."""
    server = grpc.aio.server()

    async def answer(request: bytes, context: Any) -> bytes:
        return request

    class Generic(grpc.GenericRpcHandler):  # type: ignore[type-arg]
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    server.add_generic_rpc_handlers([Generic()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channels = Channels(None)
    channel = channels.plain(f"127.0.0.1:{port}")
    assert await channel.unary_unary(ECHO, None, None)(b"x", timeout=10) == b"x"
    assert channels.plain(f"127.0.0.1:{port}") is channel
    await channels.close()
    await server.stop(None)
