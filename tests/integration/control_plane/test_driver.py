"""The running control plane: enrolment, announcements, namespaces, health, and what goes wrong while it runs."""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import grpc
import grpc.aio
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tuf.api.metadata import Timestamp

from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.publisher import Publisher
from control_plane.edge.store.database import Database
from egm.v1 import (
    distribution_pb2,
    distribution_pb2_grpc,
    gossip_pb2,
    gossip_pb2_grpc,
    join_pb2,
    join_pb2_grpc,
    operator_pb2,
)
from tests.support.cli import egm
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running, archive, publish, running, source
from tests.support.eventually import eventually
from tests.support.hostile import GRPC_DIES, Tls, knock_out
from trust.authoring import Holders, first_targets, next_targets, parse_metadata
from trust.edge.clock import SystemClock
from trust.edge.grpc_errors import error_from_rpc
from trust.edge.identity_embedded import EmbeddedIdentity
from trust.edge.mqtt import BrokerUrl, MqttListener
from trust.errors import InputError, MeshError, Reason, StateError
from trust.policy.source import build
from trust.spiffe import SpiffeId
from trust.x509 import control_plane_dns

EOF: object = grpc.aio.EOF  # type: ignore[attr-defined]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_node_enrols_with_a_token_once_and_renews_what_it_was_granted(
    domain: Domain, tmp_path: Path
) -> None:
    """From the operator's token to certificates, over real sockets; a second use of the token is refused."""
    ids = [SpiffeId.of(TRUST_DOMAIN, "node", "a"), SpiffeId.of(TRUST_DOMAIN, "workload", "alice")]
    async with running(domain) as plane, plane.operator() as operator:
        token = await operator.create_join_token("a", ["alice"], 60)

        def identity(home: str, wanted: list[SpiffeId], text: str | None) -> EmbeddedIdentity:
            return EmbeddedIdentity(
                tmp_path / home,
                wanted,
                control_plane=[plane.listen],
                join_addresses=[plane.join_listen],
                trust_domain=TRUST_DOMAIN,
                ca_pem=(domain.directory / "ca" / "ca.pem").read_bytes(),
                token=text,
                clock=SystemClock(),
            )

        first = identity("first", ids, token.token)
        await first.start()
        assert [first.svid(i).spiffe_id for i in ids] == ids
        with pytest.raises(MeshError) as caught:
            await identity("second", ids, token.token).start()
        assert caught.value.reason is Reason.JOIN_TOKEN_INVALID
        await identity("first", ids, None).start()  # from disk
        more = [*ids, SpiffeId.of(TRUST_DOMAIN, "workload", "mallory")]
        with pytest.raises(MeshError) as caught:
            await identity("first", more, None).start()
        assert caught.value.reason is Reason.NOT_AUTHORIZED
        with pytest.raises(InputError):
            await operator.create_join_token("a", ["alice"], 10**9)


async def test_publications_are_announced_over_the_embedded_broker(domain: Domain) -> None:
    """What a listener hears, also one that comes late, is the signed lease, verbatim."""
    heard: list[bytes] = []
    async with running(domain, domain.config(broker="embedded")) as plane, plane.operator() as operator:
        await publish(operator, domain, domain.base(None, archive()), archive())
        listener = MqttListener(BrokerUrl.parse(plane.broker), TRUST_DOMAIN, heard.append)
        task = asyncio.create_task(listener.run())
        await eventually(lambda: heard, "the retained announcement")
        await publish(operator, domain, domain.base(domain.base(None, archive()), archive(2)), archive(2))
        await eventually(lambda: len(heard) > 1, "the next announcement")
        task.cancel()
        assert parse_metadata(heard[-1], Timestamp).signed.version == 2
        status = await operator.status()
        assert (status.broker_connected, status.broker) == (True, f"mqtt://control-plane@{plane.broker[7:]}")


def namespace_source(*, service: str = "stock") -> Mapping[str, bytes]:
    """Return the folder of namespace `store`."""
    return {
        "bundle.yaml": (
            f"name: store\nnamespace: store\ntrust_domain: {TRUST_DOMAIN}\n"
            "services: {stock: {grpc_services: [shop.Stock/Count]}}\n"
        ).encode(),
        "policies/stock.cedar": (
            f'@id("carol-counts")\npermit(principal == Workload::"spiffe://{TRUST_DOMAIN}/workload/carol", '
            f'action == Action::"shop.Stock/Count", resource == Service::"{service}");\n'
        ).encode(),
        "tests/stock.yaml": (
            b"- {name: carol, caller: carol, service: stock, method: shop.Stock/Count, expect: allow}\n"
        ),
    }


