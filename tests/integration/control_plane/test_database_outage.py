"""PostgreSQL restarts under a running control plane, which recovers by itself."""

import asyncio

import pytest

from egm.v1 import distribution_pb2, distribution_pb2_grpc, node_pb2_grpc, operator_pb2
from tests.support import postgres
from tests.support.control_plane import Domain, archive, publish, running
from trust.errors import MeshError, Reason

pytestmark = pytest.mark.component("postgresql")


async def test_control_plane_outlives_a_restart_of_its_database(domain: Domain) -> None:
    """Files are served throughout, operators are told why, and afterwards leases, reports and publications go on."""
    with postgres.restartable() as server:
        store = await postgres.new_database(server.url)
        bundle = archive(ttl_s=2)
        async with (
            running(domain, domain.config(store=store)) as plane,
            plane.operator() as operator,
            plane.channel("node", "a") as node,
        ):
            first = domain.base(None, bundle)
            await publish(operator, domain, first, bundle)
            before = (await operator.status()).role_versions["timestamp"]
            fleet, files = node_pb2_grpc.FleetStub(node), distribution_pb2_grpc.DistributionStub(node)
            report = operator_pb2.NodeStatus(node="a", state="READY", policy_version=1)
            await fleet.Report(report)

            await asyncio.to_thread(server.stop)
            with pytest.raises(MeshError) as caught:
                await operator.proposals()
            assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
            await fleet.Report(report)
            request = distribution_pb2.GetFileRequest(path="metadata/1.root.json")
            assert b"".join([chunk.data async for chunk in files.GetFile(request)]) == domain.root
            async with asyncio.timeout(60):  # the lease ends meanwhile, too
                while "the lease has expired" not in "; ".join((await operator.status()).problems):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert "database" in "; ".join((await operator.status()).problems)

            await asyncio.to_thread(server.start)
            async with asyncio.timeout(60):
                while (await operator.status()).problems:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await operator.status()).role_versions["timestamp"] > before
            second = archive(2)
            await publish(operator, domain, domain.base(first, second), second)
            assert (await operator.status()).role_versions["targets"] == 2
            assert [record.node for record in await operator.nodes()] == ["a"]
