"""Enrolment and renewal over real TLS sockets."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from control_plane.edge.ca import rotate_ca
from control_plane.edge.join import create_token
from egm.v1 import join_pb2, join_pb2_grpc
from tests.support.identity import TRUST_DOMAIN, ControlPlane, control_plane, make_ca, make_svid, member
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.identity_embedded import EmbeddedIdentity
from trust.edge.leaf_keys import make_csr, new_key
from trust.edge.svid_store import SvidStore
from trust.edge.tls import channel_options
from trust.errors import InputError, MeshError, Reason
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns, spiffe_id_of

NODE, ALICE, PAYMENTS = member("node", "a"), member("workload", "alice"), member("workload", "payments")


async def token_for(
    cp: ControlPlane, *, ttl_s: int = 60, workloads: tuple[str, ...] = ("alice", "payments")
) -> str:
    token, _ = await create_token(cp.tokens, "a", workloads, ttl_s=ttl_s, now_ms=cp.clock.now_ms())
    return token


def identity(
    cp: ControlPlane, directory: Path, token: str | None, ids: tuple[SpiffeId, ...] = (NODE, ALICE, PAYMENTS)
) -> EmbeddedIdentity:
    return EmbeddedIdentity(
        directory,
        ids,
        control_plane=["127.0.0.1:1", cp.address],  # the first is down: the next is tried
        join_addresses=[cp.join_address],
        trust_domain=TRUST_DOMAIN,
        ca_pem=cp.ca.anchors_pem(),
        token=token,
        clock=cp.clock,
    )


async def call(
    address: str, method: str, request: object, credentials: grpc.ChannelCredentials
) -> join_pb2.IssuedCertificates:
    """Call Join directly, as an attacker with any gRPC client would."""
    async with grpc.aio.secure_channel(
        address, credentials, channel_options(control_plane_dns(TRUST_DOMAIN))
    ) as channel:
        try:
            reply: join_pb2.IssuedCertificates = await getattr(join_pb2_grpc.JoinStub(channel), method)(
                request, timeout=10
            )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        return reply


async def test_a_token_buys_certificates_for_the_node_and_its_workloads(tmp_path: Path) -> None:
    """After enrolment every identity has a certificate of exactly its own name, stored for its owner only."""
    async with control_plane(tmp_path) as cp:
        source = identity(cp, tmp_path / "node", await token_for(cp))
        await source.start()
        for spiffe_id in (NODE, ALICE, PAYMENTS):
            assert spiffe_id_of(source.svid(spiffe_id).chain_pem) == spiffe_id
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / "node").glob("*.svid.pem")} == {0o600}
        assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700


async def test_a_token_cannot_be_used_twice(tmp_path: Path) -> None:
    """Whoever copies a spent token gets nothing."""
    async with control_plane(tmp_path) as cp:
        token = await token_for(cp)
        await identity(cp, tmp_path / "one", token).start()
        with pytest.raises(MeshError) as refused:
            await identity(cp, tmp_path / "two", token).start()
        assert refused.value.reason is Reason.JOIN_TOKEN_INVALID


async def test_of_two_simultaneous_users_of_a_token_one_enrols(tmp_path: Path) -> None:
    """A race must not turn one token into two nodes."""
    async with control_plane(tmp_path) as cp:
        token = await token_for(cp)
        results = await asyncio.gather(
            *(identity(cp, tmp_path / str(n), token).start() for n in range(5)), return_exceptions=True
        )
        assert sum(result is None for result in results) == 1


async def test_an_expired_token_is_refused_like_an_unknown_one(tmp_path: Path) -> None:
    """Expired, unknown and malformed tokens get one answer, so that none can be told from another."""
    async with control_plane(tmp_path) as cp:
        expired = await token_for(cp, ttl_s=60)
        cp.clock.shift_ms = 61_000
        answers = set()
        for token in (expired, "egm-join.v1." + "A" * 43, "garbage", ""):
            with pytest.raises(MeshError) as refused:
                await identity(cp, tmp_path / "x", token).start()
            answers.add((refused.value.reason, refused.value.detail))
        assert [reason for reason, _ in answers] == [Reason.JOIN_TOKEN_INVALID]


async def test_a_token_does_not_buy_a_workload_that_it_does_not_name(tmp_path: Path) -> None:
    """The grant of the token decides, not what the request asks for."""
    async with control_plane(tmp_path) as cp:
        token = await token_for(cp, workloads=("alice",))
        with pytest.raises(MeshError) as refused:
            await identity(cp, tmp_path / "n", token).start()
        assert refused.value.reason is Reason.NOT_AUTHORIZED
        assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("kind", ["control-plane", "operator"])
async def test_a_token_never_buys_a_privileged_identity(tmp_path: Path, kind: str) -> None:
    """A node's bearer must not become an operator or a control plane."""
    async with control_plane(tmp_path) as cp:
        request = join_pb2.EnrolRequest(
            token=await token_for(cp),
            requests=[
                join_pb2.CertificateRequest(spiffe_id=str(member(kind, "a")), csr_der=make_csr(new_key()))
            ],
        )
        with pytest.raises(MeshError) as refused:
            await call(cp.join_address, "Enrol", request, grpc.ssl_channel_credentials(cp.ca.anchors_pem()))
        assert refused.value.reason is Reason.NOT_AUTHORIZED


