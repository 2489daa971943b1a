"""Steps of the demonstration: what a quorum of approvers allows, and nothing else, is executed."""

import asyncio
from typing import Final

import grpc
import grpc.aio

from control_plane.lab.bootstrap import completed, prepare
from control_plane.lab.demo_world import (
    TRANSFER,
    TRUST_DOMAIN,
    WAIT_S,
    CheckError,
    World,
    expect,
    lines,
    policy_files,
    told,
)
from egm.sample.v1 import shop_pb2, shop_pb2_grpc
from trust.edge.grpc_errors import error_from_rpc
from trust.errors import MeshError, Reason
from trust.verified import BASE_ROLE

_WATCH_POLICY: Final = '@id("tellers-watch")'
_WATCH_TEST: Final = "- name: a teller watches"


async def domain(world: World) -> str:
    """Make keys and trust anchors."""
    name = await asyncio.to_thread(prepare, world.directory, TRUST_DOMAIN)
    keys = sorted(path for path in (world.directory / "domain" / "keys").glob("approver-*.pem"))
    expect(len(keys) == 3, f"three approver keys, found {[key.stem for key in keys]}")
    modes = {key.stat().st_mode & 0o777 for key in keys}
    expect(modes == {0o600}, f"keys that only their owner can read, got modes {sorted(map(oct, modes))}")
    return f"trust domain {name}; keys encrypted, mode 0600: {', '.join(key.stem for key in keys)}"


async def start(world: World) -> str:
    """Start every process."""
    world.say(
        "starting control plane, broker and three sidecars; they enrol, and take up a policy that allows nothing"
    )
    await world.start()
    nodes = ", ".join(f"{name} (pid {entry.pid})" for name, entry in world.mesh.mesh.nodes.items())
    return lines(
        f"nodes {nodes}",
        "beside two plain gRPC services, payments and accounts, and two callers, alice and mallory",
    )


async def default_deny(world: World) -> str:
    """Call without any policy that allows it."""
    answer = await world.refused("alice", 100, Reason.NO_POLICY_PERMITS)
    return lines(f"alice -> {TRANSFER}, amount 100:", answer)


async def one_signature(world: World) -> str:
    """Try to publish with one signature too few."""
    async with world.release() as (release, client):
        proposal = await release.propose(world.archive(), role=BASE_ROLE, title="Tellers may transfer")
        world.proposal_id = proposal.id
        await world.sign(release, "approver-1")
        try:
            await client.publish(proposal.id)
        except MeshError as error:
            expect(error.reason is Reason.QUORUM_NOT_MET, f"QUORUM_NOT_MET, got {error.reason}")
            return f"proposal {proposal.id}: {error}"
    raise CheckError("a policy with one signature was published")


async def publish_with_quorum(world: World) -> str:
    """Add the second signature and publish."""
    async with world.release() as (release, client):
        await world.sign(release, "approver-3")
        answer = await client.publish(world.proposal_id)
    await world.mesh.settled(version=answer.proposal.version)
    signed = ", ".join(signature.name for signature in answer.proposal.signatures)
    return f"version {answer.proposal.version}, signed by {signed}, in force on {len(world.mesh.mesh.nodes)} nodes"


async def allowed(world: World) -> str:
    """Make the call that was refused."""
    return f"alice -> {TRANSFER}, amount 100: executed as {await world.executed('alice', 100)}"


async def request_judged(world: World) -> str:
    """Make the same call with another amount."""
    answer = await world.refused("alice", 5000, Reason.POLICY_DENIED)
    return lines("the same call with amount 5000, where policy says at most 1000:", answer)


async def stranger(world: World) -> str:
    """Make the same call as somebody else."""
    answer = await world.refused("mallory", 100, Reason.NO_POLICY_PERMITS)
    return lines("the same call by mallory, who is no teller:", answer)


async def withdraw(world: World) -> str:
    """Take a right away while a stream uses it."""
    files = policy_files()
    for path, mark in (("policies/payments.cedar", _WATCH_POLICY), ("tests/shop.yaml", _WATCH_TEST)):
        text = files[path].decode()
        files[path] = text[: text.index(mark)].encode()
    archive = completed(world.mesh, world.archive(level=5, files=files))
    async with grpc.aio.insecure_channel(world.lab.address("alice", "payments")) as channel:
        stream = shop_pb2_grpc.PaymentsStub(channel).Watch(shop_pb2.WatchTransfersRequest())
        await asyncio.wait_for(stream.read(), WAIT_S)
        async with world.release() as (release, client):
            proposal = await release.propose(archive, role=BASE_ROLE, title="Nobody watches")
            world.proposal_id = proposal.id
            await world.sign(release, "approver-2")
            await world.sign(release, "approver-3")
            answer = await client.publish(proposal.id)
        end: object = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it
        try:
            while await asyncio.wait_for(stream.read(), WAIT_S) is not end:
                pass
            raise CheckError("the stream ended as if nothing had happened")
        except grpc.aio.AioRpcError as error:
            cut = error_from_rpc(error)
    expect(cut.reason is Reason.AUTHORIZATION_WITHDRAWN, f"AUTHORIZATION_WITHDRAWN, got {cut.reason}")
    await world.mesh.settled(version=answer.proposal.version)
    return lines(
        f"alice watches transfers; version {answer.proposal.version} no longer lets her; her open stream:",
        told(cut.detail),
    )
