"""The operator's API over real sockets, with honest and hostile callers."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from control_plane.edge.operator_client import OperatorClient, chunks
from egm.v1 import (
    distribution_pb2,
    distribution_pb2_grpc,
    join_pb2,
    join_pb2_grpc,
    node_pb2_grpc,
    operator_pb2,
    operator_pb2_grpc,
)
from tests.support.control_plane import APPROVERS, TRUST_DOMAIN, Domain, Running, archive, publish, running
from trust import limits
from trust.authoring import find_key, next_root, parse_metadata
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.leaf_keys import make_csr, new_key
from trust.errors import MeshError, Reason
from trust.verified import BASE_TARGET
from trust.x509 import control_plane_dns

OPEN, READY = operator_pb2.PROPOSAL_STATE_OPEN, operator_pb2.PROPOSAL_STATE_READY


async def propose(
    operator: OperatorClient, metadata: Metadata[Targets], bundle: bytes
) -> operator_pb2.Proposal:
    """Propose a base policy."""
    return await operator.propose(
        role="targets", title="a change", metadata=metadata.to_bytes(), files={BASE_TARGET: bundle}
    )


async def get_file(channel: grpc.aio.Channel, path: str, offset: int = 0) -> bytes:
    """Download one file."""
    stub = distribution_pb2_grpc.DistributionStub(channel)
    request = distribution_pb2.GetFileRequest(path=path, offset=offset)
    try:
        return b"".join([chunk.data async for chunk in stub.GetFile(request)])
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None


async def refused(reason: Reason, call: object) -> str:
    """Expect `call` to be refused for `reason`; return the detail."""
    with pytest.raises(MeshError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.reason is reason, caught.value
    return caught.value.detail


async def test_two_of_three_signatures_publish_and_nodes_get_the_files(domain: Domain) -> None:
    """The main road: propose, sign, sign, publish, fetch what a node needs."""
    metadata = domain.base(None, archive())
    async with running(domain) as plane, plane.operator() as operator:
        proposal = await propose(operator, metadata, archive())
        assert (proposal.state, proposal.threshold, list(proposal.missing)) == (OPEN, 2, list(APPROVERS))
        after_one = await operator.add_signature(proposal.id, *domain.signature("approver-1", metadata))
        assert (after_one.state, [s.name for s in after_one.signatures]) == (OPEN, ["approver-1"])
        after_two = await operator.add_signature(proposal.id, *domain.signature("approver-3", metadata))
        assert (after_two.state, list(after_two.missing)) == (READY, ["approver-2"])
        answer = await operator.publish(proposal.id)
        assert (answer.snapshot_version, answer.timestamp_version) == (1, 1)
        async with plane.channel("node", "a") as node:
            timestamp = parse_metadata(await get_file(node, "metadata/timestamp.json"), Timestamp)
            assert timestamp.signed.snapshot_meta.version == 1
            snapshot = parse_metadata(await get_file(node, "metadata/1.snapshot.json"), Snapshot)
            assert snapshot.signed.meta["targets.json"].version == 1
            targets = parse_metadata(await get_file(node, "metadata/1.targets.json"), Targets)
            sha256 = targets.signed.targets[BASE_TARGET].hashes["sha256"]
            path = f"targets/{sha256}.{BASE_TARGET}"
            assert await get_file(node, path) == archive()
            assert await get_file(node, path, offset=100) == archive()[100:]
            stub = distribution_pb2_grpc.DistributionStub(node)
            with pytest.raises(grpc.aio.AioRpcError) as past_the_end:
                async for _ in stub.GetFile(distribution_pb2.GetFileRequest(path=path, offset=10**9)):
                    pass
            assert past_the_end.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_below_the_quorum_nothing_is_published_and_the_refusal_names_who_is_missing(
    domain: Domain,
) -> None:
    """An operator cannot do what only the quorum may."""
    metadata = domain.base(None, archive())
    async with running(domain) as plane, plane.operator() as operator:
        proposal = await propose(operator, metadata, archive())
        detail = await refused(Reason.QUORUM_NOT_MET, operator.publish(proposal.id))
        assert "approver-1, approver-2, approver-3" in detail
        await operator.add_signature(proposal.id, *domain.signature("approver-1", metadata))
        detail = await refused(Reason.QUORUM_NOT_MET, operator.publish(proposal.id))
        assert "signed by approver-1; not by approver-2, approver-3" in detail
        assert "targets" not in (await operator.status()).role_versions


async def test_the_same_key_twice_counts_once(domain: Domain) -> None:
    """One approver cannot be a quorum, however often they sign."""
    metadata = domain.base(None, archive())
    async with running(domain) as plane, plane.operator() as operator:
        proposal = await propose(operator, metadata, archive())
        for _ in range(3):
            answer = await operator.add_signature(proposal.id, *domain.signature("approver-1", metadata))
            assert len(answer.signatures) == 1
        await refused(Reason.QUORUM_NOT_MET, operator.publish(proposal.id))


async def test_signatures_of_strangers_and_of_other_proposals_are_refused(domain: Domain) -> None:
    """A signature counts for exactly the bytes that its holder saw, and only from an approver."""
    metadata, other = domain.base(None, archive(1)), domain.base(None, archive(2))
    async with running(domain) as plane, plane.operator() as operator:
        proposal = await propose(operator, metadata, archive(1))
        add = operator.add_signature
        await refused(Reason.SIGNATURE_INVALID, add(proposal.id, *domain.signature("approver-1", other)))
        await refused(Reason.NOT_AUTHORIZED, add(proposal.id, *domain.signature("stranger", metadata)))
        await refused(Reason.NOT_AUTHORIZED, add(proposal.id, *domain.signature("root-1", metadata)))
        key_id, _ = domain.signature("approver-2", metadata)
        _, signature = domain.signature("approver-1", metadata)
        await refused(Reason.SIGNATURE_INVALID, add(proposal.id, key_id, signature))
        await refused(Reason.SIGNATURE_INVALID, add(proposal.id, key_id, "not hex"))
        await refused(Reason.NOT_FOUND, add("0" * 16, key_id, signature))


async def test_nodes_workloads_and_headers_get_no_operator_rights(domain: Domain) -> None:
    """The role is in the certificate; what a caller claims in metadata changes nothing."""
    header = operator_pb2.ProposeHeader(role="targets", metadata=domain.base(None, archive()).to_bytes())
    claims = (
        ("x-spiffe-id", "spiffe://mesh.test/operator/olga"),
        ("x-forwarded-client-cert", "URI=spiffe://mesh.test/operator/olga"),
        ("egm-caller", "spiffe://mesh.test/operator/olga"),
    )
    async with running(domain) as plane:
        for kind in ("node", "workload", "control-plane"):
            async with plane.channel(kind, "a") as channel:
                stub = operator_pb2_grpc.OperatorStub(channel)
                calls: list[Any] = [
                    stub.Propose(iter([operator_pb2.ProposeRequest(header=header)]), metadata=claims),
                    stub.Publish(operator_pb2.PublishRequest(proposal_id="0" * 16), metadata=claims),
                    stub.CreateJoinToken(operator_pb2.CreateJoinTokenRequest(node="a"), metadata=claims),
                    stub.ListAudit(operator_pb2.ListAuditRequest(), metadata=claims),
                ]
                for call in calls:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    assert error_from_rpc(caught.value).reason is Reason.NOT_AUTHORIZED
        async with plane.channel("workload", "a") as channel:
            with pytest.raises(MeshError):
                await get_file(channel, "metadata/1.root.json")
        async with plane.operator() as operator:
            assert not await operator.proposals()


async def test_a_node_reports_as_itself_only(domain: Domain) -> None:
    """A compromised node cannot speak for another."""
    async with running(domain) as plane:
        async with plane.channel("node", "a") as channel:
            stub = node_pb2_grpc.FleetStub(channel)
            await stub.Report(
                operator_pb2.NodeStatus(node="a", state="READY", policy_version=3, lease="FRESH")
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Report(operator_pb2.NodeStatus(node="b", state="READY"))
            assert error_from_rpc(caught.value).reason is Reason.NOT_AUTHORIZED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Report(operator_pb2.NodeStatus(node="a", alarms=["x" * 1000] * 100))
            assert error_from_rpc(caught.value).reason is Reason.LIMIT_EXCEEDED
        async with plane.operator() as operator:
            (record,) = await operator.nodes()
            assert (record.node, record.status.policy_version) == ("a", 3)
            assert record.certificate_not_after_ms > record.last_seen_ms > 0


async def renew(plane: Running) -> None:
    """Ask as node a for what every enrolled node may have."""
    async with plane.channel("node", "a") as channel:
        try:
            await join_pb2_grpc.JoinStub(channel).Renew(join_pb2.RenewRequest())
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None


async def enrol(plane: Running, token: str) -> None:
    """Trade a token for the certificate of node a."""
    csr = make_csr(new_key())
    wanted = [join_pb2.CertificateRequest(spiffe_id=f"spiffe://{TRUST_DOMAIN}/node/a", csr_der=csr)]
    anchors = plane.domain.credentials("node", "a").anchors
    options = [("grpc.ssl_target_name_override", control_plane_dns(TRUST_DOMAIN))]
    async with grpc.aio.secure_channel(
        plane.join_listen, grpc.ssl_channel_credentials(anchors), options
    ) as channel:
        try:
            await join_pb2_grpc.JoinStub(channel).Enrol(join_pb2.EnrolRequest(token=token, requests=wanted))
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None


async def test_a_forgotten_node_renews_nothing_until_it_joins_anew(domain: Domain) -> None:
    """A machine that is gone must not come back by itself, nor with a token that was made for it before."""
    async with running(domain) as plane, plane.operator() as operator:
        await enrol(plane, (await operator.create_join_token("a", ["alice"], 60)).token)
        unused = (await operator.create_join_token("a", ["alice"], 60)).token
        async with plane.channel("node", "a") as channel:
            await node_pb2_grpc.FleetStub(channel).Report(operator_pb2.NodeStatus(node="a", state="READY"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # a node forgets no node
                request = operator_pb2.ForgetNodeRequest(node="a")
                await operator_pb2_grpc.OperatorStub(channel).ForgetNode(request)
            assert error_from_rpc(caught.value).reason is Reason.NOT_AUTHORIZED
        await renew(plane)
        assert [record.node for record in await operator.nodes()] == ["a"]

        assert (await operator.forget_node("a")).certificate_not_after_ms > SystemClock().now_ms()

        assert not await operator.nodes()
        await refused(Reason.NOT_AUTHORIZED, renew(plane))
        await refused(Reason.JOIN_TOKEN_INVALID, enrol(plane, unused))
        await refused(Reason.NOT_FOUND, operator.forget_node("a"))
        (deed, *_) = await operator.audit(limit=10)
        assert (deed.action, deed.detail, deed.who) == (
            "forget-node",
            "node a",
            f"spiffe://{TRUST_DOMAIN}/operator/olga",
        )
        await enrol(plane, (await operator.create_join_token("a", ["alice"], 60)).token)
        await renew(plane)


async def test_only_published_paths_are_served(domain: Domain) -> None:
    """No path, however written, reaches anything but the published files."""
    async with running(domain) as plane, plane.channel("node", "a") as node:
        assert await get_file(node, "metadata/1.root.json") == domain.root
        for path in (
            "metadata/timestamp.json",
            "metadata/../metadata/1.root.json",
            "metadata//1.root.json",
            "../lock",
            "/etc/hostname",
            "",
            "metadata",
            "metadata/1.root.json\0",
        ):
            await refused(Reason.NOT_FOUND, get_file(node, path))


async def test_a_proposal_larger_than_it_says_is_refused_before_it_is_buffered(domain: Domain) -> None:
    """An operator's machine gone wild must not fill the memory of the control plane."""
    metadata = domain.base(None, archive())
    sent = 0

    async def endless() -> AsyncIterator[operator_pb2.ProposeRequest]:
        nonlocal sent
        header = operator_pb2.ProposeHeader(role="targets", title="x", metadata=metadata.to_bytes())
        yield operator_pb2.ProposeRequest(header=header)
        block = b"x" * limits.MAX_CHUNK_BYTES
        while True:
            sent += len(block)
            yield operator_pb2.ProposeRequest(file=operator_pb2.FileData(path=BASE_TARGET, data=block))

    process = psutil.Process(os.getpid())
    async with running(domain) as plane, plane.channel() as channel:
        before = process.memory_info().rss
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await operator_pb2_grpc.OperatorStub(channel).Propose(endless())
        # cut in the middle of a write, a client may see a broken stream instead of the reason
        assert caught.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL}
        assert process.memory_info().rss - before < 64 * 1024 * 1024
        assert sent < 2 * limits.MAX_PROPOSAL_BYTES
        huge = operator_pb2.ProposeHeader(role="targets", metadata=b" " * (3 * limits.MAX_METADATA_BYTES))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await operator_pb2_grpc.OperatorStub(channel).Propose(
                iter([operator_pb2.ProposeRequest(header=huge)])
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with plane.operator() as operator:
            assert not await operator.proposals()


async def test_proposals_that_no_node_could_enforce_are_refused_with_the_problems(domain: Domain) -> None:
    """Mistakes are found before anybody is asked to sign."""
    async with running(domain) as plane, plane.operator() as operator:
        elsewhere = archive(trust_domain="other.test")
        detail = await refused(
            Reason.BUNDLE_MALFORMED, propose(operator, domain.base(None, elsewhere), elsewhere)
        )
        assert "other.test" in detail
        await refused(
            Reason.BUNDLE_MALFORMED,
            propose(operator, domain.base(None, b"not an archive"), b"not an archive"),
        )
        await refused(Reason.DIGEST_MISMATCH, propose(operator, domain.base(None, archive(1)), archive(2)))
        skipped = domain.base(domain.base(None, archive(1)), archive(2))
        await refused(Reason.CONFLICT, propose(operator, skipped, archive(2)))
        namespace = domain.base(None, archive())
        await refused(
            Reason.NOT_AUTHORIZED,
            operator.propose(role="ledger", title="", metadata=namespace.to_bytes(), files={}),
        )
        await refused(
            Reason.NOT_AUTHORIZED,
            operator.propose(role="timestamp", title="", metadata=namespace.to_bytes(), files={}),
        )
        await refused(
            Reason.METADATA_INVALID,
            operator.propose(role="targets", title="", metadata=b"{}", files={}),
        )
        assert not await operator.proposals()


async def test_publication_supersedes_the_other_proposals_of_its_role_and_leaves_an_audit(
    domain: Domain,
) -> None:
    """Of two proposals for one version only one can ever be published; who did what is kept."""
    one, two = domain.base(None, archive(1)), domain.base(None, archive(2))
    async with running(domain) as plane, plane.operator() as operator:
        loser = await propose(operator, two, archive(2))
        again = await propose(operator, two, archive(2))
        assert again.id == loser.id, "proposing the same again changes nothing"
        for name in APPROVERS[:2]:
            await operator.add_signature(loser.id, *domain.signature(name, two))
        winner = await publish(operator, domain, one, archive(1))
        states = {p.id: p.state for p in await operator.proposals()}
        assert states == {
            winner: operator_pb2.PROPOSAL_STATE_PUBLISHED,
            loser.id: operator_pb2.PROPOSAL_STATE_SUPERSEDED,
        }
        await refused(Reason.CONFLICT, operator.publish(loser.id))
        await refused(Reason.CONFLICT, operator.publish(winner))
        await refused(Reason.CONFLICT, operator.withdraw(winner))
        assert (await operator.proposal(winner)).files == {BASE_TARGET: archive(1)}
        async with plane.channel() as channel:
            answer = await operator_pb2_grpc.OperatorStub(channel).ListAudit(operator_pb2.ListAuditRequest())
        deeds = [(e.action, e.proposal_id) for e in answer.entries]
        assert deeds[0] == ("publish", winner)
        assert {e.who for e in answer.entries} == {"spiffe://mesh.test/operator/olga"}
        assert deeds.count(("sign", loser.id)) == 2
        assert deeds.count(("propose", loser.id)) == 1


async def test_withdrawn_proposals_can_be_neither_signed_nor_published(domain: Domain) -> None:
    """Withdrawal is final."""
    metadata = domain.base(None, archive())
    async with running(domain) as plane, plane.operator() as operator:
        proposal = await propose(operator, metadata, archive())
        withdrawn = await operator.withdraw(proposal.id)
        assert withdrawn.state == operator_pb2.PROPOSAL_STATE_WITHDRAWN
        await refused(
            Reason.CONFLICT, operator.add_signature(proposal.id, *domain.signature("approver-1", metadata))
        )
        await refused(Reason.CONFLICT, operator.publish(proposal.id))
        await refused(Reason.CONFLICT, propose(operator, metadata, archive()))
        assert not await operator.proposals(open_only=True)


async def test_a_replaced_approver_no_longer_counts_not_even_on_open_proposals(domain: Domain) -> None:
    """Root rotation needs the root quorum; after it, signatures of the approver who left are worth nothing."""
    metadata = domain.base(None, archive())
    root = parse_metadata(domain.root, Root)
    leaver = find_key(root.signed, "targets", "approver-1")
    rotated = next_root(
        root, now_ms=SystemClock().now_ms(), add=[domain.keys["stranger"]], remove=[leaver.keyid]
    )
    async with running(domain) as plane, plane.operator() as operator:
        proposal = await propose(operator, metadata, archive())
        for name in ("approver-1", "approver-2"):
            ready = await operator.add_signature(proposal.id, *domain.signature(name, metadata))
        assert ready.state == READY
        approvers_cannot = await operator.propose(
            role="root", title="replace approver-1", metadata=rotated.to_bytes(), files={}
        )
        await refused(
            Reason.NOT_AUTHORIZED,
            operator.add_signature(approvers_cannot.id, *domain.signature("approver-2", rotated)),
        )
        await publish(operator, domain, rotated, None, role="root", holders=("root-1", "root-3"))
        (still,) = await operator.proposals(open_only=True)
        assert still.state == OPEN
        detail = await refused(Reason.QUORUM_NOT_MET, operator.publish(proposal.id))
        assert "signed by approver-2" in detail
        await operator.add_signature(proposal.id, *domain.signature("stranger", metadata))
        await operator.publish(proposal.id)
        assert (await operator.status()).role_versions == {
            "root": 2,
            "targets": 1,
            "snapshot": 1,
            "timestamp": 1,
        }


async def test_watchers_hear_of_publications_and_of_every_renewal_of_the_lease(domain: Domain) -> None:
    """Without a broker, a node still learns of news at once; the lease is renewed on a timer."""
    bundle = archive(ttl_s=2)
    async with running(domain) as plane, plane.operator() as operator, plane.channel("node", "a") as node:
        call = distribution_pb2_grpc.DistributionStub(node).Watch(distribution_pb2.WatchRequest())
        await publish(operator, domain, domain.base(None, bundle), bundle)
        versions = []
        async with asyncio.timeout(60):
            async for announcement in call:
                versions.append(parse_metadata(announcement.timestamp_json, Timestamp).signed.version)
                if len(versions) == 3:
                    break
        call.cancel()
        assert versions == sorted(set(versions))
        assert (await operator.status()).lease_ttl_s == 2


async def test_unlisted_rpcs_are_refused_and_enrolment_is_not_on_the_mutual_tls_port(domain: Domain) -> None:
    """What the table does not name does not exist."""
    async with running(domain) as plane, plane.channel("operator", "olga") as channel:
        enrol: Any = channel.unary_unary("/egm.v1.Join/Enrol")  # type: ignore[call-arg]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await enrol(b"")
        assert error_from_rpc(caught.value).reason is Reason.NOT_AUTHORIZED
        unknown: Any = channel.unary_unary("/egm.v1.Operator/Become")  # type: ignore[call-arg]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_certificate_that_expires_on_an_open_connection_is_refused(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS looks at a certificate once, when the connection opens; we look at every call."""
    async with running(domain) as plane, plane.operator() as operator:
        assert list(await operator.proposals()) == []
        later_ms = SystemClock().now_ms() + limits.SVID_TTL_S * 1000 + 60_000
        monkeypatch.setattr(SystemClock, "now_ms", lambda self: later_ms)
        await refused(Reason.CALLER_CERTIFICATE_EXPIRED, operator.proposals())


def test_chunks_cover_a_file_exactly() -> None:
    """The last chunk says so, and an empty file has one."""
    data = os.urandom(limits.MAX_CHUNK_BYTES * 2 + 1)
    parts = list(chunks("p", data))
    assert b"".join(p.data for p in parts) == data
    assert [p.last for p in parts] == [False, False, True]
    assert [p.last for p in chunks("p", b"")] == [True]