async def test_renewal_needs_a_certificate(tmp_path: Path) -> None:
    """The listener without client certificates serves Renew to nobody."""
    async with control_plane(tmp_path) as cp:
        await identity(cp, tmp_path / "n", await token_for(cp)).start()
        anonymous = grpc.ssl_channel_credentials(cp.ca.anchors_pem())
        with pytest.raises(MeshError) as refused:
            await call(cp.join_address, "Renew", join_pb2.RenewRequest(), anonymous)
        assert refused.value.reason is Reason.CALLER_UNIDENTIFIED
        with pytest.raises(MeshError) as cut:
            await call(cp.address, "Renew", join_pb2.RenewRequest(), anonymous)
        assert cut.value.reason is Reason.SOURCE_UNAVAILABLE  # TLS refused it before any answer


async def test_renewal_is_for_enrolled_nodes_and_their_own_names_only(tmp_path: Path) -> None:
    """A workload's certificate, another node's and a removed node's renew nothing."""
    async with control_plane(tmp_path) as cp:
        await identity(cp, tmp_path / "n", await token_for(cp)).start()
        cases = [
            (ALICE, ALICE),  # not a node
            (member("node", "b"), member("node", "b")),  # valid certificate, never enrolled
            (NODE, member("node", "b")),  # another's name
            (NODE, member("workload", "bob")),  # not granted
        ]
        for caller, wanted in cases:
            svid = make_svid(cp.ca, caller)
            credentials = grpc.ssl_channel_credentials(cp.ca.anchors_pem(), svid.key_pem, svid.chain_pem)
            request = join_pb2.RenewRequest(
                requests=[join_pb2.CertificateRequest(spiffe_id=str(wanted), csr_der=make_csr(new_key()))]
            )
            with pytest.raises(MeshError) as refused:
                await call(cp.address, "Renew", request, credentials)
            assert refused.value.reason is Reason.NOT_AUTHORIZED, (caller, wanted)


async def test_a_certificate_of_a_foreign_ca_does_not_connect(tmp_path: Path) -> None:
    """The right name from the wrong CA is worth nothing."""
    async with control_plane(tmp_path) as cp:
        await identity(cp, tmp_path / "n", await token_for(cp)).start()
        svid = make_svid(make_ca(tmp_path / "foreign"), NODE)
        credentials = grpc.ssl_channel_credentials(cp.ca.anchors_pem(), svid.key_pem, svid.chain_pem)
        with pytest.raises(MeshError):
            await call(cp.address, "Renew", join_pb2.RenewRequest(), credentials)


async def test_a_client_refuses_a_control_plane_of_a_foreign_ca_and_keeps_its_token(tmp_path: Path) -> None:
    """An impostor on the join address must not even see the token."""
    async with control_plane(tmp_path / "real") as cp, control_plane(tmp_path / "impostor") as impostor:
        token = await token_for(cp)
        source = EmbeddedIdentity(
            tmp_path / "n",
            [NODE],
            control_plane=[],
            join_addresses=[impostor.join_address],
            trust_domain=TRUST_DOMAIN,
            ca_pem=cp.ca.anchors_pem(),
            token=token,
            clock=cp.clock,
        )
        with pytest.raises(MeshError) as refused:
            await source.start()
        assert refused.value.reason is Reason.SOURCE_UNAVAILABLE
        await identity(cp, tmp_path / "n", token).start()  # still unspent


async def test_restart_uses_the_disk_and_asks_nobody(tmp_path: Path) -> None:
    """A node restarts while the control plane is away."""
    async with control_plane(tmp_path) as cp:
        first = identity(cp, tmp_path / "n", await token_for(cp))
        await first.start()
        kept = {i: first.svid(i) for i in (NODE, ALICE, PAYMENTS)}
    second = identity(cp, tmp_path / "n", None)
    await second.start()
    assert {i: second.svid(i) for i in kept} == kept
    assert second.anchors_pem() == first.anchors_pem()