async def test_a_namespace_has_its_own_approvers_and_must_fit_the_base(domain: Domain) -> None:
    """Delegated by the base quorum, signed by its own; a bundle that speaks of other services is refused."""
    files = source()
    files["bundle.yaml"] = files["bundle.yaml"].replace(
        b"}}\n", b"}, stock: {namespace: store, grpc_services: [shop.Stock/Count]}}\n"
    )
    base_bundle = build(files)
    holders = Holders([domain.keys["stranger"], domain.keys["approver-3"]], 2)
    now_ms = SystemClock().now_ms()
    first = first_targets(base_bundle, now_ms=now_ms)
    delegated = next_targets(first, None, now_ms=now_ms, delegate={"store": holders})
    own_bundle = build(namespace_source())
    own = first_targets(own_bundle, now_ms=now_ms, role="store")
    path = "store/bundle.tar.gz"
    async with running(domain) as plane, plane.operator() as operator:

        async def propose(bundle: bytes) -> operator_pb2.Proposal:
            metadata = first_targets(bundle, now_ms=now_ms, role="store")
            return await operator.propose(
                role="store", title="", metadata=metadata.to_bytes(), files={path: bundle}
            )

        with pytest.raises(MeshError) as caught:
            await propose(own_bundle)
        assert caught.value.reason is Reason.NOT_AUTHORIZED
        await publish(operator, domain, first, base_bundle)
        await publish(operator, domain, delegated, None)  # the bundle in force stays
        with pytest.raises(MeshError) as caught:
            await propose(build(namespace_source(service="payments")))
        assert caught.value.reason in {Reason.BUNDLE_OUT_OF_NAMESPACE, Reason.INPUT_INVALID}
        proposal = await propose(own_bundle)
        with pytest.raises(MeshError) as caught:
            await operator.add_signature(proposal.id, *domain.signature("approver-1", own))
        assert caught.value.reason is Reason.NOT_AUTHORIZED
        await publish(operator, domain, own, own_bundle, role="store", holders=("stranger", "approver-3"))
        assert dict((await operator.status()).role_versions) == {
            "root": 1,
            "targets": 2,
            "store": 1,
            "snapshot": 3,
            "timestamp": 3,
        }
        without = next_targets(delegated, archive(5), now_ms=now_ms)
        with pytest.raises(MeshError) as caught:  # the base would no longer know the namespace's service
            await operator.propose(
                role="targets", title="", metadata=without.to_bytes(), files={"base.tar.gz": archive(5)}
            )
        assert "store" in caught.value.detail


async def health(channel: grpc.aio.Channel) -> int:
    """Ask for the overall health."""
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