async def test_a_node_with_neither_certificate_nor_token_is_told_what_to_do(tmp_path: Path) -> None:
    """The error names the command that helps."""
    async with control_plane(tmp_path) as cp:
        with pytest.raises(InputError, match="egm node token a"):
            await identity(cp, tmp_path / "n", None).start()


async def test_a_workload_added_later_is_obtained_without_a_token(tmp_path: Path) -> None:
    """An enrolled node may configure one more workload of its grant and restart."""
    async with control_plane(tmp_path) as cp:
        await identity(cp, tmp_path / "n", await token_for(cp), (NODE, ALICE)).start()
        wider = identity(cp, tmp_path / "n", None, (NODE, ALICE, PAYMENTS))
        await wider.start()
        assert wider.svid(PAYMENTS).spiffe_id == PAYMENTS


async def test_renewal_changes_every_key_and_tells_subscribers(tmp_path: Path) -> None:
    """A renewed certificate never reuses a key; the disk has the new one."""
    async with control_plane(tmp_path) as cp:
        source = identity(cp, tmp_path / "n", await token_for(cp))
        await source.start()
        told: list[int] = []
        source.subscribe(lambda: told.append(1))
        before = {i: source.svid(i).key_pem for i in (NODE, ALICE)}
        await source.renew_now()
        assert told == [1]
        assert all(source.svid(i).key_pem != key for i, key in before.items())
        assert SvidStore(tmp_path / "n").load(ALICE) == source.svid(ALICE)


async def test_the_old_certificate_stays_in_force_while_renewal_fails_and_ends_when_it_expires(
    tmp_path: Path,
) -> None:
    """A dead control plane costs nothing until the certificate ends; then identity is unavailable, not stale."""
    async with control_plane(tmp_path) as cp:
        source = identity(cp, tmp_path / "n", await token_for(cp))
        await source.start()
    held = source.svid(NODE)
    with pytest.raises(MeshError):
        await source.renew_now()
    assert source.svid(NODE) == held
    cp.clock.shift_ms = 3600_000
    with pytest.raises(MeshError) as gone:
        source.svid(NODE)
    assert gone.value.reason is Reason.IDENTITY_UNAVAILABLE


async def test_run_renews_by_itself_before_expiry(tmp_path: Path) -> None:
    """With certificates of two seconds the background task replaces them in time."""
    async with control_plane(tmp_path, svid_ttl_s=2) as cp:
        source = identity(cp, tmp_path / "n", await token_for(cp))
        await source.start()
        rotated = asyncio.Event()
        source.subscribe(rotated.set)
        task = asyncio.create_task(source.run())
        await asyncio.wait_for(rotated.wait(), 30)
        task.cancel()


async def test_a_new_ca_is_learned_long_before_the_certificate_is_renewed(tmp_path: Path) -> None:
    """The trust bundle is asked for between renewals, so that a CA rotation need not wait half a lifetime."""
    async with control_plane(tmp_path) as cp:
        await identity(cp, tmp_path / "n", await token_for(cp)).start()
        source = EmbeddedIdentity(
            tmp_path / "n",
            [NODE],
            control_plane=[cp.address],
            trust_domain=TRUST_DOMAIN,
            ca_pem=cp.ca.anchors_pem(),
            token=None,
            clock=cp.clock,
            anchors_refresh_s=0.01,
        )
        await source.start()
        held, changed = source.svid(NODE), asyncio.Event()
        source.subscribe(changed.set)
        rotate_ca(tmp_path / "ca", "prepare")
        task = asyncio.create_task(source.run())
        await asyncio.wait_for(changed.wait(), 30)
        task.cancel()
        assert source.anchors_pem() == cp.ca.anchors_pem()
        assert source.svid(NODE) == held
        assert SvidStore(tmp_path / "n").load_anchors() == cp.ca.anchors_pem()


async def test_a_removed_node_is_not_renewed(tmp_path: Path) -> None:
    """Taking away the grant ends renewal, though the certificate is still valid."""
    async with control_plane(tmp_path) as cp:
        source = identity(cp, tmp_path / "n", await token_for(cp))
        await source.start()
        cp.tokens.grants.clear()  # type: ignore[attr-defined]
        with pytest.raises(MeshError) as refused:
            await source.renew_now()
        assert refused.value.reason is Reason.NOT_AUTHORIZED