async def test_a_lease_that_cannot_be_renewed_is_a_problem_and_then_bad_health(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control plane that no longer does its work must not look healthy; when it can again, it recovers."""
    bundle = archive(ttl_s=2)

    async def failing(self: Publisher) -> bool:
        raise StateError(Reason.SOURCE_UNAVAILABLE, "the online key is away")

    async with running(domain) as plane, plane.operator() as operator, plane.channel() as channel:
        await publish(operator, domain, domain.base(None, bundle), bundle)
        assert await health(channel) == SERVING
        monkeypatch.setattr(Publisher, "renew_if_due", failing)
        async with asyncio.timeout(60):
            while await health(channel) == SERVING:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        problems = "; ".join((await operator.status()).problems)
        assert "the online key is away" in problems
        assert "the lease has expired" in problems
        monkeypatch.undo()
        async with asyncio.timeout(60):
            while await health(channel) == NOT_SERVING:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not (await operator.status()).problems


async def test_a_store_that_fails_is_reported_and_the_files_are_still_served(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes go on fetching what is published while the database is away; operators are told why nothing works."""
    real = Database.read

    def away(self: Database) -> object:
        raise StateError(Reason.SOURCE_UNAVAILABLE, "the control plane cannot use its database now")

    async with running(domain) as plane, plane.operator() as operator, plane.channel("node", "a") as node:
        monkeypatch.setattr(Database, "read", away)
        with pytest.raises(MeshError) as caught:
            await operator.proposals()
        assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
        assert "database" in "; ".join((await operator.status()).problems)
        stub = distribution_pb2_grpc.DistributionStub(node)
        chunks = [c async for c in stub.GetFile(distribution_pb2.GetFileRequest(path="metadata/1.root.json"))]
        assert b"".join(c.data for c in chunks) == domain.root
        monkeypatch.setattr(Database, "read", real)
        assert list(await operator.proposals()) == []


async def test_draining_ends_watches_and_turns_health_off(domain: Domain) -> None:
    """A node that watches is sent to another control plane at once, not after a timeout."""
    async with contextlib.AsyncExitStack() as stack:
        async with running(domain) as plane:
            node = await stack.enter_async_context(plane.channel("node", "a"))
            call = distribution_pb2_grpc.DistributionStub(node).Watch(distribution_pb2.WatchRequest())
            reading = asyncio.create_task(call.read())
            watch = health_pb2_grpc.HealthStub(node).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            news = gossip_pb2_grpc.GossipStub(node).Watch(gossip_pb2.WatchGossipRequest())
            await news.read()
        assert await reading is EOF
        assert await news.read() is EOF
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is EOF
        assert {await one.code() for one in (call, watch, news)} == {grpc.StatusCode.OK}


@pytest.mark.filterwarnings(GRPC_DIES)
async def test_method_name_that_is_no_text_takes_neither_listener_away(domain: Domain) -> None:
    """One request of a node, or of a stranger at the join listener, must not end the control plane's service."""
    ca_pem = (domain.directory / "ca" / "ca.pem").read_bytes()
    dns = control_plane_dns(TRUST_DOMAIN)
    name = ("grpc.ssl_target_name_override", dns)

    def stranger(plane: Running) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(plane.join_listen, grpc.ssl_channel_credentials(ca_pem), [name])

    async with asyncio.timeout(60), running(domain) as plane:
        for _ in range(2):
            async with plane.channel("node", "a") as node:
                await health_pb2_grpc.HealthStub(node).Check(
                    health_pb2.HealthCheckRequest(), wait_for_ready=True
                )
            shown = domain.credentials("node", "a")
            await knock_out(plane.listen, Tls(ca_pem, dns, shown.key, shown.chain))
            async with stranger(plane) as anybody:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await join_pb2_grpc.JoinStub(anybody).Enrol(join_pb2.EnrolRequest(), wait_for_ready=True)
                assert error_from_rpc(caught.value).reason is Reason.INPUT_INVALID
            await knock_out(plane.join_listen, Tls(ca_pem, dns))
        async with plane.channel() as channel:
            await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), wait_for_ready=True
            )
            bundle = archive()
            await publish(OperatorClient(channel), domain, domain.base(None, bundle), bundle)


def test_check_opens_what_the_configuration_names_and_tells_what_is_wrong(
    domain: Domain, tmp_path: Path
) -> None:
    """A bad file is found before the restart, with exit code 2 and the line to change."""
    config = json.loads(domain.config().model_dump_json())
    path = tmp_path / "cp.yaml"
    path.write_text(yaml.safe_dump(config))
    good = egm("control-plane", "check", "-c", str(path), "--json")
    assert good.code == 0, good.stderr
    assert json.loads(good.stdout)["ok"] is True
    swapped = {
        **config,
        "online_keys": {
            "snapshot": config["online_keys"]["timestamp"],
            "timestamp": config["online_keys"]["snapshot"],
        },
    }
    for broken, expected in (
        ({**config, "root": str(tmp_path / "none.json")}, "CONFIG_INVALID"),
        ({**config, "ca": str(tmp_path / "none")}, "error:"),
        ({**config, "trust_domain": "other.test"}, "trust_domain is other.test"),
        ({**config, "brokr": "none"}, "did you mean 'broker'"),
        (swapped, "online_keys.snapshot"),
    ):
        path.write_text(yaml.safe_dump(broken))
        bad = egm("control-plane", "check", "-c", str(path))
        assert bad.code == 2, (broken, bad.stdout, bad.stderr)
        assert expected in bad.stderr
        assert "Traceback" not in bad.stderr


async def test_a_port_in_use_is_said_plainly(domain: Domain) -> None:
    """The most common failure of a start."""
    async with running(domain) as plane:
        with pytest.raises(InputError) as caught:
            async with running(domain, domain.config("cp-2", listen=plane.listen)):
                pass
    assert plane.listen in caught.value.detail
